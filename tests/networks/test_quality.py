from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vosforge.networks.quality import SCORE_FLOOR, QualityHead, relative

ACTIVATIONS = pytest.mark.parametrize("activation", ["linear", "sigmoid", "relu"])
OWN = pytest.mark.parametrize("quality", ["own", "shared"])


def head(*arguments: object, seed: int = 0) -> QualityHead:
    torch.manual_seed(seed)
    return QualityHead(*arguments).eval()


@ACTIVATIONS
@pytest.mark.parametrize("cells", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (8, 8), (30, 21)], ids=str)
def test_maps_of_any_size_get_one_score_each(size, cells, activation):
    scores = head(6, 4, cells, activation)(torch.randn(5, 6, *size))
    assert scores.shape == (5,)
    assert scores.isfinite().all()
    assert scores.unique().numel() > 1 or activation == "relu"


@ACTIVATIONS
def test_scores_stay_in_their_activations_range(activation):
    quality = head(6, 4, 5, activation)
    scores = []
    for bias in (-200.0, -1.0, 1.0, 200.0):
        torch.nn.init.constant_(quality.score.bias, bias)
        scores.append(quality(10 * torch.randn(20, 6, 9, 7)).detach())
    low, high = torch.cat(scores).min(), torch.cat(scores).max()
    assert low >= 0
    assert high > 100 if activation == "relu" else high == pytest.approx(1.0)


@pytest.mark.parametrize("value", [-3.0, 0.5, 4.0])
def test_linear_score_keeps_its_gradient_wherever_it_is_driven(value):
    quality = head(6, 4, 5).train()
    torch.nn.init.constant_(quality.score.bias, value)
    scores = quality(torch.randn(8, 6, 5, 5))
    scores.sum().backward()
    assert (scores - value).abs().max() < 0.5
    assert quality.score.bias.grad == 8
    assert all(p.grad.abs().max() > 0 for p in quality.parameters())


@pytest.mark.parametrize("hidden", ["relu", "sigmoid"])
@ACTIVATIONS
def test_head_is_four_convolutions_and_two_linear_layers_one_after_the_other(activation, hidden):
    quality = head(6, 4, 7, activation, hidden).double()
    features = torch.randn(3, 6, 7, 7, dtype=torch.float64)
    w = quality.state_dict()
    x = features
    for i, stride in enumerate((1, 1, 1, 2)):
        x = F.conv2d(x, w[f"convs.{i}.weight"], w[f"convs.{i}.bias"], stride, padding=1).clamp(min=0)
    x = x.flatten(1) @ w["hidden.weight"].T + w["hidden.bias"]
    x = x.clamp(min=0) if hidden == "relu" else 1 / (1 + torch.exp(-x))
    x = x @ w["score.weight"].T + w["score.bias"]
    expected = {"linear": x.clamp(0, 1), "relu": x.clamp(min=0), "sigmoid": 1 / (1 + torch.exp(-x))}[activation]
    assert w["hidden.weight"].shape == (16, 4 * 4 * 4)
    assert (quality(features) - expected[:, 0]).abs().max() < 1e-12


