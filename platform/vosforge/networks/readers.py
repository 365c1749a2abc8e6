"""Space-time memory reads: pure functions of tensors.

Every reader is called as `reader(memory_key, memory_value, query_key)` with

* `memory_key` `(B, CK, T, H, W)`, `memory_value` `(B, CV, T, H, W)`: T remembered frames,
* `query_key` `(B, CK, H, W)`: the frame to segment,

and returns the read alone, `(B, CV, H, W)`. The affinity of two keys is their dot product, or with
`similarity="l2"` their negative squared distance, divided by sqrt(CK), as all public code does (the papers leave the
divisor out); `scale=None` gives the papers' literal form.

Query positions are read in chunks of bounded size, so that without gradients the `(T·H·W) x (H·W)` matrix of affinities
is never held whole; with gradients its weights are kept for the backward pass.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.errors import UserError

Similarity = Literal["dot", "l2"]
Scale = Literal["sqrt"] | None
# Affinities held at a time: 16 MiB in float32, which also keeps a chunk in a CPU's cache hierarchy.
_CHUNK = 2**22


class Grid(NamedTuple):
    """The query's cells: `height` x `width`, and a prior `(B, M)` of where matches are sought, if any."""

    height: int
    width: int
    prior: torch.Tensor | None = None


class Reader(nn.Module):
    """What all readers share: the affinity of keys, and reading in chunks of query positions."""

    def __init__(self, scale: Scale = "sqrt", similarity: Similarity = "dot"):
        super().__init__()
        if scale not in ("sqrt", None):
            raise UserError(f"reader: unknown scale {scale!r}; valid: sqrt, None")
        if similarity not in ("dot", "l2"):
            raise UserError(f"reader: unknown similarity {similarity!r}; valid: dot, l2")
        self.scale = scale
        self.similarity = similarity

    def forward(self, memory_key: torch.Tensor, memory_value: torch.Tensor, query_key: torch.Tensor) -> torch.Tensor:
        """Read `(B, CV, H, W)`; shapes as in the module's docstring.

        Raises:
            UserError: for tensors of other shapes, naming what was expected and found.
        """
        return self._read_map(memory_key, memory_value, query_key)

    def _read_map(
        self,
        memory_key: torch.Tensor,
        memory_value: torch.Tensor,
        query_key: torch.Tensor,
        prior: torch.Tensor | None = None,
    ) -> torch.Tensor:
        _check(memory_key, memory_value, query_key)
        if self._exact() and memory_key.dtype.itemsize < 4:
            # Distances and best matches do not survive the rounding of half precision.
            with torch.autocast(memory_key.device.type, enabled=False):
                wide = (tensor.float() for tensor in (memory_key, memory_value, query_key))
                return self._read_map(*wide, prior).to(memory_value.dtype)
        keys, query = self._comparable(memory_key.flatten(2), query_key.flatten(2).transpose(1, 2))
        rows = memory_value.flatten(2).transpose(1, 2)
        grid = Grid(query_key.shape[-2], query_key.shape[-1], None if prior is None else prior.flatten(1))
        return self._read(keys, rows, query, grid).transpose(1, 2).unflatten(2, query_key.shape[-2:])

    def _exact(self) -> bool:
        """Whether affinities need full precision."""
        return self.similarity == "l2"

    @abstractmethod
    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, grid: Grid) -> torch.Tensor:
        """keys `(B, C, N)`, values as rows `(B, N, CV)`, query `(B, M, C)`, M = H·W of the grid -> `(B, M, CV)`.

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

    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, grid: Grid) -> torch.Tensor:
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
        if type(k) is not int or k < 1:
            raise UserError(f"top-k reader: k must be a whole number of at least 1, found {k!r}")
        self.k = k

    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, grid: Grid) -> torch.Tensor:
        read, rows = [], rows.contiguous()
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
        if not isinstance(sigma, (int, float)) or not 0 < sigma < math.inf:
            raise UserError(f"kernel reader: sigma must be a number above 0, found {sigma!r}")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise UserError(f"kernel reader: top_k must be a whole number of at least 1 or None, found {top_k!r}")
        if argmax_on not in ("affinity", "weights"):
            raise UserError(f"kernel reader: unknown argmax_on {argmax_on!r}; valid: affinity, weights")
        self.sigma = sigma
        self.top_k = top_k
        self.argmax_on = argmax_on
        self.renormalise = renormalise

    def _exact(self) -> bool:
        return True

    def _read(self, keys: torch.Tensor, rows: torch.Tensor, query: torch.Tensor, grid: Grid) -> torch.Tensor:
        rows = rows if self.top_k is None else rows.contiguous()
        cells = _cells(grid.height, grid.width, query)
        centres = cells[self.best_matches(keys, query, grid.prior)]
        read = []
        first = 0
        for part in _chunks(query, keys):
            places = cells[first : first + part.shape[1]]
            read.append(self._weigh(part @ keys, self._log_kernel(places, centres), rows))
            first += part.shape[1]
        return torch.cat(read, dim=1)

    @torch.no_grad()
    def best_matches(self, keys: torch.Tensor, query: torch.Tensor, prior: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, N)` index of the query position that each memory position matches best; the first one of equals.

        With a prior `(B, M)` of the query positions what is compared is multiplied by it: weights as they are,
        affinities by their exponentials.
        """
        best = positions = None
        first = 0
        for part in _chunks(query, keys):
            affinity = part @ keys
            compared = affinity.softmax(dim=2) if self.argmax_on == "weights" else affinity
            if prior is not None:
                likely = prior[:, first : first + part.shape[1], None]
                compared = compared * likely if self.argmax_on == "weights" else compared + likely.log()
            found, where = compared.max(dim=1)
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


