from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vosforge.clip import Clip


def clip(name: str, seed: int) -> Clip:
    """A square that moves over noise, at 32x40 in four frames."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (4, 32, 40, 3), dtype=np.uint8)
    masks = np.zeros((4, 32, 40), np.uint8)
    for t in range(4):
        area = np.s_[t, 8:22, 4 + 4 * t : 18 + 4 * t]
        frames[area], masks[area] = 200 + seed, 1
    return Clip(name, frames, masks)


@pytest.fixture
def moving() -> Callable[[str, int], Clip]:
    return clip
