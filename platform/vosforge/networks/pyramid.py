"""Paths between the levels of an encoder: top-down (FPN), and bottom-up after it (PAN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.networks.context import normed

Path = Literal["none", "fpn", "pan"]


class FeaturePyramid(nn.Module):
    """Levels of one width, with group norm, that saw each other along the path.

    Args:
        channels_in: of the levels, fine to coarse, each half the size of the one before.
        channels: of the outputs.
        path: "none" brings the levels to one width alone; "fpn" adds coarse ones to finer ones (Lin et al. 2017,
            CFBI+); "pan" then also fine ones to coarser ones, by strided convolutions (Liu et al. 2018, section 3.1,
            which CAMN 2.2 describes).
        align_corners: how levels are enlarged; True for sides of the form 2n + 1.
    """

    def __init__(self, channels_in: Sequence[int], channels: int, path: Path = "fpn", align_corners: bool = True):
        super().__init__()
        self.path = path
        self.align_corners = align_corners
        self.lateral = nn.ModuleList(normed(width, channels, 1) for width in channels_in)
        self.smooth = nn.ModuleList(normed(channels, channels, 3) for _ in channels_in[1:])
        if path == "pan":
            self.down = nn.ModuleList(normed(channels, channels, 3, stride=2) for _ in channels_in[1:])
            self.merge = nn.ModuleList(normed(channels, channels, 3) for _ in channels_in[1:])

    def forward(self, *levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(B, C_i, h_i, w_i)`, fine to coarse -> `(B, C, h_i, w_i)`, not negative."""
        own = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        if self.path != "none":
            for i in reversed(range(len(own) - 1)):
                size = own[i].shape[-2:]
                above = F.interpolate(own[i + 1], size=size, mode="bilinear", align_corners=self.align_corners)
                own[i] = own[i] + above
        found = [F.relu(smooth(x)) for smooth, x in zip(self.smooth, own, strict=False)] + [F.relu(own[-1])]
        if self.path == "pan":
            for i, (down, merge) in enumerate(zip(self.down, self.merge, strict=True)):
                found[i + 1] = F.relu(merge(found[i + 1] + F.relu(down(found[i]))))
        return tuple(found)


class PyramidBranch(nn.Module):
    """A feature pyramid beside the levels: each keeps its width, and what the path brings is added to it.

    It starts as if it were not there.

    Args:
        channels: of the levels, fine to coarse.
        width: of the pyramid.
        path: "fpn" or "pan".
    """

    def __init__(self, channels: Sequence[int], width: int, path: Path):
        super().__init__()
        self.pyramid = FeaturePyramid(channels, width, path, align_corners=False)
        self.widen = nn.ModuleList(nn.Conv2d(width, own, 1) for own in channels)
        for widen in self.widen:
            nn.init.zeros_(widen.weight)
            nn.init.zeros_(widen.bias)

    def forward(self, *levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(B, C_i, h_i, w_i)`, fine to coarse -> the same shapes."""
        paths = zip(levels, self.widen, self.pyramid(*levels), strict=True)
        return tuple(x + widen(path) for x, widen, path in paths)
