"""What every memory network shares: its per-frame functions and the training forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.errors import UserError
from vosforge.networks.aggregation import soft_aggregate
from vosforge.networks.encoders import freeze_batch_norm


class Query(NamedTuple):
    """A frame encoded to be segmented.

    Attributes:
        key: `(B, CK, h, w)`.
        value: `(B, CV, h, w)`.
        skips: the frame's finer feature maps, fine to coarse, the last `(B, C, 2h, 2w)`.
        size: (H, W) of the frame before padding.
    """

    key: torch.Tensor
    value: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    size: tuple[int, int]


class MemoryNetwork(nn.Module, ABC):
    """A space-time memory network: four per-frame functions, which a paper's file provides, and what follows.

    * `encode_query(frames) -> Query`
    * `encode_memory(frames, masks) -> (key, value)`
    * `read(query, memory_key, memory_value) -> (B, K, C, h, w)`
    * `decode(query, read) -> (B, K, H, W)` foreground logits

    Frames of any size are padded to the stride inside and predictions cropped back.
    """

    stride: int
    frozen_batch_norm: bool = False

    @abstractmethod
    def encode_query(self, frames: torch.Tensor) -> Query:
        """Encode `(B, 3, H, W)` frames in [0, 1] that shall be segmented."""

    @abstractmethod
    def encode_memory(self, frames: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode `(B, 3, H, W)` frames with `(B, K, H, W)` object probabilities into the memory.

        Returns:
            key `(B, K, CK, h, w)` and value `(B, K, CV, h, w)`.
        """

    @abstractmethod
    def read(self, query: Query, memory_key: torch.Tensor, memory_value: torch.Tensor) -> torch.Tensor:
        """Read T remembered frames, `(B, K, CK, T, h, w)` and `(B, K, CV, T, h, w)`, for each object."""

    @abstractmethod
    def decode(self, query: Query, read: torch.Tensor) -> torch.Tensor:
        """Foreground logits `(B, K, H, W)` of each object from its read."""

    def segment(
        self, query: Query, memory_key: torch.Tensor, memory_value: torch.Tensor, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits `(B, K + 1, H, W)` of background and objects: read, decode, soft aggregation."""
        foreground = self.decode(query, self.read(query, memory_key, memory_value)).sigmoid()
        return soft_aggregate(foreground, valid)

    def forward(self, frames: torch.Tensor, first_masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Segment a clip from its first masks, with gradients through the memory.

        Frame 0 is memorised with its true masks; each later frame reads all frames before it, and is itself
        memorised with its soft prediction.

        Args:
            frames: `(B, T, 3, H, W)` in [0, 1], T >= 2.
            first_masks: `(B, K, H, W)` in [0, 1], the objects of frame 0.
            valid: `(B, K)` bool, which slots hold an object.

        Returns:
            `(B, T - 1, K + 1, H, W)` logits for frames 1 to T - 1.
        """
        length = frames.shape[1]
        keys, values, predictions = [], [], []
        masks = first_masks
        for t in range(1, length):
            key, value = self.encode_memory(frames[:, t - 1], masks)
            keys.append(key)
            values.append(value)
            query = self.encode_query(frames[:, t])
            logits = self.segment(query, torch.stack(keys, dim=3), torch.stack(values, dim=3), valid)
            predictions.append(logits)
            masks = logits.softmax(dim=1)[:, 1:]
        return torch.stack(predictions, dim=1)

    def train(self, mode: bool = True) -> MemoryNetwork:
        """Training mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.frozen_batch_norm:
            freeze_batch_norm(self)
        return self


def pad_to_stride(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Pad `(..., H, W)` with zeros on all sides, the odd pixel at the end, to multiples of the stride."""
    bottom, right = (-x.shape[-2]) % stride, (-x.shape[-1]) % stride
    return F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))


def crop_to(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Undo `pad_to_stride`: cut `(..., H', W')` back to `(..., H, W)`."""
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def check_frames(frames: torch.Tensor, masks: torch.Tensor | None = None) -> None:
    """Refuse tensors that no network can encode.

    Raises:
        UserError: naming what was expected and found.
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
        raise UserError(f"frames must be (B, 3, H, W) float in [0, 1], found {tuple(frames.shape)} {frames.dtype}")
    if masks is None:
        return
    if masks.ndim != 4 or masks.shape[0] != frames.shape[0] or masks.shape[2:] != frames.shape[2:]:
        raise UserError(f"masks must be (B, K, H, W) like the frames {tuple(frames.shape)}, found {tuple(masks.shape)}")
    if masks.shape[1] == 0:
        raise UserError("masks hold no object (K = 0): give at least one object's mask")
