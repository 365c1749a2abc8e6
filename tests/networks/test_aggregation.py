from __future__ import annotations

import pytest
import torch

from vosforge.networks import aggregate, soft_aggregate


def test_aggregation_equals_the_formula():
    p = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.98 + 0.01
    odds = p / (1 - p)
    background = (1 - p[:, 0]) * (1 - p[:, 1]) * (1 - p[:, 2])
    odds = torch.cat([(background / (1 - background))[:, None], odds], dim=1)
    assert (soft_aggregate(p).softmax(dim=1) - odds / odds.sum(dim=1, keepdim=True)).abs().max() < 1e-12


def test_one_object_keeps_its_decision():
    p = torch.tensor([0.1, 0.49, 0.51, 0.9]).view(1, 1, 1, 4)
    assert soft_aggregate(p).argmax(dim=1).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_sum_to_one_even_at_certainty(dtype):
    p = torch.tensor([[0, 0, 1, 1, 0.5], [0, 1, 0, 1, 0.5]], dtype=dtype).view(1, 2, 1, 5)
    distribution = soft_aggregate(p).softmax(dim=1)
    assert distribution.isfinite().all()
    assert (distribution.sum(dim=1) - 1).abs().max() < 1e-6
    assert distribution.argmax(dim=1).flatten().tolist()[:3] == [0, 2, 1]


def test_absent_objects_get_nothing_and_change_nothing():
    p = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, False, True], [False, False, False]])
    together = soft_aggregate(p, valid).softmax(dim=1)
    alone = soft_aggregate(p[:1, [0, 2]]).softmax(dim=1)
    assert (together[0, 2] == 0).all()
    assert torch.allclose(together[0, [0, 1, 3]], alone[0], atol=1e-7)
    assert (together[1, 0] == 1).all()


def test_absent_objects_leave_gradients_finite():
    p = torch.rand(1, 2, 4, 4, requires_grad=True)
    soft_aggregate(p, torch.tensor([[True, False]])).softmax(dim=1)[:, 1].sum().backward()
    assert p.grad.isfinite().all()
    assert p.grad[:, 0].abs().max() > 0
    assert (p.grad[:, 1] == 0).all()


HOWS = pytest.mark.parametrize("how", ["soft", "winner-take-all", "none"])


def some_probabilities(objects: int = 3) -> torch.Tensor:
    return torch.rand(2, objects, 6, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_soft_merge_is_the_softmax_of_soft_aggregation():
    p = some_probabilities()
    assert (aggregate(p, "soft") == soft_aggregate(p).softmax(dim=1)).all()
    assert (aggregate(p) == aggregate(p, "soft")).all()


def test_winner_takes_all_of_a_pixel():
    p = torch.tensor([[0.2, 0.6, 0.9, 0.5], [0.4, 0.7, 0.3, 0.1]]).view(1, 2, 1, 4)
    expected = torch.tensor([[0.6, 0.3, 0.1, 0.5], [0, 0, 0.9, 0.5], [0.4, 0.7, 0, 0]]).view(1, 3, 1, 4)
    assert (aggregate(p, "winner-take-all") - expected).abs().max() < 1e-7


def test_without_merging_every_object_keeps_its_probability():
    p = some_probabilities()
    merged = aggregate(p, "none")
    assert (merged[:, 1:] == p).all()
    assert (merged[:, 0] == 1 - p.amax(dim=1)).all()
    assert merged.sum(dim=1).max() > 1


@HOWS
def test_background_comes_first_and_distributions_sum_to_one(how):
    p = some_probabilities()
    merged = aggregate(p, how)
    assert merged.shape == (2, 4, 6, 7)
    assert 0 <= merged.min() <= merged.max() <= 1
    if how != "none":
        assert (merged.sum(dim=1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("how", ["winner-take-all", "none"])
def test_pixel_is_the_strongest_objects_above_one_half(how):
    p = some_probabilities()
    strongest, winner = p.max(dim=1)
    assert (aggregate(p, how).argmax(dim=1) == torch.where(strongest > 0.5, winner + 1, 0)).all()


@HOWS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_certain_objects_win_in_every_way_and_precision(how, dtype):
    p = torch.tensor([[0, 1, 0], [0, 0, 1]], dtype=dtype).view(1, 2, 1, 3)
    merged = aggregate(p, how)
    assert merged.isfinite().all()
    assert merged.argmax(dim=1).flatten().tolist() == [0, 1, 2]


@HOWS
def test_one_object_alone_keeps_its_decision_in_every_way(how):
    p = torch.tensor([0.1, 0.49, 0.51, 0.9]).view(1, 1, 1, 4)
    assert aggregate(p, how).argmax(dim=1).flatten().tolist() == [0, 0, 1, 1]


@HOWS
def test_order_of_objects_does_not_matter(how):
    p = some_probabilities()
    swapped = aggregate(p[:, [2, 0, 1]], how)
    assert (swapped[:, [0, 2, 3, 1]] - aggregate(p, how)).abs().max() < 1e-12
