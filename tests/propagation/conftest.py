from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vosforge.clip import Clip
from vosforge.networks import MemoryNetwork, build


@pytest.fixture
def nano() -> Callable[..., MemoryNetwork]:
    """Builds a nano network whose weights depend on the seed alone."""

    def nano(name: str = "stm", seed: int = 0, **parts: object) -> MemoryNetwork:
        torch.manual_seed(seed)
        return build(name, "nano", **parts).eval()

    return nano


@pytest.fixture
def noise() -> Callable[..., Clip]:
    """A clip of random pictures, whose objects are boxes that appear one frame after the other, with ids 3, 6, ..."""

    def noise(frames: int = 5, objects: int = 2, size: tuple[int, int] = (40, 56), seed: int = 0) -> Clip:
        pictures = np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), np.uint8)
        masks = np.zeros((frames, *size), np.uint8)
        for k in range(objects):
            masks[min(k, frames - 1) :, 4 + 9 * k : 15 + 9 * k, 4 + 12 * k : 24 + 12 * k] = 3 * (k + 1)
        return Clip(f"noise-{seed}", pictures, masks)

    return noise
