from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge.clip import Clip
from vosforge.training.batches import make_batch, mean_jaccard, object_ious
from vosforge.training.losses import cross_entropy, quality_loss


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


def scored(objects: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random scores `(2, 2, K)`, logits `(2, 2, K + 1, 6, 7)` and masks `(2, 2, 6, 7)`."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 2, objects, generator=generator, requires_grad=True)
    logits = torch.randn(2, 2, objects + 1, 6, 7, generator=generator, requires_grad=True)
    return scores, logits, torch.randint(0, objects + 1, (2, 2, 6, 7), generator=generator)


def plain_ious(logits: torch.Tensor, masks: torch.Tensor) -> np.ndarray:
    """IoU of every object of every frame, one after the other."""
    found, truth = logits.argmax(dim=2).numpy(), masks.numpy()
    ious = np.ones((*found.shape[:2], logits.shape[2] - 1))
    for b, t, k in np.ndindex(ious.shape):
        a, c = found[b, t] == k + 1, truth[b, t] == k + 1
        if (a | c).any():
            ious[b, t, k] = (a & c).sum() / (a | c).sum()
    return ious


def test_ious_are_those_of_the_most_probable_pixels_and_1_where_both_are_empty():
    _, logits, masks = scored()
    logits = logits.detach()
    logits[0, 1, 2], masks[0, 1] = -100.0, masks[0, 1].where(masks[0, 1] != 2, 0)
    ious = object_ious(logits, masks)
    assert ious[0, 1, 1] == 1
    assert 0 < ious.median() < 0.5
    assert np.abs(ious.numpy() - plain_ious(logits, masks)).max() < 1e-6


@pytest.mark.parametrize("valid", [[[1, 1, 1], [1, 1, 1]], [[1, 0, 1], [0, 0, 1]], [[0, 0, 0], [1, 0, 0]]], ids=str)
def test_quality_loss_is_the_squared_error_of_the_objects_there_are(valid):
    scores, logits, masks = scored()
    there = torch.tensor(valid, dtype=torch.bool)
    loss = quality_loss(scores, logits, masks, there)
    ious = plain_ious(logits.detach(), masks)
    errors = (scores.detach().numpy() - ious) ** 2
    clips = [[errors[b, t, k] for t, k in np.ndindex(errors.shape[1:]) if valid[b][k]] for b in range(len(errors))]
    # Clips weigh the same, however many objects they have.
    assert float(loss.detach()) == pytest.approx(np.mean([np.mean(clip) if clip else 0 for clip in clips]), rel=1e-5)
    loss.backward()
    assert logits.grad is None
    assert ((scores.grad != 0).any(dim=1) == there).all()


def test_quality_of_right_scores_costs_nothing():
    _, logits, masks = scored()
    assert quality_loss(object_ious(logits, masks), logits, masks, torch.ones(2, 3, dtype=torch.bool)) == 0


def test_quality_loss_of_clips_without_objects_is_nothing():
    scores, logits, masks = scored()
    loss = quality_loss(scores, logits, masks, torch.zeros(2, 3, dtype=torch.bool))
    assert float(loss.detach()) == 0
