"""Masks and probabilities kept small: whole numbers, compressed. Most of their planes is 0 or 1."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import torch


class Packed(NamedTuple):
    """An array of whole numbers, compressed.

    Attributes:
        content: its bytes, compressed.
        shape, dtype: of the array.
    """

    content: bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, array: np.ndarray) -> Packed:
        """Pack an array."""
        return cls(zlib.compress(np.ascontiguousarray(array), 1), array.shape, array.dtype)

    @classmethod
    def of_probabilities(cls, probabilities: torch.Tensor, dtype: type[np.unsignedinteger] = np.uint8) -> Packed:
        """Pack probabilities in [0, 1] in steps of 1 / 255, or 1 / 65535 as uint16."""
        steps = np.iinfo(dtype).max
        return cls.of((probabilities.float().clamp(0, 1) * steps).round().cpu().numpy().astype(dtype))

    def array(self) -> np.ndarray:
        """The array."""
        return np.frombuffer(zlib.decompress(self.content), self.dtype).reshape(self.shape)

    def probabilities(self) -> torch.Tensor:
        """Probabilities in [0, 1], float32, to within half a step."""
        return torch.from_numpy(self.array().astype(np.float32)) / np.iinfo(self.dtype).max
