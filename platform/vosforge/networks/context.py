"""Context: seeing a position's wide surroundings before it is decoded."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
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


class ObjectContext(nn.Module):
    """Every position gathers those that look like it, which tend to be of its object (OCNet's base form; CAMN 2.2).

    Self-attention whose key is its query; the context's projection starts at zero.

    Args:
        channels: of the map and of the output; keys and values have half as many.
        dropout: share of the output's values dropped in training.

    Source: OCNet (Yuan et al. 2018), section 3, and its published block.
    """

    def __init__(self, channels: int, dropout: float = 0.05):
        super().__init__()
        width = channels // 2
        self.key = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), group_norm(width), nn.ReLU())
        self.value = nn.Conv2d(channels, width, 1)
        self.project = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.merge = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), group_norm(channels), nn.ReLU())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, h, w)` -> `(B, C, h, w)`, not negative."""
        key, value = (y.flatten(2).transpose(1, 2)[:, None] for y in (self.key(x), self.value(x)))
        context = F.scaled_dot_product_attention(key, key, value)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return self.dropout(self.merge(torch.cat([self.project(context), x], dim=1)))


class FeaturePyramidAttention(nn.Module):
    """A pyramid of three scales says where each channel matters (FPA; CAMN, introduction).

    Args:
        channels: of the map and of the output; the pyramid has a quarter, at least two.

    Source: Pyramid Attention Network (Li et al. 2018), section 3.1; group norm, and bilinear steps for maps of any
    size.
    """

    def __init__(self, channels: int):
        super().__init__()
        width = max(2, channels // 4)
        kernels = (7, 5, 3)
        self.master = normed(channels, channels, 1)
        self.pooled = nn.Conv2d(channels, channels, 1)
        self.down = nn.ModuleList(
            nn.Sequential(normed(channels if i == 0 else width, width, kernel, stride=2), nn.ReLU())
            for i, kernel in enumerate(kernels)
        )
        self.same = nn.ModuleList(normed(width, width, kernel) for kernel in kernels)
        self.up = nn.ModuleList(normed(width, width, 1) for _ in kernels[1:])
        self.attention = normed(width, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, h, w)` -> `(B, C, h, w)`, not negative."""
        levels, y = [], x
        for down, same in zip(self.down, self.same, strict=True):
            y = down(y)
            levels.append(same(y))
        merged = levels.pop()
        for up, level in zip(reversed(self.up), reversed(levels), strict=True):
            merged = F.relu(level + F.relu(up(_resized(merged, level))))
        attention = F.relu(self.attention(_resized(merged, x)))
        return F.relu(self.master(x) * attention + self.pooled(x.mean(dim=(2, 3), keepdim=True)))


def _resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def normed(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the map's size, or divides it by the stride, and group norm."""
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, group_norm(channels_out))


def group_norm(channels: int, groups: int = 32) -> nn.GroupNorm:
    """Group norm in 32 groups, or as many as leave at least two channels to each."""
    while groups > 1 and (channels % groups or channels // groups < 2):
        groups -= 1
    return nn.GroupNorm(groups, channels)


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
