"""Encoders: frames, and frames with masks, to feature maps, keys and values."""

from __future__ import annotations

import timm
import torch
from torch import nn

from vosforge.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A timm backbone cut to a few feature levels, fed with RGB and any number of further planes.

    RGB is normalised inside with ImageNet's mean and standard deviation; further planes (masks, scribbles)
    are not (as in the published STM).

    Args:
        backbone: any timm name that offers `features_only`.
        strides: the levels' strides, fine to coarse: (4, 8, 16) in the papers.
        planes: input planes beside RGB.
        pretrained: take timm's weights from its hub.

    Raises:
        UserError: for an unknown backbone, or one that has no level at one of the strides.
    """

    def __init__(self, backbone: str, strides: tuple[int, ...], planes: int = 0, pretrained: bool = False):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.body = _features(backbone, strides, 3 + planes, pretrained)
        self.channels: list[int] = self.body.feature_info.channels()

    def forward(self, frames: torch.Tensor, *planes: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps, fine to coarse.

        Args:
            frames: `(B, 3, H, W)` in [0, 1], H and W multiples of the last stride.
            planes: each `(B, 1, H, W)` in [0, 1].

        Returns:
            A map `(B, C_i, H / stride_i, W / stride_i)` a level.
        """
        return self.body(torch.cat([(frames - self.mean) / self.std, *planes], dim=1))


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions: the key for addressing, the value for content (STM unified, 2.1)."""

    def __init__(self, channels: int, key_channels: int, value_channels: int):
        super().__init__()
        self.key = nn.Conv2d(channels, key_channels, 3, padding=1)
        self.value = nn.Conv2d(channels, value_channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, C, h, w)` -> key `(B, CK, h, w)`, value `(B, CV, h, w)`."""
        return self.key(features), self.value(features)


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep batch norm's statistics and affine parameters as they are, also in training mode."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()
            child.requires_grad_(False)


def _features(backbone: str, strides: tuple[int, ...], channels: int, pretrained: bool) -> nn.Module:
    try:
        probe = timm.create_model(backbone, features_only=True)
    except (RuntimeError, ValueError) as error:
        near = ", ".join(timm.list_models(f"*{backbone.split('_')[0][:6]}*")[:8]) or "see timm.list_models()"
        raise UserError(f"backbone {backbone!r} is no timm model with feature maps; near names: {near}") from error
    reductions = probe.feature_info.reduction()
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise UserError(f"backbone {backbone!r} has feature maps at strides {reductions}, but strides={strides} asked")
    levels = tuple(reductions.index(stride) for stride in strides)
    return timm.create_model(backbone, features_only=True, out_indices=levels, in_chans=channels, pretrained=pretrained)
