"""The foreground-background space-time memory (CAMN, 2.1): one extractor serves query and memory, apart for each mask.

Embeddings of remembered frames are split by a mask into a foreground and a background map, from each of which comes a
value, and a key. The projections are 1x1 convolutions without bias, which the split commutes with: a frame is
projected once for all its objects.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from vosforge.errors import UserError

Scheme = Literal["product", "prior"]
Keys = Literal["shared", "separate"]


class ForegroundBackground(nn.Module):
    """F-G STM: what a frame's foreground and background are remembered by.

    Args:
        channels: of the embeddings.
        key_channels: CK.
        value_channels: CV, half of it the foreground's, half the background's.
        scheme: "product" multiplies embeddings by the mask and by what it leaves (figure 2a); "prior" by a learnt
            spatial prior of embedding and mask, 1x1 convolution and sigmoid (figure 2b).
        keys: "shared" remembers the embedding's key as a query, one for both maps and all objects (the single
            "conv K" of figure 2a); "separate" makes one of each map (the text).

    Raises:
        UserError: for an odd number of value channels.
    """

    def __init__(self, channels: int, key_channels: int, value_channels: int, scheme: Scheme, keys: Keys):
        super().__init__()
        if value_channels % 2:
            raise UserError(f"value_channels must be even, half of them the background's, found {value_channels}")
        self.key = nn.Conv2d(channels, 2 * key_channels, 1, bias=False) if keys == "separate" else None
        self.value = nn.Conv2d(channels, value_channels, 1, bias=False)
        self.prior = nn.Conv2d(channels + 1, 2, 1) if scheme == "prior" else None

    def shares(self, embedding: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """How much of each position belongs to the foreground, and to the background.

        Args:
            embedding: `(B, C, T, h, w)`.
            masks: `(B, K, T, h, w)` in [0, 1].

        Returns:
            `(B, K, 2, T, h, w)` in [0, 1].
        """
        shares = torch.stack([masks, 1 - masks], dim=2)
        if self.prior is None:
            return shares
        weight, bias = self.prior.weight[:, :, 0, 0], self.prior.bias
        seen = torch.einsum("bcthw,gc->bgthw", embedding, weight[:, :-1])
        shape = (2, 1, 1, 1)
        return (seen[:, None] + shares * weight[:, -1].view(shape) + bias.view(shape)).sigmoid()


def split(projected: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Foreground and background, each by its share.

    projected `(B, 2C, T, h, w)`, shares `(B, K, 2, T, h, w)` -> `(B, K, 2C, T, h, w)` in the projection's precision.
    """
    shares = shares.to(projected.dtype)
    return (projected.unflatten(1, (2, -1))[:, None] * shares[:, :, :, None]).flatten(2, 3)