def test_relative_quality_is_measured_by_the_first_frames():
    scores, first = torch.tensor([[0.2, 0.9, 0.0], [0.6, 0.3, 1.0]]), torch.tensor([[0.8, 0.6, 0.5]])
    expected = torch.tensor([[0.25, 1.5, 0.0], [0.75, 0.5, 2.0]])
    assert (relative(scores, first) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("first", [0.0, 1e-30, 0.9 * SCORE_FLOOR])
def test_first_score_below_the_floor_makes_all_as_good(first):
    scores = torch.tensor([0.0, 1e-30, 0.04, 1.0])
    assert (relative(scores, torch.full((4,), first)) == 1).all()
    assert relative(torch.tensor([0.1]), torch.tensor([1.1 * SCORE_FLOOR]))[0] == pytest.approx(2 / 1.1)


@OWN
@pytest.mark.parametrize("size", [(33, 47), (64, 64), (1, 1)], ids=str)
def test_every_mask_of_any_frame_is_assessed(make, clips, quality, size):
    frames, masks, _ = clips(size)
    with torch.no_grad():
        scores = make("qpm", quality=quality).assess(frames[:, 0], masks)
    assert scores.shape == (2, 3)
    assert ((scores > 0) & (scores < 1)).all()


def test_networks_without_quality_assess_nothing(make, clips):
    frames, masks, _ = clips((24, 32))
    for network in (make("stm"), make("qpm", quality="none")):
        assert network.assess(frames[:, 0], masks) is None
        assert network(frames, masks).scores is None


@OWN
def test_assessment_depends_on_the_frame_and_on_the_mask(make, clips, quality):
    network = make("qpm", quality=quality)
    frames, masks, _ = clips((48, 48), objects=1)
    with torch.no_grad():
        scores = network.assess(frames[:, 0], masks)
        other_mask = network.assess(frames[:, 0], masks.flip(3))
        other_frame = network.assess(frames[:, 1], masks)
    assert (scores - other_mask).abs().max() > 1e-6
    assert (scores - other_frame).abs().max() > 1e-6


@OWN
def test_training_forward_scores_its_own_predictions(make, clips, quality):
    network = make("qpm", quality=quality, memorise_margin=False)
    frames, masks, _ = clips((40, 40))
    with torch.no_grad():
        logits, scores = network(frames, masks)
        expected = [network.assess(frames[:, t + 1], logits[:, t].softmax(dim=1)[:, 1:]) for t in range(2)]
    assert scores.shape == (2, 2, 3)
    assert (scores - torch.stack(expected, dim=1)).abs().max() < 1e-6


def test_shared_quality_has_no_encoder_of_its_own(make):
    own, shared = make("qpm").state_dict(), make("qpm", quality="shared").state_dict()
    encoder = {name for name in own if name.startswith("score_encoder.")}
    assert own.keys() - shared.keys() == encoder
    assert shared.keys() < own.keys()
    memory = {name: w.shape for name, w in own.items() if name.startswith("memory_encoder.")}
    assert {name.replace("score", "memory", 1): own[name].shape for name in encoder} == memory


def learning(network: torch.nn.Module, loss: torch.Tensor) -> set[str]:
    """Modules that the loss has gradients for."""
    network.zero_grad(set_to_none=True)
    loss.backward()
    named = network.named_parameters()
    return {name.split(".")[0] for name, p in named if p.grad is not None and p.grad.abs().max() > 0}


@OWN
@pytest.mark.parametrize("prior", ["none", "union", "object"])
def test_scores_and_segmentation_learn_apart(make, clips, quality, prior):
    network = make("qpm", quality=quality, prior=prior).train()
    frames, masks, _ = clips((32, 32), objects=2)
    encoder = {"own": "score_encoder", "shared": "memory_encoder"}[quality]
    assert learning(network, network(frames, masks).scores.sum()) == {encoder, "quality_head"}
    segmenting = {"query_encoder", "memory_encoder", "query_head", "memory_head", "decoder"}
    segmenting |= set() if prior == "none" else {"enhancement"}
    assert learning(network, network(frames, masks).logits.softmax(dim=2)[:, :, 1].square().sum()) == segmenting


@OWN
def test_assessing_changes_nothing_in_what_is_segmented(make, clips, quality):
    network, silent = make("qpm", quality=quality), make("qpm", quality="none")
    state = network.state_dict()
    silent.load_state_dict({name: state[name] for name in silent.state_dict()})
    # Fresh scores are all alike, so that the previous mask is the prior, as it is without scores.
    frames, masks, _ = clips((33, 40))
    with torch.no_grad():
        assert (network(frames, masks).logits == silent(frames, masks).logits).all()
