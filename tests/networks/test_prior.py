from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vosforge.errors import UserError
from vosforge.networks.quality import PriorEnhancement

PRIORS = pytest.mark.parametrize("prior", ["union", "object"])


def test_features_are_weighed_by_one_gate_for_all_channels():
    torch.manual_seed(0)
    enhance = PriorEnhancement(6)
    features, masks = torch.randn(2, 6, 5, 7), torch.rand(2, 1, 5, 7)
    expected = F.conv2d(torch.cat([features, masks], dim=1), enhance.conv.weight, enhance.conv.bias, padding=1)
    gate = enhance.gate(features, masks)
    assert gate.shape == (2, 1, 5, 7)
    assert ((gate > 0) & (gate < 1)).all()
    assert (gate - 1 / (1 + torch.exp(-expected))).abs().max() < 1e-6
    assert (enhance(features, masks) - features * gate).abs().max() < 1e-6


def test_gate_can_keep_what_is_inside_the_mask_alone():
    enhance = PriorEnhancement(3)
    with torch.no_grad():
        enhance.conv.weight.zero_()
        enhance.conv.weight[0, 3, 1, 1] = 60
        enhance.conv.bias.fill_(-30)
    masks = torch.zeros(1, 1, 4, 6)
    masks[..., 1:3, 2:5] = 1
    features = torch.randn(1, 3, 4, 6)
    assert (enhance(features, masks) - features * masks).abs().max() < 1e-6


@pytest.fixture
def queried(make, clips):
    """Keys and values of a query, by the network's parts and its masks."""
    frames = clips((40, 56))[0][:, 0]

    def queried(masks: torch.Tensor, name: str = "qpm", **parts: object) -> torch.Tensor:
        network = make(name, **parts)
        with torch.no_grad():
            query = network.encode_query(frames, network.encode_target(frames, masks), masks)
        return torch.cat([query.key, query.value], dim=2)

    return queried


@pytest.fixture
def masks(clips):
    return clips((40, 56))[1]


@pytest.mark.parametrize("name", ["qpm", "stm", "skn"])
def test_union_of_the_masks_gives_one_query_for_all(queried, masks, name):
    together = queried(masks, name, prior="union")
    assert together.shape[1] == 1
    union = masks.amax(dim=1, keepdim=True)
    assert (queried(union, name, prior="union") - together).abs().max() < 1e-6
    assert (queried(masks[:, [2, 0, 1]], name, prior="union") - together).abs().max() == 0
    for k in range(3):
        fewer = masks.clone()
        fewer[:, k] = 0
        assert (queried(fewer, name, prior="union") - together).abs().max() > 1e-4


@pytest.mark.parametrize("parts", [{}, {"siamese": True}, {"memory_encoder": "value"}], ids=str)
def test_each_object_has_the_query_that_its_own_mask_makes(queried, masks, parts):
    together = queried(masks, prior="object", **parts)
    assert together.shape[1] == 3
    for k in range(3):
        alone = queried(masks[:, k : k + 1], prior="object", **parts)
        assert (together[:, k : k + 1] - alone).abs().max() < 1e-5
    changed = masks.clone()
    changed[:, 1] = masks[:, 1].flip(2)
    difference = (queried(changed, prior="object", **parts) - together).abs().amax(dim=(0, 2, 3, 4))
    assert difference[[0, 2]].max() < 1e-6
    assert difference[1] > 1e-4


def test_union_of_one_object_is_that_object(queried, masks):
    one = masks[:, :1]
    assert (queried(one, prior="union") - queried(one, prior="object")).abs().max() == 0


@PRIORS
def test_named_prior_wins_over_the_previous_mask(make, clips, prior):
    network = make("qpm", prior=prior)
    frames, masks, _ = clips((40, 56))
    other = masks.flip(2)
    with torch.no_grad():
        expected, answered, previous = (
            network.encode_query(frames[:, 0], previous=a, prior=b).key
            for a, b in ((masks, None), (other, masks), (other, None))
        )
    assert (expected == answered).all()
    assert (expected - previous).abs().max() > 1e-4