class SpatialReader(KernelReader):
    """Kernelized read with a spatial constraint: the best match is sought where the object last was (SKN, 2.2).

    The defaults are equations 4 to 11 to the letter, but for the divisor of affinities (`scale`), the width of g, which
    the paper does not give, and the least deviation of the spatial kernel.

    Args:
        sigma: of the Gaussian g around the best match, in cells (equation 9).
        top_k, argmax_on, renormalise, scale, similarity: as in `KernelReader`.
        floor: least deviation of the spatial kernel, in cells: that of a single cell would be 0.
    """

    def __init__(
        self,
        sigma: float = 7.0,
        top_k: int | None = None,
        argmax_on: Literal["affinity", "weights"] = "weights",
        renormalise: bool = False,
        scale: Scale = "sqrt",
        similarity: Similarity = "dot",
        floor: float = 0.5,
    ):
        super().__init__(sigma, top_k, argmax_on, renormalise, scale, similarity)
        if not isinstance(floor, (int, float)) or not 0 < floor < math.inf:
            raise UserError(f"spatial reader: floor must be a number above 0, found {floor!r}")
        self.floor = floor

    def forward(
        self,
        memory_key: torch.Tensor,
        memory_value: torch.Tensor,
        query_key: torch.Tensor,
        previous: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Read `(B, CV, H, W)`.

        Args:
            memory_key, memory_value, query_key: as in the module's docstring.
            previous: `(B, H, W)` the object's mask in the frame before, in [0, 1]; None constrains nothing.

        Raises:
            UserError: for tensors of other shapes.
        """
        if previous is None:
            return self._read_map(memory_key, memory_value, query_key)
        expected = (query_key.shape[0], *query_key.shape[-2:])
        if tuple(previous.shape) != expected:
            raise UserError(f"previous masks must be (B, H, W) = {expected}, found {tuple(previous.shape)}")
        return self._read_map(memory_key, memory_value, query_key, spatial_kernel(previous, self.floor))


def spatial_kernel(masks: torch.Tensor, floor: float = 0.5) -> torch.Tensor:
    """The spatial-constraint kernel SCK (SKN, equations 4 to 6).

    Its centre is the median, row and column apart, of the cells above one half; its deviation is theirs from it.

    Args:
        masks: `(B, H, W)` in [0, 1].
        floor: least deviation, in cells.

    Returns:
        `(B, H, W)` in (0, 1]; 1 everywhere for an empty mask.
    """
    inside = masks > 0.5
    number = inside.sum(dim=(1, 2))
    cells = _cells(masks.shape[-2], masks.shape[-1], masks).unflatten(0, masks.shape[-2:])
    centre = torch.stack([_median(inside.sum(dim=2)), _median(inside.sum(dim=1))], dim=-1).to(cells.dtype)
    squares = (cells[None] - centre[:, None, None]).square().sum(dim=3)
    variance = (squares * inside).sum(dim=(1, 2)) / number.clamp(min=1)
    kernel = torch.exp(-squares / (2 * variance.clamp(min=floor**2))[:, None, None])
    # Far from a small object the Gaussian underflows, and a match there would have no logarithm.
    kernel = kernel.clamp(min=torch.finfo(kernel.dtype).tiny)
    return torch.where(number[:, None, None] > 0, kernel, 1.0)


def _median(counts: torch.Tensor) -> torch.Tensor:
    """Median of coordinates of which `(B, n)` says how often each occurs; the mean of the middle two."""
    total, reached = counts.sum(dim=1, keepdim=True), counts.cumsum(dim=1)
    lower, upper = ((reached <= (total - 1 + i) // 2).sum(dim=1) for i in (0, 1))
    return (lower + upper) / 2


def _check(memory_key: torch.Tensor, memory_value: torch.Tensor, query_key: torch.Tensor) -> None:
    """Refuse tensors that do not belong together."""
    if not all(isinstance(t, torch.Tensor) and t.is_floating_point() for t in (memory_key, memory_value, query_key)):
        raise UserError("a reader expects three tensors of floats")
    if len({t.dtype for t in (memory_key, memory_value, query_key)}) > 1:
        found = f"{memory_key.dtype}, {memory_value.dtype} and {query_key.dtype}"
        raise UserError(f"a reader expects all tensors in one precision, found {found}")
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


def _cells(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """`(H·W, 2)` row and column of every cell, in no less than float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    axes = [torch.arange(n, dtype=dtype, device=like.device) for n in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def _weighted_rows(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of chosen rows: rows `(B, N, CV)`, positions and weights `(B, m, k)` -> `(B, m, CV)`."""
    batch, memory = rows.shape[:2]
    if torch.compiler.is_exporting():
        # ONNX has no such bag, but a loop over its rows, many times slower; this holds no more than the affinities.
        sparse = weights.new_zeros(*weights.shape[:2], memory).scatter(2, positions, weights)
        return sparse.to(rows.dtype) @ rows
    offsets = torch.arange(batch, device=rows.device)[:, None, None] * memory
    chosen = (positions + offsets).flatten(0, 1)
    summed = F.embedding_bag(
        chosen, rows.flatten(0, 1), per_sample_weights=weights.flatten(0, 1).to(rows.dtype), mode="sum"
    )
    return summed.unflatten(0, (batch, -1))
