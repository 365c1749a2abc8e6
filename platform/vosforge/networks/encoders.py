"""Encoders: frames, and frames with masks, to feature maps, keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

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
        planes_at: "input" widens the first convolution; "stem" adds a 7x7 convolution of the planes to the stem's
            output, before its norm (the public ResNeSt form of STM).
        pretrained: take timm's weights from its hub, or weights from a file.
        frozen: keep batch norm's statistics and affine parameters as they are, also in training mode.
        dilated: reach stride 16 by dilating the last stage, in ResNets by 2, 4 and 8 (DeepLab's multi-grid).

    Raises:
        UserError: for an unknown backbone, one that has no level at one of the strides or no stem to add planes
            to, or a file of weights that does not fit.
    """

    def __init__(
        self,
        backbone: str,
        strides: tuple[int, ...],
        planes: int = 0,
        planes_at: Literal["input", "stem"] = "input",
        pretrained: bool | str = False,
        frozen: bool = False,
        dilated: bool = False,
    ):
        # timm takes seconds to import, which programs that build no network need not wait for.
        from vosforge.networks import backbones

        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.frozen = frozen
        widened = planes if planes_at == "input" else 0
        self.body = backbones.features(backbone, strides, 3 + widened, pretrained is True and not planes, dilated)
        self.channels: list[int] = self.body.feature_info.channels()
        if isinstance(pretrained, str) and not planes:
            backbones.load(self.body, pretrained)
        elif frozen and not pretrained:
            backbones.open_branches(self.body)
        if planes and planes_at == "stem":
            self.body.conv1 = backbones.StemWithPlanes(backbones.stem(self.body, backbone), planes)
        if planes and pretrained:
            # Published weights see RGB alone.
            self.start_from(Encoder(backbone, strides, pretrained=pretrained, dilated=dilated))
        self.train()

    def forward(self, frames: torch.Tensor, planes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Feature maps, fine to coarse.

        Args:
            frames: `(B, 3, H, W)` in [0, 1], H and W multiples of the last stride.
            planes: `(B, P, H, W)` in [0, 1].

        Returns:
            A map `(B, C_i, H / stride_i, W / stride_i)` a level.
        """
        normalised = (frames - self.mean) / self.std
        maps = self.body(normalised if planes is None else torch.cat([normalised, planes], dim=1))
        # Some transformers put channels last.
        levels = zip(maps, self.channels, strict=True)
        return [x if x.shape[1] == channels else x.permute(0, 3, 1, 2) for x, channels in levels]

    def train(self, mode: bool = True) -> Encoder:
        """Training mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            keep_frozen(self)
        return self

    @contextlib.contextmanager
    def fixed_statistics(self) -> Iterator[None]:
        """Normalise with the statistics gathered so far, as at test, and gather none."""
        gathering = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        for norm in gathering:
            norm.eval()
        try:
            yield
        finally:
            for norm in gathering:
                norm.train()

    @torch.no_grad()
    def start_from(self, other: Encoder) -> None:
        """Take the weights of an encoder of the same backbone that sees RGB alone; those of the planes stay."""
        own = self.body.state_dict()
        for name, weight in other.body.state_dict().items():
            wrapped = name.startswith("conv1.") and name not in own
            target = own[name.replace("conv1.", "conv1.rgb.", 1) if wrapped else name]
            (target if target.shape == weight.shape else target[:, : weight.shape[1]]).copy_(weight)


def keep_frozen(module: nn.Module) -> None:
    """Put all batch norm of a module into evaluation mode, without gradients."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval().requires_grad_(False)


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions: the key for addressing, the value for content (STM unified, 2.1)."""

    def __init__(self, channels: int, key_channels: int, value_channels: int):
        super().__init__()
        self.key = nn.Conv2d(channels, key_channels, 3, padding=1)
        self.value = nn.Conv2d(channels, value_channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, C, h, w)` -> key `(B, CK, h, w)`, value `(B, CV, h, w)`."""
        return self.key(features), self.value(features)