def test_skips_and_features_are_not_enhanced(make, clips):
    frames, masks, _ = clips((40, 56))
    with torch.no_grad():
        one, other = (make("qpm").encode_query(frames[:, 0], previous=m) for m in (masks, 1 - masks))
    assert (one.features == other.features).all()
    assert all((a == b).all() for a, b in zip(one.skips, other.skips, strict=True))
    assert (one.key - other.key).abs().max() > 1e-4


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_prior_of_each_object_follows_its_own_quality(make, threshold):
    network = make("qpm", prior_threshold=threshold)
    previous, first = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    first_score = torch.tensor([[0.5, 0.5, 0.25], [1.0, 0.01, 0.5]])
    kept = torch.tensor([[1.01, 1.0, 0.5], [2.0, 0.0, 1.0]]) * threshold
    chosen = network.choose_prior(previous, first, first_score * kept, first_score)
    # At the threshold or below it is the first mask; a first score that says nothing leaves the previous one.
    from_previous = torch.tensor([[True, False, False], [True, True, False]])
    assert (chosen == torch.where(from_previous[:, :, None, None], previous, first)).all()


def test_prior_is_the_previous_mask_where_nothing_is_assessed(make):
    previous, first = torch.rand(1, 2, 4, 5), torch.rand(1, 2, 4, 5)
    assert make("stm", prior="union").choose_prior(previous, first, None, None) is previous


def by_hand(network, frames, masks, priors) -> torch.Tensor:
    """Logits of a clip of three frames with the priors named: "first" or "previous" for frames 1 and 2."""
    current, kept, logits = masks, [], []
    for t, prior in enumerate(priors, 1):
        kept.append(network.encode_memory(frames[:, t - 1], current))
        chosen = {"first": masks, "previous": current}[prior]
        query = network.encode_query(frames[:, t], previous=current, prior=chosen)
        memory = [torch.stack(kind, dim=3) for kind in zip(*kept, strict=True)]
        logits.append(network.segment(query, *memory))
        current = logits[-1].softmax(dim=1)[:, 1:]
    return torch.stack(logits, dim=1)


@PRIORS
@pytest.mark.parametrize(("threshold", "chosen"), [(0.65, "previous"), (1.5, "first")])
def test_forward_takes_the_prior_that_quality_asks_for(make, clips, prior, threshold, chosen):
    network = make("qpm", prior=prior, prior_threshold=threshold)
    # A head without weights finds all masks equally good: their relative quality is 1.
    torch.nn.init.zeros_(network.quality_head.score.weight)
    frames, masks, _ = clips((40, 48))
    with torch.no_grad():
        found = network(frames, masks).logits
        assert (found - by_hand(network, frames, masks, ("previous", chosen))).abs().max() < 1e-5
        other = {"previous": "first", "first": "previous"}[chosen]
        assert (found - by_hand(network, frames, masks, ("previous", other))).abs().max() > 1e-4


def test_query_without_a_mask_is_refused_where_one_enhances_it(make, clips):
    frames = clips((40, 56))[0][:, 0]
    for network in (make("qpm"), make("stm", prior="object")):
        with pytest.raises(UserError, match="asks for a mask: previous=masks of the frame before"):
            network.encode_query(frames)


@pytest.mark.parametrize("shape", [(2, 3, 40, 48), (1, 3, 40, 56), (2, 40, 56), (2, 3, 1, 40, 56)], ids=str)
@pytest.mark.parametrize("name", ["qpm", "skn"])
def test_masks_of_another_form_are_refused(make, clips, name, shape):
    frames = clips((40, 56))[0][:, 0]
    with pytest.raises(UserError, match=r"masks of the frame before must be \(B, K, H, W\) .*found \("):
        make(name).encode_query(frames, previous=torch.zeros(shape))


@pytest.mark.parametrize(
    "masks",
    [
        torch.zeros(1, 2, 34, 48),
        torch.zeros(1, 0, 33, 47),
        torch.zeros(1, 2, 33, 47, dtype=torch.bool),
        torch.zeros(1, 2, 33, 47, dtype=torch.float64),
        torch.full((1, 2, 33, 47), float("nan")),
        torch.full((1, 2, 33, 47), 255.0),
    ],
    ids=["of another size", "of no object", "bool", "float64", "NaN", "beyond 1"],
)
@pytest.mark.parametrize("name", ["qpm", "skn"])
def test_masks_that_cannot_be_used_are_refused(make, name, masks):
    with pytest.raises(UserError, match="masks"):
        make(name).encode_query(torch.zeros(1, 3, 33, 47), previous=masks)
