"""Space-time memory reads: pure functions of tensors.

Every reader is called as `reader(memory_key, memory_value, query_key)` with

* `memory_key` `(B, CK, T, H, W)`, `memory_value` `(B, CV, T, H, W)`: T remembered frames,
* `query_key` `(B, CK, H, W)`: the frame to segment,

and returns the read alone, `(B, CV, H, W)`. The affinity of two keys is their dot product, or with
`similarity="l2"` their negative squared distance, divided by sqrt(CK), as all public code does (the papers leave the
divisor out); `scale=None` gives the papers' literal form.

The `(T·H·W) x (H·W)` matrix of affinities is never held whole: query positions are read in chunks of bounded size.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.errors import UserError

Similarity = Literal["dot", "l2"]
Scale = Literal["sqrt"] | None
# Affinities held at a time: 16 MiB in float32, which also keeps a chunk in a CPU's cache hierarchy.
_CHUNK = 2**22


class Reader(nn.Module):
    """What all readers share: the affinity of keys, and reading in chunks of query positions."""

    def __init__(self, scale: Scale = "sqrt", similarity: Similarity = "dot"):
        super().__init__()
        self.scale = scale
        self.similarity = similarity

    def forward(self, memory_key: torch.Tensor, memory_value: torch.Tensor, query_key: torch.Tensor) -> torch.Tensor:
        """Read `(B, CV, H, W)`; shapes as in the module's docstring.

        Raises:
            UserError: for tensors of other shapes, naming what was expected and found.
        """
        _check(memory_key, memory_value, query_key)
        keys, query = self._comparable(memory_key.flatten(2), query_key.flatten(2).transpose(1, 2))
        rows = memory_value.flatten(2).transpose(1, 2)
        read = self._read(keys, rows, query, (query_key.shape[-2], query_key.shape[-1]))
        return read.transpose(1, 2).unflatten(2, query_key.shape[-2:])

    @abstractmethod
    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """keys `(B, C, N)`, values as rows `(B, N, CV)`, query `(B, M, C)`, M = H·W of `size` -> `(B, M, CV)`.

        Affinities are `query @ keys`, whole: similarity and scale are in the tensors.
        """

    def _comparable(self, keys: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """keys `(B, CK, N)` and query `(B, M, CK)` such that their product is the affinity."""
        factor = 1 / math.sqrt(keys.shape[1]) if self.scale == "sqrt" else 1.0
        if self.similarity == "l2":
            # -|m - q|^2 = 2 m·q - |m|^2 - |q|^2
            lengths = query.square().sum(dim=2, keepdim=True)
            query = torch.cat([query, torch.ones_like(lengths), -lengths], dim=2)
            lengths = keys.square().sum(dim=1, keepdim=True)
            keys = torch.cat([2 * keys, -lengths, torch.ones_like(lengths)], dim=1)
        return keys, query * factor


class DenseReader(Reader):
    """Softmax over every space-time position of the memory (STM unified, equations 1 and 2)."""

    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if query.is_cuda:
            # Its fused kernels ask for four dimensions. On CPU they ask for CV = CK too, and else hold the matrix.
            heads = query[:, None], keys.transpose(1, 2)[:, None], rows[:, None]
            return F.scaled_dot_product_attention(*heads, scale=1.0)[:, 0]
        return torch.cat([(part @ keys).softmax(dim=2) @ rows for part in _chunks(query, keys)], dim=1)


class TopKReader(Reader):
    """Softmax over the k best memory positions of each query position (MiVOS, section 3.2).

    Args:
        k: positions kept; with fewer in memory all are used.
        scale, similarity: as in the module's docstring.

    Raises:
        UserError: for k below 1.
    """

    def __init__(self, k: int, scale: Scale = "sqrt", similarity: Similarity = "dot"):
        super().__init__(scale, similarity)
        if k < 1:
            raise UserError(f"top-k reader: k must be at least 1, found {k}")
        self.k = k

    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        read = []
        for part in _chunks(query, keys):
            best, positions = (part @ keys).topk(min(self.k, keys.shape[2]), dim=2)
            read.append(_weighted_rows(rows, positions, best.softmax(dim=2)))
        return torch.cat(read, dim=1)


class KernelReader(Reader):
    """Kernelized read: a memory position counts most where it matches best (KMN, section 3; SKN, equations 8 to 11).

    Each memory position looks for its best query position m; its weight for a query position q is multiplied by
    the Gaussian `exp(-|q - m|^2 / (2 sigma^2))`.

    Args:
        sigma: of the Gaussian, in cells of the map.
        top_k: keep only the k largest products for each query position, as MiVOS does; None keeps all.
        argmax_on: seek m on the raw "affinity" (KMN's author), or on the softmaxed "weights" (SKN, equation 8).
        renormalise: make the weights of each query position sum to 1 again (KMN's author), or leave the products
            as they are (SKN, equation 10 to the letter).
        scale, similarity: as in the module's docstring.

    Raises:
        UserError: for a sigma that is not positive, `top_k` below 1, or an unknown `argmax_on`.
    """

    def __init__(
        self,
        sigma: float,
        top_k: int | None = None,
        argmax_on: Literal["affinity", "weights"] = "affinity",
        renormalise: bool = True,
        scale: Scale = "sqrt",
        similarity: Similarity = "dot",
    ):
        super().__init__(scale, similarity)
        if not sigma > 0:
            raise UserError(f"kernel reader: sigma must be above 0, found {sigma}")
        if top_k is not None and top_k < 1:
            raise UserError(f"kernel reader: top_k must be at least 1 or None, found {top_k}")
        if argmax_on not in ("affinity", "weights"):
            raise UserError(f"kernel reader: unknown argmax_on {argmax_on!r}; valid: affinity, weights")
        self.sigma = sigma
        self.top_k = top_k
        self.argmax_on = argmax_on
        self.renormalise = renormalise

    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        cells = _cells(size, query)
        centres = cells[self.best_matches(keys, query)]
        read = []
        first = 0
        for part in _chunks(query, keys):
            places = cells[first : first + part.shape[1]]
            read.append(self._weigh(part @ keys, self._log_kernel(places, centres), rows))
            first += part.shape[1]
        return torch.cat(read, dim=1)

    @torch.no_grad()
    def best_matches(self, keys: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """`(B, N)` index of the query position that each memory position matches best; the first one of equals."""
        best = positions = None
        first = 0
        for part in _chunks(query, keys):
            affinity = part @ keys
            found, where = (affinity.softmax(dim=2) if self.argmax_on == "weights" else affinity).max(dim=1)
            if best is None:
                best, positions = found, where
            else:
                positions = torch.where(found > best, where + first, positions)
                best = torch.maximum(best, found)
            first += part.shape[1]
        return positions

    def _log_kernel(self, places: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
        """Logarithm of the Gaussian: places `(m, 2)`, centres `(B, N, 2)` -> `(B, m, N)`."""
        rows = (places[None, :, None, 0] - centres[:, None, :, 0]).square()
        columns = (places[None, :, None, 1] - centres[:, None, :, 1]).square()
        return -(rows + columns) / (2 * self.sigma**2)

    def _weigh(self, affinity: torch.Tensor, log_kernel: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if self.renormalise:
            # exp(a) g, normalised: the softmax of a + log g, which cannot vanish far from all centres.
            product = affinity + log_kernel
            if self.top_k is None:
                return product.softmax(dim=2).to(rows.dtype) @ rows
            best, positions = product.topk(min(self.top_k, product.shape[2]), dim=2)
            return _weighted_rows(rows, positions, best.softmax(dim=2))
        weights = affinity.softmax(dim=2) * log_kernel.exp()
        if self.top_k is None:
            return weights.to(rows.dtype) @ rows
        best, positions = weights.topk(min(self.top_k, weights.shape[2]), dim=2)
        return _weighted_rows(rows, positions, best)


def _check(memory_key: torch.Tensor, memory_value: torch.Tensor, query_key: torch.Tensor) -> None:
    """Refuse tensors that do not belong together."""
    shapes = [tuple(t.shape) for t in (memory_key, memory_value, query_key)]
    key, value, query = shapes
    if (
        [len(shape) for shape in shapes] != [5, 5, 4]
        or key[:2] + key[3:] != query
        or (value[0], *value[2:]) != (key[0], *key[2:])
        or 0 in key
    ):
        raise UserError(
            "a reader expects memory_key (B, CK, T, H, W), memory_value (B, CV, T, H, W) and query_key "
            f"(B, CK, H, W) with at least one frame, found {key}, {value} and {query}"
        )
    if len({t.device for t in (memory_key, memory_value, query_key)}) > 1:
        raise UserError(
            "a reader expects all tensors on one device, "
            f"found {memory_key.device}, {memory_value.device} and {query_key.device}"
        )


def _chunks(query: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split `(B, M, C)` along M so that a chunk's affinities to keys `(B, C, N)` stay within the bound."""
    return query.split(max(1, _CHUNK // (keys.shape[0] * keys.shape[2])), dim=1)


def _cells(size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """`(H·W, 2)` row and column of every cell, in no less than float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    axes = [torch.arange(n, dtype=dtype, device=like.device) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def _weighted_rows(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of chosen rows: rows `(B, N, CV)`, positions and weights `(B, m, k)` -> `(B, m, CV)`."""
    batch, memory = rows.shape[:2]
    offsets = torch.arange(batch, device=rows.device)[:, None, None] * memory
    chosen = (positions + offsets).flatten(0, 1)
    summed = F.embedding_bag(
        chosen, rows.flatten(0, 1), per_sample_weights=weights.flatten(0, 1).to(rows.dtype), mode="sum"
    )
    return summed.unflatten(0, (batch, -1))
