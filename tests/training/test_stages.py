from __future__ import annotations

import pytest
import torch

from vosforge.data.sampling import SamplingRecipe
from vosforge.errors import UserError
from vosforge.networks import build
from vosforge.training import losses
from vosforge.training.batches import Batch
from vosforge.training.stages import Loss, Stage
from vosforge.training.steps import Execution, Optimization, objective


def stage(**changes) -> Stage:
    settings = {"steps": 100, "batch": 4, "learning_rate": 1e-3, **changes}
    return Stage("videos", ("videos",), sampling=SamplingRecipe(), **settings)


def batch(clips: int = 4, objects: int = 2) -> Batch:
    torch.manual_seed(0)
    masks = torch.zeros(clips, 3, 32, 48, dtype=torch.long)
    for k in range(1, objects + 1):
        masks[:, :, 4 + 10 * (k - 1) : 12 + 10 * (k - 1), 5 * k : 5 * k + 20] = k
    first = torch.stack([(masks[:, 0] == k).float() for k in range(1, objects + 1)], dim=1)
    return Batch(torch.rand(clips, 3, 3, 32, 48), masks, first, torch.ones(clips, objects, dtype=torch.bool))


def right_logits(masks: torch.Tensor, objects: int, sure: float) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(masks, objects + 1).movedim(-1, 2).float()


