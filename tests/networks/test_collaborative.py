"""CFBI+: matching, the ensembler's inputs, and the network as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vosforge.errors import UserError
from vosforge.networks import build, from_published
from vosforge.networks.matching import background_distance, global_matching, local_matching, thinned
from vosforge.propagation import Propagator


@pytest.fixture
def nano():
    torch.manual_seed(0)
    return build("cfbi+", "nano").eval()


def scene(seed: int = 0, size: tuple[int, int] = (6, 7)):
    """A query and an earlier embedding `(1, 4, h, w)` and one-hot labels of three classes `(1, 3, h, w)`."""
    generator = torch.Generator().manual_seed(seed)
    query, earlier = torch.randn(2, 1, 4, *size, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 3, (1, *size), generator=generator)
    return query, earlier, F.one_hot(ids, 3).permute(0, 3, 1, 2).double(), ids[0]


def squashed(distance: float, bias: float) -> float:
    return 2 / (1 + np.exp(-(distance + bias))) - 1


def test_global_matching_is_the_distance_to_the_nearest_pixel_of_each_class():
    query, reference, labels, ids = scene()
    bias = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    found = global_matching(query, reference[:, :, None], labels[:, :, None], bias)
    assert found.shape == (1, 3, 1, 6, 7)
    for y in range(6):
        for x in range(7):
            distances = (reference[0] - query[0, :, y, x, None, None]).square().sum(dim=0)
            for k in range(3):
                expected = squashed(float(distances[ids == k].min()), float(bias[k]))
                assert abs(float(found[0, k, 0, y, x]) - expected) < 1e-9


def test_class_that_is_nowhere_in_the_reference_matches_nothing():
    query, reference, labels, _ = scene()
    labels[:, 2] = 0
    found = global_matching(query, reference[:, :, None], labels[:, :, None], torch.zeros(3, dtype=torch.float64))
    assert (found[:, 2] == 1).all()


@pytest.mark.parametrize("rate", [1, 2])
def test_local_matching_looks_within_its_windows_alone(rate):
    query, previous, labels, ids = scene()
    bias, windows = torch.zeros(3, dtype=torch.float64), (2, 4)
    found = local_matching(query, previous, labels, bias, windows, rate)
    assert found.shape == (1, 3, 2, 6, 7)
    for n, window in enumerate((4, 2)):
        for y in range(6):
            for x in range(7):
                offsets = range(-window, window + 1, rate)
                around = [(y + dy, x + dx) for dy in offsets for dx in offsets]
                for k in range(3):
                    near = [
                        float((previous[0, :, v, u] - query[0, :, y, x]).square().sum())
                        for v, u in around
                        if 0 <= v < 6 and 0 <= u < 7 and ids[v, u] == k
                    ]
                    expected = squashed(min(near), 0.0) if near else 1.0
                    assert abs(float(found[0, k, n, y, x]) - expected) < 1e-9


def test_background_of_a_class_is_the_nearest_of_the_others():
    distances = torch.tensor([0.3, 0.1, 0.7]).view(1, 3, 1, 1, 1)
    assert background_distance(distances).flatten().tolist() == pytest.approx([0.1, 0.3, 0.1])


def test_thinning_spares_classes_of_few_pixels():
    labels = torch.zeros(1, 2, 1, 8, 8)
    labels[:, 0], labels[0, 1, 0, 3, 3] = 1, 1
    found = thinned(labels, 2, 1)
    assert found[:, 0].sum() == 16
    assert found[0, 0, 0, ::2, ::2].all()
    assert found[:, 1].sum() == 1
    assert thinned(labels, 2, 0)[:, 1].sum() == 0


# In single precision squared distances lose digits, which the gates enlarge.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-6)])
def test_cfbi_plus_answers_as_the_published_code(dtype, tolerance, formulas, golden):
    expected = golden("sine_cfbi_plus.npz")
    shapes = golden("cfbi_plus_keys.tsv")
    assert len(shapes) == 762
    weights = {name: torch.from_numpy(formulas.sine_weight(name, shape)).to(dtype) for name, shape in shapes.items()}
    network = from_published("cfbi+", weights, channel_order="rgb")
    first, second = (torch.from_numpy(formulas.sine_image(97, 129, seed)).to(dtype) for seed in (0.0, 0.6))
    propagator = Propagator(network)
    with torch.inference_mode():
        embedding = network.encode_query(second[None]).levels[2][0, :8]
    assert np.abs(embedding.numpy() - expected["emb"]).max() < tolerance
    propagator.step(first, formulas.sine_masks(97, 129))
    found = propagator.step(second)[:, ::4, ::4]
    assert np.abs(found.numpy() - expected["prob"]).max() < tolerance


def test_published_weights_expect_blue_first(formulas, golden):
    weights = {n: torch.from_numpy(formulas.sine_weight(n, s)).float() for n, s in golden("cfbi_plus_keys.tsv").items()}
    own, swapped = from_published("cfbi+", weights), from_published("cfbi+", weights, channel_order="rgb")
    frame = torch.from_numpy(formulas.sine_image(33, 33, 0.0)).float()[None]
    with torch.inference_mode():
        assert (own.encode_query(frame).levels[0] == swapped.encode_query(frame.flip(1)).levels[0]).all()


def test_objects_may_enter_late_and_are_segmented_together(nano):
    torch.manual_seed(0)
    propagator, frames = Propagator(nano), torch.rand(5, 3, 40, 48)
    first, second = np.zeros((40, 48), np.uint8), np.zeros((40, 48), np.uint8)
    first[5:20, 5:20], second[25:35, 25:45] = 7, 2
    for t, frame in enumerate(frames):
        found = propagator.step(frame, {0: first, 2: second}.get(t))
        assert (found.sum(dim=0) - 1).abs().max() < 1e-5
    assert propagator.objects == [2, 7]
    assert [(m["objects"], m["frames"]) for m in propagator.memory] == [([2, 7], [0, 2, 4])]


def test_paper_size_has_as_many_parameters_as_the_published_one():
    assert 74.0e6 < sum(p.numel() for p in build("cfbi+").parameters()) < 74.3e6


def test_parts_of_other_skeletons_are_refused():
    with pytest.raises(UserError, match="siamese=True does not go with this network"):
        build("cfbi+", "nano", siamese=True)
    with pytest.raises(
        UserError, match="reader='topk' has no effect with memory_encoder='none'; choose memory_encoder='product' or"
    ):
        build("cfbi+", "nano", reader="topk")
    assert build("cfbi+", "nano", aspp_dilations=(1, 2)).parts.aspp_dilations == (1, 2)
    with pytest.raises(UserError, match="unknown part 'windows_4'"):
        build("stm", "nano", windows_4=(2, 4))
