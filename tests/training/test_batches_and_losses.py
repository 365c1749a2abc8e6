from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge.clip import Clip
from vosforge.training.batches import make_batch, mean_jaccard
from vosforge.training.losses import cross_entropy


def clip(objects: int) -> Clip:
    masks = np.zeros((3, 16, 16), np.uint8)
    for i in range(objects):
        masks[:, 4 * i : 4 * i + 3, 2:9] = i + 1
    return Clip("c", np.full((3, 16, 16, 3), 51, np.uint8), masks)


def test_clips_of_fewer_objects_leave_planes_empty():
    batch = make_batch([clip(1), clip(3)])
    assert batch.frames.shape == (2, 3, 3, 16, 16)
    assert batch.frames.max() == pytest.approx(0.2)
    assert batch.valid.tolist() == [[True, False, False], [True, True, True]]
    assert batch.first_masks[0, 1:].sum() == 0


def test_jaccard_of_right_and_empty_predictions():
    batch = make_batch([clip(2), clip(1)])
    right = torch.nn.functional.one_hot(batch.masks[:, 1:], 3).movedim(-1, 2).float()
    assert mean_jaccard(right, batch) == 1.0
    nothing = torch.zeros_like(right)
    nothing[:, :, 0] = 1
    assert mean_jaccard(nothing, batch) == 0.0


def test_cross_entropy_over_the_hardest_share_counts_the_worst_pixels_only():
    masks = torch.zeros(1, 1, 2, 5, dtype=torch.long)
    logits = torch.zeros(1, 1, 2, 2, 5)
    logits[0, 0, 0, 0, 0] = -8.0
    worst = torch.nn.functional.softplus(torch.tensor(8.0))
    assert cross_entropy(logits, masks, share=0.1) == pytest.approx(float(worst))
    plain = torch.nn.functional.cross_entropy(logits[0], masks[0])
    assert cross_entropy(logits, masks) == pytest.approx(float(plain))
