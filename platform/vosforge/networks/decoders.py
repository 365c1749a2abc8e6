"""Decoders: from the memory read to one foreground logit a pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Form = Literal["stm", "mivos", "stcn"]


class ResidualBlock(nn.Module):
    """Pre-activation residual block without normalisation; a 3x3 convolution on the skip if channels change.

    Args:
        channels_in, channels_out: of the map.
        rectified: carry relu(x) past the convolutions rather than x, as code does whose ReLU works in place.
    """

    def __init__(self, channels_in: int, channels_out: int, rectified: bool = False):
        super().__init__()
        self.rectified = rectified
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C_in, h, w)` -> `(B, C_out, h, w)`."""
        active = F.relu(x)
        return self.skip(active if self.rectified else x) + self.conv2(F.relu(self.conv1(active)))


class Refine(nn.Module):
    """Merges a coarse map, enlarged twofold, with the query's features of the next finer level.

    Args:
        skip_channels: of the query's features.
        channels_in: of the coarse map, and of the merge.
        channels_out: of the result.
        skip_block: with a residual block on the features.
        rectified: as in `ResidualBlock`.
    """

    def __init__(
        self, skip_channels: int, channels_in: int, channels_out: int, skip_block: bool = True, rectified: bool = False
    ):
        super().__init__()
        self.skip_conv = nn.Conv2d(skip_channels, channels_in, 3, padding=1)
        self.skip_block = ResidualBlock(channels_in, channels_in, rectified) if skip_block else nn.Identity()
        self.merge_block = ResidualBlock(channels_in, channels_out, rectified)

    def skip(self, features: torch.Tensor) -> torch.Tensor:
        """The part that does not depend on the object: `(B, C_skip, h, w)` -> `(B, C_in, h, w)`."""
        return self.skip_block(self.skip_conv(features))

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """coarse `(B·K, C_in, h/2, w/2)`, skip `(B·K, C_in, h, w)` -> `(B·K, C_out, h, w)`."""
        enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        return self.merge_block(skip + enlarged)


class RefineDecoder(nn.Module):
    """Refinement level by level (STM unified, 2.3), in the three forms of public code.

    * "stm": a convolution and a residual block, refinements of one width, two classes.
    * "mivos": a residual block of twice the width, which the first refinement halves, one class.
    * "stcn": as "mivos", with a plain convolution on the query's features.

    Args:
        read_channels: channels of the coarse input, `[read, query value]`.
        skip_channels: channels of the query's finer levels, fine to coarse; each level doubles the size.
        channels: width of the decoder, 256 in the papers.
        stride: stride of the finest level, by which the prediction is enlarged.
        form: one of the three.
        rectified: as in `ResidualBlock`.
        context: makes the module, if any, that follows the first block, from its channels in and out.
    """

    def __init__(
        self,
        read_channels: int,
        skip_channels: Sequence[int],
        channels: int,
        stride: int,
        form: Form = "stm",
        rectified: bool = False,
        context: Callable[[int, int], nn.Module] | None = None,
    ):
        super().__init__()
        self.stride = stride
        wide = channels if form == "stm" else 2 * channels
        if form == "stm":
            entry = nn.Conv2d(read_channels, wide, 3, padding=1), ResidualBlock(wide, wide, rectified)
            self.compress = nn.Sequential(*entry)
        else:
            self.compress = ResidualBlock(read_channels, wide, rectified)
        self.context = nn.Identity() if context is None else context(wide, wide)
        widths = [*[channels] * (len(skip_channels) - 1), wide] if skip_channels else []
        self.refine = nn.ModuleList(
            Refine(skip, width, channels, form != "stcn", rectified)
            for skip, width in zip(skip_channels, widths, strict=True)
        )
        self.predict = nn.Conv2d(channels if skip_channels else wide, 2 if form == "stm" else 1, 3, padding=1)

    def forward(self, read: torch.Tensor, skips: Sequence[torch.Tensor]) -> torch.Tensor:
        """Foreground logits of each object.

        Args:
            read: `(B, K, C, h, w)`, `[read, query value]` of each object at the coarsest level.
            skips: the query's finer features, fine to coarse, the last `(B, C', 2h, 2w)`. They are shared by the
                K objects, so their convolutions run once.

        Returns:
            `(B, K, H, W)`. With two classes it is the difference of their logits, so that its sigmoid is the
            foreground probability of the published two-class softmax.
        """
        objects = read.shape[1]
        x = self.context(self.compress(read.flatten(0, 1)))
        for refine, skip in zip(reversed(self.refine), reversed(skips), strict=True):
            x = refine(x, refine.skip(skip).repeat_interleave(objects, dim=0))
        classes = self.predict(F.relu(x))
        classes = F.interpolate(classes, scale_factor=self.stride, mode="bilinear", align_corners=False)
        logits = classes[:, 1] - classes[:, 0] if classes.shape[1] == 2 else classes[:, 0]
        return logits.unflatten(0, (-1, objects))
