"""The collaborative ensembler (CFBI+): matching, embeddings and instance-level attention become masks.

Source: CFBI+ (Yang, Wei, Yang), sections 3.4 and 3.5; numbers follow the published code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.networks.context import FeaturePyramidAttention, group_norm


class Gate(nn.Module):
    """Instance-level attention: a vector of each class weighs the channels of its maps by 0 to 2."""

    def __init__(self, attention: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(attention, channels)

    def forward(self, x: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """maps `(N, C, h, w)`, head `(N, A)` -> `(N, C, h, w)`."""
        return x * (1 + self.linear(head).tanh())[:, :, None, None]


class ChannelGate(nn.Module):
    """Gated channel transformation (Yang et al. 2020): channels compete by their norms."""

    def __init__(self, channels: int, epsilon: float = 1e-5):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C, h, w)` -> the same, gated."""
        size = (x.square().sum(dim=(2, 3), keepdim=True) + self.epsilon).sqrt() * self.alpha
        norm = self.gamma / (size.square().mean(dim=1, keepdim=True) + self.epsilon).sqrt()
        return x * (1 + (size * norm + self.beta).tanh())


class Bottleneck(nn.Module):
    """A residual bottleneck with group norm, whose input passes a channel gate."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        narrow = channels_out // 4
        self.gate = ChannelGate(channels_in)
        self.conv1 = nn.Conv2d(channels_in, narrow, 1, bias=False)
        self.norm1 = group_norm(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.norm2 = group_norm(narrow)
        self.conv3 = nn.Conv2d(narrow, channels_out, 1, bias=False)
        self.norm3 = group_norm(channels_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(conv, group_norm(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C_in, h, w)` -> `(N, C_out, h / stride, w / stride)`."""
        y = F.relu(self.norm1(self.conv1(self.gate(x))))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.skip(x) + self.norm3(self.conv3(y)))


class GatedASPP(nn.Module):
    """Atrous spatial pyramid with channel gates and group norm."""

    def __init__(self, channels_in: int, channels_out: int, dilations: tuple[int, ...] = (1, 6, 12, 18)):
        super().__init__()
        width = channels_in // 4
        self.branches = nn.ModuleList(
            nn.Sequential(
                ChannelGate(channels_in),
                nn.Conv2d(
                    channels_in,
                    width,
                    1 if dilation == 1 else 3,
                    padding=0 if dilation == 1 else dilation,
                    dilation=dilation,
                    bias=False,
                ),
                group_norm(width),
                nn.ReLU(),
            )
            for dilation in dilations
        )
        self.pooled = nn.Conv2d(channels_in, width, 1, bias=False)
        merged = (len(dilations) + 1) * width
        self.gate = ChannelGate(merged)
        self.merge = nn.Sequential(nn.Conv2d(merged, channels_out, 1, bias=False), group_norm(channels_out), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C_in, h, w)` -> `(N, C_out, h, w)`."""
        pooled = F.relu(self.pooled(x.mean(dim=(2, 3), keepdim=True))).expand(-1, -1, *x.shape[2:])
        return self.merge(self.gate(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1)))


class CollaborativeEnsembler(nn.Module):
    """Three stages that take the matching in at 1/4, 1/8 and 1/16, a pyramid, and a decoder with dynamic classifiers.

    Args:
        channels_in: of the maps at 1/4, 1/8 and 1/16.
        attention: length of the classes' attention heads.
        channels: of the first stage; the others have twice as many.
        refine: of the shortcut from the backbone.
        low_level: of the backbone's map at 1/4.
        fpa: feature pyramid attention on the coarsest map, instead of the atrous pyramid (CAMN, abstract).
    """

    def __init__(
        self,
        channels_in: Sequence[int],
        attention: int,
        channels: int,
        refine: int,
        low_level: int,
        fpa: bool = False,
    ):
        super().__init__()
        fine, middle, coarse = channels_in
        wide = 2 * channels
        shapes = (
            (fine, channels, 1, 1),
            (channels, channels, 1, 2),
            (channels, wide, 2, 1),
            (wide + middle, wide, 1, 2),
            (wide, wide, 1, 4),
            (wide, wide, 2, 1),
            (wide + coarse, wide, 1, 2),
            (wide, wide, 1, 4),
        )
        self.gates = nn.ModuleList(Gate(attention, shape[0]) for shape in shapes)
        self.blocks = nn.ModuleList(Bottleneck(*shape) for shape in shapes)
        self.pyramid_gate = Gate(attention, wide)
        self.pyramid: nn.Module = GatedASPP(wide, channels)
        if fpa:
            merge = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), group_norm(channels), nn.ReLU())
            self.pyramid = nn.Sequential(FeaturePyramidAttention(wide), merge)
        self.shortcut = nn.Sequential(
            ChannelGate(low_level + channels),
            nn.Conv2d(low_level + channels, refine, 1, bias=False),
            group_norm(refine, refine // 4),
            nn.ReLU(),
        )
        half = channels // 2
        self.decoder_gates = nn.ModuleList((Gate(attention, channels + refine), Gate(attention, half)))
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, half, 3, padding=1, bias=False), group_norm(half), nn.ReLU())
            for width in (channels + refine, half)
        )
        self.foreground = nn.Linear(attention, half + 1)
        self.background = nn.Linear(attention, half + 1)

    def forward(
        self, levels: Sequence[torch.Tensor], head: torch.Tensor, low_level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of each class for and against itself.

        Args:
            levels: `(B, O, C_i, h_i, w_i)` at 1/4, 1/8 and 1/16.
            head: `(B, O, A)`.
            low_level: `(B, C, h, w)` of the backbone at 1/4.

        Returns:
            Two maps `(B, O, h, w)` at 1/4.
        """
        batch, classes = head.shape[:2]
        fine, middle, coarse = (level.flatten(0, 1) for level in levels)
        head = head.flatten(0, 1)
        joining = {3: middle, 6: coarse}
        x = fine
        for i, (gate, block) in enumerate(zip(self.gates, self.blocks, strict=True)):
            if i in joining:
                x = torch.cat([x, joining[i]], dim=1)
            x = block(gate(x, head))
            if i == 1:
                shortcut = torch.cat([low_level.repeat_interleave(classes, dim=0), x], dim=1)
        x = self.pyramid(self.pyramid_gate(x, head))
        shortcut = self.shortcut(shortcut)
        x = F.interpolate(x, size=shortcut.shape[-2:], mode="bicubic", align_corners=True)
        x = torch.cat([x, shortcut], dim=1)
        for gate, conv in zip(self.decoder_gates, self.decoder, strict=True):
            x = conv(gate(x, head))
        logits = (_classify(x, linear(head)) for linear in (self.foreground, self.background))
        return tuple(logit.unflatten(0, (batch, classes)) for logit in logits)


def _classify(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each class's own 1x1 convolution: x `(N, C, h, w)`, weights `(N, C + 1)` with the bias last -> `(N, h, w)`."""
    return torch.einsum("nchw,nc->nhw", x, weights[:, :-1]) + weights[:, -1, None, None]
