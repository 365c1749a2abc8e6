"""Context: seeing a position's wide surroundings before it is decoded."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

Norm = Literal["none", "batch", "group"]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel dilated convolutions, and their merge.

    The variants of public code are its arguments: SKN's baseline has dilations (1, 2, 4, 8), no norm, no pooling
    and dropout 0.5; DeepLab, and QPM's later code, have (1, 6, 12, 18), batch norm, pooling and dropout 0.1.

    Args:
        channels_in: of the map.
        channels_out: of the output.
        dilations: one branch each; 1 is a 1x1 convolution, the others are 3x3.
        norm: after every convolution. Convolutions carry no bias.
        pooling: with a branch that averages the whole map.
        dropout: share of the output's values dropped in training.
        width: channels of every branch; `channels_out` by default.

    Source: DeepLabV3 (Chen et al. 2017), section 3.3; EMN 2.2; SKN's table of ablations.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        dilations: tuple[int, ...] = (1, 6, 12, 18),
        norm: Norm = "batch",
        pooling: bool = True,
        dropout: float = 0.1,
        width: int | None = None,
    ):
        super().__init__()
        width = width or channels_out
        self.branches = nn.ModuleList(_branch(channels_in, width, dilation, norm) for dilation in dilations)
        self.pooled = _branch(channels_in, width, 1, norm) if pooling else None
        self.merge = _branch((len(dilations) + pooling) * width, channels_out, 1, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C_in, h, w)` -> `(B, C_out, h, w)`, not negative."""
        branches = [branch(x) for branch in self.branches]
        if self.pooled is not None:
            # Spread over the map before the norm, which in training needs more than one value a channel.
            branches.append(self.pooled(x.mean(dim=(2, 3), keepdim=True).expand_as(x)))
        return self.dropout(self.merge(torch.cat(branches, dim=1)))


def _branch(channels_in: int, channels_out: int, dilation: int, norm: Norm) -> nn.Sequential:
    kernel = 1 if dilation == 1 else 3
    padding = 0 if dilation == 1 else dilation
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=padding, dilation=dilation, bias=False)
    norms = {
        "none": nn.Identity,
        "batch": lambda: nn.BatchNorm2d(channels_out),
        "group": lambda: nn.GroupNorm(_groups(channels_out), channels_out),
    }
    return nn.Sequential(conv, norms[norm](), nn.ReLU())


def _groups(channels: int) -> int:
    """Groups of about eight channels: norms of single ones would take the pooled branch, a constant, out again."""
    return math.gcd(max(1, channels // 8), channels)
