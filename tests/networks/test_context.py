from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vosforge.networks.context import ASPP

NORMS = pytest.mark.parametrize("norm", ["none", "batch", "group"])
DILATIONS = [(1,), (1, 2, 4, 8), (1, 6, 12, 18), (3, 3)]


def pyramid(*arguments: object, **settings: object) -> ASPP:
    torch.manual_seed(0)
    return ASPP(*arguments, **settings)


@NORMS
@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("dilations", DILATIONS, ids=str)
def test_map_keeps_its_size_and_takes_the_width_asked_for(dilations, pooling, norm):
    aspp = pyramid(10, 24, dilations, norm, pooling).eval()
    out = aspp(torch.randn(2, 10, 6, 9))
    assert out.shape == (2, 24, 6, 9)
    assert out.isfinite().all()
    assert out.min() == 0 < out.max()


def test_branches_have_a_width_of_their_own():
    aspp = pyramid(10, 24, (1, 2), "group", width=8)
    assert [branch[0].out_channels for branch in (*aspp.branches, aspp.pooled)] == [8, 8, 8]
    assert (aspp.merge[0].in_channels, aspp(torch.randn(2, 10, 6, 9)).shape) == (24, (2, 24, 6, 9))


@NORMS
@pytest.mark.parametrize("pooling", [True, False])
def test_batch_of_one_can_be_trained_on(norm, pooling):
    aspp = pyramid(10, 24, (1, 2), norm, pooling).train()
    out = aspp(torch.randn(1, 10, 6, 9))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in aspp.parameters())


@NORMS
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5)], ids=str)
def test_dilation_may_be_larger_than_the_map(norm, size):
    aspp = pyramid(10, 24, (1, 6, 18), norm).eval()
    out = aspp(torch.randn(2, 10, *size))
    assert out.shape == (2, 24, *size)
    assert out.isfinite().all()


def test_branches_reach_as_far_as_their_dilation():
    aspp = pyramid(4, 4, (1, 3), "none", pooling=False, dropout=0.0).eval()
    x = torch.randn(1, 4, 11, 11)
    changed = x.clone()
    changed[..., 5, 5] += 10
    moved = (aspp(x) - aspp(changed)).abs().amax(dim=1)[0] > 0
    rows, columns = torch.nonzero(moved, as_tuple=True)
    assert {*rows.tolist()} | {*columns.tolist()} == {2, 5, 8}


def test_pooling_branch_carries_the_mean_of_the_map():
    aspp = pyramid(4, 6, (1,), "none", pooling=True, dropout=0.0).eval()
    x = torch.randn(2, 4, 5, 7)
    pooled = F.relu(F.conv2d(x.mean(dim=(2, 3), keepdim=True), aspp.pooled[0].weight)).expand(-1, -1, 5, 7)
    near = F.relu(F.conv2d(x, aspp.branches[0][0].weight))
    expected = F.relu(F.conv2d(torch.cat([near, pooled], dim=1), aspp.merge[0].weight))
    assert (aspp(x) - expected).abs().max() < 1e-6


@NORMS
@pytest.mark.parametrize("width", [16, 24, 32, 64, 256])
def test_every_branch_counts_at_any_width(norm, width):
    aspp = pyramid(8, width, (1, 2), norm, pooling=True, dropout=0.0).double().train()
    x = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    aspp(x).square().mean().backward()
    assert {name for name, p in aspp.named_parameters() if p.grad.abs().max() < 1e-12} == set()


def test_dropout_drops_its_share_in_training_alone():
    aspp = pyramid(4, 64, (1,), "none", pooling=False, dropout=0.5)
    x = torch.randn(1, 4, 20, 20)
    kept = aspp.eval()(x)
    torch.manual_seed(0)
    dropped = aspp.train()(x)
    alive = kept > 0
    assert 0.45 < (dropped[alive] == 0).float().mean() < 0.55
    survived = alive & (dropped > 0)
    assert (dropped[survived] - 2 * kept[survived]).abs().max() < 1e-5
    assert (aspp.eval()(x) == kept).all()


def test_convolutions_carry_no_bias():
    aspp = pyramid(4, 8, (1, 2), "batch")
    assert all(m.bias is None for m in aspp.modules() if isinstance(m, torch.nn.Conv2d))
