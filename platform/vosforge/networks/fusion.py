"""Feature fusion with attention: the value of a memory frame from its mask's and its image's features (STCN, 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.networks.decoders import ResidualBlock


class Fusion(nn.Module):
    """Two residual blocks around channel and spatial attention (CBAM, Woo et al. 2018).

    Args:
        channels_in: of both feature maps together.
        channels_out: CV.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.block1 = ResidualBlock(channels_in, channels_out)
        self.channel_attention = ChannelAttention(channels_out)
        self.spatial_attention = SpatialAttention()
        self.block2 = ResidualBlock(channels_out, channels_out)

    def forward(self, masked: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Features of frame with mask `(B, C1, h, w)` and of the frame alone `(B, C2, h, w)` -> `(B, CV, h, w)`."""
        x = self.block1(torch.cat([masked, image], dim=1))
        return self.block2(x + self.spatial_attention(self.channel_attention(x)))


class ChannelAttention(nn.Module):
    """Gates every channel by its mean and its maximum over the map."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        narrow = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, h, w)` -> the same, gated."""
        gate = self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3)))
        return x * gate.sigmoid()[:, :, None, None]


class SpatialAttention(nn.Module):
    """Gates every position by the maximum and the mean over its channels."""

    def __init__(self, kernel: int = 7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, h, w)` -> the same, gated."""
        pooled = torch.stack([x.amax(dim=1), x.mean(dim=1)], dim=1)
        return x * F.sigmoid(self.conv(pooled))
