from __future__ import annotations

import pytest
import torch

from vosforge.networks import soft_aggregate


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