def test_rate_falls_to_a_tenth_at_every_milestone():
    rates = stage(milestones=(0.5, 0.8))
    assert [rates.rate(step) for step in (0, 49, 50, 79, 80, 99)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_hardest_share_falls_between_two_points_of_progress():
    loss = Loss(hardest=0.15, hardest_between=(0.2, 0.7))
    assert [loss.share(p) for p in (0, 0.2, 0.45, 0.7, 1)] == pytest.approx([1, 1, 0.575, 0.15, 0.15])
    assert Loss().share(0.5) == 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Loss(kind="hinge"), "expected cross-entropy or bce, found 'hinge'"),
        (lambda: Loss(hardest=0), r"expected hardest in \(0, 1\]"),
        (lambda: Loss(hardest_between=(0.7, 0.2)), "found 1.0 and 0.7, 0.2"),
        (lambda: stage(steps=0), "must be positive, found 0"),
        (lambda: stage(optimizer="lion"), "unknown optimizer 'lion'; valid: adam, adamw, sgd"),
        (lambda: stage(ema=1.0), "expected ema in"),
        (lambda: stage(milestones=(1.5,)), "milestones as progress"),
        (lambda: Execution(clips_at_once=0), "clips_at_once must be at least 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make, told):
    with pytest.raises(UserError, match=told):
        make()


@pytest.mark.parametrize("name", ["binary_cross_entropy", "soft_jaccard", "dice"])
def test_sure_and_right_costs_nothing_and_wrong_costs_much(name):
    measure, found = getattr(losses, name), batch()
    truth = found.masks[:, 1:]
    right = measure(right_logits(truth, 2, 40.0), truth, found.valid)
    wrong = measure(right_logits((truth + 1) % 3, 2, 40.0), truth, found.valid)
    assert right == pytest.approx(0, abs=1e-2)
    assert wrong > 0.6


def test_binary_cross_entropy_is_that_of_each_object_against_the_rest():
    torch.manual_seed(1)
    logits, masks = torch.randn(1, 1, 3, 6, 7, dtype=torch.float64), torch.randint(0, 3, (1, 1, 6, 7))
    p = logits.softmax(dim=2)[:, :, 1:]
    truth = torch.stack([masks == 1, masks == 2], dim=2).double()
    expected = torch.nn.functional.binary_cross_entropy(p, truth)
    assert losses.binary_cross_entropy(logits, masks, torch.tensor([[True, True]])) == pytest.approx(float(expected))


def test_overlaps_are_those_of_probable_pixels():
    truth = torch.zeros(1, 1, 10, 10, dtype=torch.long)
    truth[..., :5] = 1
    # Everywhere an object with probability one half: 25 pixels of overlap, 50 + 50 - 25 of union.
    logits = torch.zeros(1, 1, 2, 10, 10)
    valid = torch.tensor([[True]])
    assert losses.soft_jaccard(logits, truth, valid) == pytest.approx(1 - 26 / 76)
    assert losses.dice(logits, truth, valid) == pytest.approx(1 - 51 / 101)


@pytest.mark.parametrize("name", ["binary_cross_entropy", "soft_jaccard", "dice"])
def test_objects_that_are_not_there_do_not_count(name):
    measure, found = getattr(losses, name), batch(objects=2)
    logits = torch.randn(4, 2, 3, 32, 48)
    truth = torch.where(found.masks[:, 1:] == 1, 1, 0)
    one = measure(logits, truth, torch.tensor([[True, False]] * 4))
    both = measure(logits, truth, torch.tensor([[True, True]] * 4))
    assert one != pytest.approx(float(both))
    assert measure(logits, truth, torch.zeros(4, 2, dtype=torch.bool)) == 0


def test_terms_of_a_loss_are_added_by_their_weights():
    found = batch()
    logits = torch.randn(4, 2, 3, 32, 48)
    truth = found.masks[:, 1:]
    terms = [objective(Loss(dice=weight), logits, None, truth, found.valid, 0.0) for weight in (0, 1, 3)]
    assert terms[2] - terms[0] == pytest.approx(3 * float(terms[1] - terms[0]), rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_lowers_the_loss(optimizer):
    torch.manual_seed(0)
    network = build("stm", "nano").train()
    rate = 1e-2 if optimizer == "sgd" else 1e-3
    optimization = Optimization(stage(optimizer=optimizer, learning_rate=rate), network, Execution(), "cpu")
    found, seeds = batch(), [[i] for i in range(4)]
    told = [optimization.step(network, found, step, seeds)[0] for step in range(6)]
    assert told[-1] < told[0]


def test_gradients_of_pieces_add_up_to_those_of_the_batch():
    grads = []
    for execution in (Execution(), Execution(clips_at_once=1)):
        torch.manual_seed(0)
        network = build("stm", "nano").eval()
        optimization = Optimization(stage(optimizer="sgd", learning_rate=1e-9), network, execution, "cpu")
        optimization.step(network, batch(), 0, [[i] for i in range(4)])
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-4 * float(grads[0].abs().max()))


def test_pieces_are_equal_and_no_larger_than_allowed():
    assert [Execution(clips_at_once=n).pieces(12) for n in (1, 2, 3, 5, 12, 50)] == [12, 6, 4, 3, 1, 1]
    assert Execution().pieces(12) == 1


def test_running_average_follows_the_weights_and_is_the_result():
    torch.manual_seed(0)
    network = build("stm", "nano").train()
    optimization = Optimization(stage(ema=0.9), network, Execution(), "cpu")
    expected = [p.detach().clone() for p in network.parameters()]
    for step in range(3):
        optimization.step(network, batch(), step, [[i] for i in range(4)])
        # Early averages are short: they would else remember the start.
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * mean + (1 - decay) * now.detach() for mean, now in zip(expected, network.parameters(), strict=True)
        ]
    for mean, found in zip(expected, optimization.result.parameters(), strict=True):
        assert torch.allclose(mean, found, atol=1e-6)
    assert optimization.result is not network


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_steps_stay_near_full_ones(precision):
    found, seeds, told = batch(), [[i] for i in range(4)], {}
    for name in ("fp32", precision):
        torch.manual_seed(0)
        network = build("stm", "nano").train()
        optimization = Optimization(stage(), network, Execution(precision=name), "cpu")
        told[name] = [optimization.step(network, found, step, seeds)[0] for step in range(4)]
    assert told[precision] == pytest.approx(told["fp32"], rel=0.1)
