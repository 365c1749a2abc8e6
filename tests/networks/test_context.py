from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vosforge.networks.context import ASPP, FeaturePyramidAttention, ObjectContext, group_norm

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


@pytest.fixture
def context() -> ObjectContext:
    """In evaluation mode, with weights that let what is gathered through."""
    torch.manual_seed(0)
    context = ObjectContext(16).double().eval()
    context.project.reset_parameters()
    return context


@pytest.fixture
def gathered(context) -> list[torch.Tensor]:
    """What the object context gathered `(B, C / 2, h, w)`, call by call."""
    seen = []
    context.project.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    return seen


def test_object_context_starts_as_if_there_were_none():
    torch.manual_seed(0)
    fresh, x = ObjectContext(16).eval(), torch.randn(2, 16, 5, 6)
    before = fresh(x)
    assert (before == fresh.merge(torch.cat([torch.zeros_like(x), x], dim=1))).all()
    fresh.value.reset_parameters()
    fresh.key[0].reset_parameters()
    assert (fresh(x) == before).all()
    fresh.project.reset_parameters()
    assert (fresh(x) - before).abs().max() > 1e-3


def test_object_context_is_attention_of_keys_to_themselves(context):
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        key, value = context.key(x).flatten(2), context.value(x).flatten(2)
        weights = (torch.einsum("bcn,bcm->bnm", key, key) / 8**0.5).softmax(dim=2)
        found = torch.einsum("bnm,bcm->bcn", weights, value).unflatten(2, (5, 6))
        expected = context.merge(torch.cat([context.project(found), x], dim=1))
        assert (context(x) - expected).abs().max() < 1e-12
    assert expected.min() == 0 < expected.max()


def test_object_context_gathers_positions_that_look_alike(context, gathered):
    # Keys eight times as long make the attention nearly hard.
    context.key[1].weight.data.fill_(8)
    looks = torch.randn(2, 16, dtype=torch.float64)
    where = torch.rand(6, 7, generator=torch.Generator().manual_seed(1)) > 0.6
    x = looks[where.long()].permute(2, 0, 1)[None]
    with torch.no_grad():
        context(x)
        value = context.value(x)
    ours, theirs = value[0][:, where][:, 0], value[0][:, ~where][:, 0]
    assert (ours - theirs).abs().max() > 0.1
    assert (gathered[0][0][:, where] - ours[:, None]).abs().max() < 1e-3
    assert (gathered[0][0][:, ~where] - theirs[:, None]).abs().max() < 1e-3


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5)], ids=str)
def test_object_context_keeps_any_size_and_videos_apart(context, size):
    x = torch.randn(3, 16, *size, dtype=torch.float64)
    with torch.no_grad():
        together, alone = context(x), torch.cat([context(x[b : b + 1]) for b in range(3)])
    assert together.shape == x.shape
    assert (together - alone).abs().max() < 1e-12


def test_object_context_drops_in_training_alone(context):
    x = torch.randn(1, 16, 20, 20, dtype=torch.float64)
    kept = context(x)
    assert (context(x) == kept).all()
    alive = kept > 0
    dropped = (context.train()(x)[alive] == 0).double().mean()
    assert 0.02 < dropped < 0.09


def attention(channels: int) -> FeaturePyramidAttention:
    torch.manual_seed(0)
    return FeaturePyramidAttention(channels).double()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 5), (8, 8), (13, 21)], ids=str)
@pytest.mark.parametrize("channels", [2, 6, 32])
def test_pyramid_attention_keeps_any_size_and_width(channels, size):
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    fpa = attention(channels)
    out, alone = fpa(x), fpa(x[:1])
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert out.min() >= 0
    assert (out[:1] - alone).abs().max() < 1e-12


def test_pyramid_attention_is_as_written_out():
    fpa, x = attention(16), torch.randn(2, 16, 19, 26, dtype=torch.float64)

    def enlarged(y: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(y, size=size, mode="bilinear", align_corners=False)

    with torch.no_grad():
        half = fpa.down[0](x)
        quarter = fpa.down[1](half)
        eighth = fpa.down[2](quarter)
        assert [tuple(y.shape[1:]) for y in (half, quarter, eighth)] == [(4, 10, 13), (4, 5, 7), (4, 3, 4)]
        kernels = [tuple(layer[0].kernel_size) for layer in fpa.same]
        assert kernels == [(7, 7), (5, 5), (3, 3)]
        merged = (fpa.same[1](quarter) + fpa.up[1](enlarged(fpa.same[2](eighth), (5, 7))).relu()).relu()
        merged = (fpa.same[0](half) + fpa.up[0](enlarged(merged, (10, 13))).relu()).relu()
        weight = fpa.attention(enlarged(merged, (19, 26))).relu()
        pooled = fpa.pooled(x.mean(dim=(2, 3), keepdim=True))
        assert (fpa(x) - (fpa.master(x) * weight + pooled).relu()).abs().max() < 1e-12


def test_gradients_reach_every_weight_of_the_pyramid_attention():
    fpa, x = attention(16), torch.randn(2, 16, 24, 20, dtype=torch.float64)
    fpa(x).square().mean().backward()
    assert [name for name, p in fpa.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12] == []


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (3, 1), (4, 2), (48, 24), (64, 32), (100, 25), (256, 32)]
)
def test_groups_hold_at_least_two_channels(channels, groups):
    assert group_norm(channels).num_groups == groups
