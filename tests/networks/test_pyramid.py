from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vosforge.networks.pyramid import FeaturePyramid, PyramidBranch

WIDTHS = (6, 10, 14)
SIZES = ((17, 25), (9, 13), (5, 7))


def levels(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, *size, generator=generator, dtype=torch.float64)
        for width, size in zip(WIDTHS, sizes, strict=True)
    ]


def pyramid(path: str) -> FeaturePyramid:
    torch.manual_seed(0)
    made = FeaturePyramid(WIDTHS, 8, path).double()
    for norm in [m for m in made.modules() if isinstance(m, torch.nn.GroupNorm)]:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    return made


def convolved(layer: torch.nn.Sequential, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    conv, norm = layer
    y = F.conv2d(x, conv.weight, stride=stride, padding=conv.weight.shape[-1] // 2)
    return F.group_norm(y, norm.num_groups, norm.weight, norm.bias)


def topped_down(made: FeaturePyramid, fine, middle, coarse) -> list[torch.Tensor]:
    """FPN for three levels, written out."""
    top = convolved(made.lateral[2], coarse)
    above = F.interpolate(top, size=middle.shape[-2:], mode="bilinear", align_corners=True)
    centre = convolved(made.lateral[1], middle) + above
    above = F.interpolate(centre, size=fine.shape[-2:], mode="bilinear", align_corners=True)
    bottom = convolved(made.lateral[0], fine) + above
    return [convolved(made.smooth[0], bottom).relu(), convolved(made.smooth[1], centre).relu(), top.relu()]


def test_top_down_path_is_as_written_out():
    made = pyramid("fpn")
    for found, expected in zip(made(*levels()), topped_down(made, *levels()), strict=True):
        assert (found - expected).abs().max() < 1e-12


def test_bottom_up_path_follows_the_top_down_one():
    made = pyramid("pan")
    fine, middle, coarse = topped_down(made, *levels())
    middle = convolved(made.merge[0], middle + convolved(made.down[0], fine, stride=2).relu()).relu()
    coarse = convolved(made.merge[1], coarse + convolved(made.down[1], middle, stride=2).relu()).relu()
    for found, expected in zip(made(*levels()), (fine, middle, coarse), strict=True):
        assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("none", [[True, False, False], [False, True, False], [False, False, True]]),
        ("fpn", [[True, True, True], [False, True, True], [False, False, True]]),
        ("pan", [[True, True, True], [True, True, True], [True, True, True]]),
    ],
)
def test_levels_see_each_other_along_the_path(path, seen):
    made = pyramid(path)
    before = made(*levels())
    for source in range(3):
        changed = levels()
        changed[source] = changed[source].flip(3)
        after = made(*changed)
        assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [row[source] for row in seen]


@pytest.mark.parametrize("path", ["none", "fpn", "pan"])
@pytest.mark.parametrize(
    "sizes", [SIZES, ((16, 24), (8, 12), (4, 6)), ((5, 9), (3, 5), (2, 3)), ((4, 4), (2, 2), (1, 1))], ids=str
)
def test_levels_keep_their_sizes_at_one_width(path, sizes):
    for align_corners in (True, False):
        out = FeaturePyramid(WIDTHS, 8, path, align_corners).double()(*levels(sizes))
        assert [tuple(level.shape) for level in out] == [(2, 8, *size) for size in sizes]
        assert all(level.isfinite().all() and level.min() >= 0 for level in out)


@pytest.mark.parametrize("path", ["none", "fpn", "pan"])
def test_gradients_reach_every_weight_of_the_pyramid(path):
    made = pyramid(path)
    sum(level.square().mean() for level in made(*levels())).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12] == []


@pytest.mark.parametrize("path", ["fpn", "pan"])
def test_branch_adds_its_path_to_levels_that_keep_their_widths(path):
    torch.manual_seed(0)
    branch = PyramidBranch(WIDTHS, 8, path).double()
    maps = levels(((16, 24), (8, 12), (4, 6)))
    assert all((a == b).all() for a, b in zip(branch(*maps), maps, strict=True))
    for conv in branch.widen:
        conv.reset_parameters()
    out = branch(*maps)
    assert [level.shape for level in out] == [level.shape for level in maps]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(out, maps, strict=True))


def test_branch_of_one_level_needs_no_other():
    assert PyramidBranch(WIDTHS[:1], 8, "pan")(torch.randn(2, 6, 5, 7))[0].shape == (2, 6, 5, 7)
