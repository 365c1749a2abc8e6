"""Space-time memory reads: pure functions of tensors.

Every reader is called as `reader(memory_key, memory_value, query_key)` with

* `memory_key` `(B, CK, T, H, W)`, `memory_value` `(B, CV, T, H, W)`: T remembered frames,
* `query_key` `(B, CK, H, W)`: the frame to segment,

and returns the read alone, `(B, CV, H, W)`. Affinities are dot products divided by sqrt(CK), as all public
code does (the papers leave the divisor out); `scale=None` gives the papers' literal form.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Scale = Literal["sqrt"] | None


class DenseReader(nn.Module):
    """Softmax over every space-time position of the memory (STM unified, equations 1 and 2)."""

    def __init__(self, scale: Scale = "sqrt"):
        super().__init__()
        self.scale = scale

    def forward(self, memory_key: torch.Tensor, memory_value: torch.Tensor, query_key: torch.Tensor) -> torch.Tensor:
        """Read `(B, CV, H, W)`; shapes as in the module's docstring.

        Computed by `scaled_dot_product_attention`, which never holds the `(T·H·W) x (H·W)` matrix when its
        kernel does not need it.
        """
        height, width = query_key.shape[-2:]
        read = F.scaled_dot_product_attention(
            query_key.flatten(2).transpose(1, 2),
            memory_key.flatten(2).transpose(1, 2),
            memory_value.flatten(2).transpose(1, 2),
            scale=_divisor(self.scale, query_key.shape[1]),
        )
        return read.transpose(1, 2).unflatten(2, (height, width))


class TopKReader(nn.Module):
    """Softmax over the k best memory positions of each query position (MiVOS, section 3.2)."""

    def __init__(self, k: int, scale: Scale = "sqrt"):
        super().__init__()
        self.k = k
        self.scale = scale

    def forward(self, memory_key: torch.Tensor, memory_value: torch.Tensor, query_key: torch.Tensor) -> torch.Tensor:
        """Read `(B, CV, H, W)`; shapes as in the module's docstring. Fewer than k positions: all are used."""
        height, width = query_key.shape[-2:]
        keys, values = memory_key.flatten(2), memory_value.flatten(2)
        affinity = keys.transpose(1, 2) @ query_key.flatten(2) * _divisor(self.scale, keys.shape[1])
        best, positions = affinity.topk(min(self.k, affinity.shape[1]), dim=1)
        weights = torch.zeros_like(affinity).scatter(1, positions, best.softmax(dim=1))
        return (values @ weights).unflatten(2, (height, width))


def _divisor(scale: Scale, channels: int) -> float:
    return 1 / math.sqrt(channels) if scale == "sqrt" else 1.0
