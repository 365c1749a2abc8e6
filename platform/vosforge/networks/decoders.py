"""Decoders: from the memory read to one foreground logit a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    """Pre-activation residual block without normalisation; a 3x3 convolution on the skip if channels change."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C_in, h, w)` -> `(B, C_out, h, w)`."""
        return self.skip(x) + self.conv2(F.relu(self.conv1(F.relu(x))))


class Refine(nn.Module):
    """Merges a coarse map, enlarged twofold, with the query's features of the next finer level."""

    def __init__(self, skip_channels: int, channels: int):
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, channels, 3, padding=1)
        self.skip_block = ResidualBlock(channels, channels)
        self.merge_block = ResidualBlock(channels, channels)

    def skip(self, features: torch.Tensor) -> torch.Tensor:
        """The part that does not depend on the object: `(B, C_skip, h, w)` -> `(B, C, h, w)`."""
        return self.skip_block(self.skip_conv(features))

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """coarse `(B·K, C, h/2, w/2)`, skip `(B·K, C, h, w)` -> `(B·K, C, h, w)`."""
        enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return self.merge_block(skip + enlarged)


class RefineDecoder(nn.Module):
    """STM's decoder (STM unified, 2.3): a residual block, refinements level by level, a two-class prediction.

    Args:
        read_channels: channels of the coarse input, `[read, query value]`.
        skip_channels: channels of the query's finer levels, fine to coarse; each level doubles the size.
        channels: width of the decoder, 256 in the paper.
        stride: stride of the finest level, by which the prediction is enlarged.
    """

    def __init__(self, read_channels: int, skip_channels: Sequence[int], channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.compress = nn.Conv2d(read_channels, channels, 3, padding=1)
        self.compress_block = ResidualBlock(channels, channels)
        self.refine = nn.ModuleList(Refine(skip, channels) for skip in skip_channels)
        self.predict = nn.Conv2d(channels, 2, 3, padding=1)

    def forward(self, read: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Foreground logits of each object.

        Args:
            read: `(B, K, C, h, w)`, `[read, query value]` of each object at the coarsest level.
            skips: the query's finer features, fine to coarse, the last `(B, C', 2h, 2w)`. They are shared by the
                K objects, so their convolutions run once.

        Returns:
            `(B, K, H, W)`: the difference of the two classes' logits, so that its sigmoid is the foreground
            probability of the published two-class softmax.
        """
        objects = read.shape[1]
        x = self.compress_block(self.compress(read.flatten(0, 1)))
        for refine, skip in zip(reversed(self.refine), reversed(skips), strict=True):
            x = refine(x, refine.skip(skip).repeat_interleave(objects, dim=0))
        classes = self.predict(F.relu(x))
        classes = F.interpolate(classes, scale_factor=self.stride, mode="bilinear", align_corners=False)
        return (classes[:, 1] - classes[:, 0]).unflatten(0, (-1, objects))
