from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks import build
from vosforge.training.corruption import Corruption, corrupted

ALWAYS_SWAP, ALWAYS_MORPH = Corruption(swap=1.0), Corruption(morph=1.0)


def two_boxes() -> torch.Tensor:
    masks = torch.zeros(2, 60, 80)
    masks[0, 5:25, 5:30] = 0.9
    masks[1, 35:55, 45:75] = 0.8
    return masks


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(5))
def test_squares_of_two_objects_are_swapped_and_nothing_else_changes(seed):
    masks = two_boxes()
    spoilt = corrupted(masks, torch.tensor([True, True]), ALWAYS_SWAP, rng(seed))
    changed = (spoilt != masks).any(dim=0)
    assert changed.any()
    assert (spoilt[:, changed] == masks.flip(0)[:, changed]).all()
    # A square on each: 0.2 to 0.6 of an object of 500 pixels.
    assert changed[:30].any()
    assert changed[30:].any()
    assert changed.sum() <= 2 * (0.6 * 600**0.5 + 1) ** 2


@pytest.mark.parametrize("seed", range(5))
def test_ground_of_a_single_object_is_swapped_in_rectangles(seed):
    masks = two_boxes()
    spoilt = corrupted(masks, torch.tensor([True, False]), ALWAYS_SWAP, rng(seed))
    changed = spoilt[0] != masks[0]
    assert changed.any()
    assert torch.allclose(spoilt[0][changed], 1 - masks[0][changed])
    assert (spoilt[1] == masks[1]).all()
    # One of the rectangles lies on the object, where it was likely and is not any more.
    assert ((masks[0] > 0.5) & (spoilt[0] < 0.5)).any()


def test_objects_grow_or_shrink_by_the_radius_and_leave_room_for_others():
    masks, grown, shrunk = two_boxes(), 0, 0
    for seed in range(12):
        # Of 500 pixels, 0.09 of the root is 2.
        spoilt = corrupted(masks, torch.tensor([True, False]), Corruption(morph=1.0, radius=(0.09, 0.09)), rng(seed))
        area = int((spoilt[0] > 0.5).sum())
        assert area in ((20 + 4) * (25 + 4), (20 - 4) * (25 - 4))
        grown, shrunk = grown + (area > 500), shrunk + (area < 500)
        assert spoilt.sum(dim=0).max() <= 1 + 1e-6
    assert grown
    assert shrunk


def test_nothing_happens_by_default_or_without_objects():
    masks = two_boxes()
    assert not Corruption().happens
    assert corrupted(masks, torch.tensor([True, True]), Corruption(), rng()) is masks
    nothing = corrupted(masks, torch.tensor([False, False]), Corruption(swap=1.0, morph=1.0), rng())
    assert (nothing == masks).all()


def test_same_draws_spoil_alike_and_gradients_flow():
    masks = two_boxes().requires_grad_()
    how = Corruption(swap=1.0, morph=1.0)
    first, second = (corrupted(masks, torch.tensor([True, True]), how, rng(3)) for _ in range(2))
    assert (first == second).all()
    first.sum().backward()
    assert torch.isfinite(masks.grad).all()
    assert (masks.grad != 0).any()


def test_empty_objects_are_survived():
    masks = torch.zeros(2, 20, 30)
    for seed in range(5):
        spoilt = corrupted(masks, torch.tensor([True, True]), Corruption(swap=1.0, morph=1.0), rng(seed))
        assert torch.isfinite(spoilt).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"swap": 1.5}, "swap must be a probability, found 1.5"),
        ({"morph": -0.1}, "morph must be a probability"),
        ({"side": (0.5, 0.2)}, "side must be a range above 0, found 0.5 to 0.2"),
        ({"radius": (0, 3)}, "radius must be a range above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        Corruption(**settings)


def test_networks_memorise_what_was_spoilt_and_predict_as_before():
    torch.manual_seed(0)
    network = build("stm", "nano").eval()
    frames = torch.rand(1, 4, 3, 48, 64)
    first = torch.zeros(1, 1, 48, 64)
    first[..., 10:30, 10:40] = 1
    heard = []

    def empty(masks: torch.Tensor, t: int) -> torch.Tensor:
        heard.append(t)
        return torch.zeros_like(masks)

    with torch.no_grad():
        plain = network(frames, first).logits
        spoilt = network(frames, first, spoil=empty).logits
    assert heard == [1, 2, 3]
    assert (plain[:, 0] == spoilt[:, 0]).all()
    assert not torch.allclose(plain[:, 1], spoilt[:, 1])
