"""The feature extractor of CFBI+: DeepLabV3+ on a dilated backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.networks.context import ASPP, Norm, ObjectContext
from vosforge.networks.encoders import Encoder, keep_frozen


class DeepLab(nn.Module):
    """DeepLabV3+ (Chen et al. 2018) with output stride 16.

    Args:
        backbone: timm name; its last stage is dilated instead of strided, by 2, 4 and 8 (multi-grid) in a ResNet.
        channels: of its outputs.
        dilations: of the pyramid.
        pretrained: as in `Encoder`.
        frozen: keep all batch norm as it is.
        object_context: on the pyramid's output (CAMN 2.2, which applies it at stride 16 alone).
        norm: of the pyramid; batch norm of its pooled branch learns nothing from a batch of one.
    """

    def __init__(
        self,
        backbone: str,
        channels: int,
        dilations: tuple[int, ...],
        pretrained: bool | str = False,
        frozen: bool = True,
        object_context: bool = False,
        norm: Norm = "batch",
    ):
        super().__init__()
        self.frozen = frozen
        self.encoder = Encoder(backbone, (4, 8, 16), pretrained=pretrained, frozen=frozen, dilated=True)
        fine, self.middle_channels, coarse = self.encoder.channels
        self.low_level_channels = fine
        self.context = ObjectContext(channels) if object_context else nn.Identity()
        shortcut = 48
        self.pyramid = ASPP(coarse, channels, dilations, norm)
        self.shortcut = nn.Sequential(nn.Conv2d(fine, shortcut, 1, bias=False), nn.BatchNorm2d(shortcut), nn.ReLU())
        self.decoder = nn.Sequential(*_convs(channels + shortcut, channels), *_convs(channels, channels))
        self.train()

    def train(self, mode: bool = True) -> DeepLab:
        """Training mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            keep_frozen(self)
        return self

    def forward(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames `(B, 3, H, W)`, H and W of the form 16k + 1.

        Returns:
            The decoder's map at 1/4, the backbone's at 1/4 and 1/8, the pyramid's at 1/16.
        """
        low, middle, last = self.encoder(frames)
        coarse = self.context(self.pyramid(last))
        enlarged = F.interpolate(coarse, size=low.shape[-2:], mode="bilinear", align_corners=True)
        return self.decoder(torch.cat([enlarged, self.shortcut(low)], dim=1)), low, middle, coarse


def _convs(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(channels_out), nn.ReLU()
