"""The network that travels with the package segments without any training."""

from __future__ import annotations

import cv2
import numpy as np

from vosforge.clip import Clip
from vosforge.evaluation.running import evaluate
from vosforge.propagation import CopyFirstMask, segment_clip
from vosforge.propagation.model import BUNDLED, Model


def blotches(rng: np.random.Generator, size: tuple[int, int], grain: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A smooth random pattern `(H, W, 3)` about a colour."""
    coarse = rng.normal(colour, 45, (size[0] // grain, size[1] // grain, 3)).clip(0, 255).astype(np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def moving_disc(frames: int = 12, size: tuple[int, int] = (192, 256)) -> Clip:
    """A patterned disc that crosses a patterned ground."""
    rng = np.random.default_rng(0)
    ground, cover = blotches(rng, size, 8, (90, 120, 80)), blotches(rng, size, 4, (190, 90, 60))
    pictures, masks = [], []
    for t in range(frames):
        mask = np.zeros(size, np.uint8)
        cv2.circle(mask, (60 + 11 * t, 90 + 2 * t), 32, 1, -1)
        shifted = np.roll(cover, (2 * t, 11 * t), axis=(0, 1))
        pictures.append(np.where(mask[..., None] > 0, shifted, ground))
        masks.append(mask)
    return Clip("disc", np.stack(pictures), np.stack(masks))


def test_bundled_network_follows_an_object_that_it_never_saw():
    model = Model.load(BUNDLED)
    methods = {
        "bundled": lambda clip: segment_clip(model.start(), clip, model.short_side),
        "copy": lambda clip: segment_clip(CopyFirstMask(), clip),
    }
    found = evaluate(methods, [moving_disc()])
    assert found["copy"]["J"] < 0.3
    assert found["bundled"]["J"] > 0.75


def test_bundled_network_says_at_which_size_it_works():
    model = Model.load(BUNDLED)
    assert len(model.members) == 1
    assert 96 <= model.short_side <= 480
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 10_000_000
