from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vosforge.networks import MemoryNetwork, build
from vosforge.training import curricula
from vosforge.training.batches import Batch
from vosforge.training.memory import Memory, activations, estimate, operations
from vosforge.training.stages import Corruption, Stage
from vosforge.training.steps import Execution, Optimization, objective, predict


def nano(network: str, crop: int = 48, **changes) -> tuple[Stage, MemoryNetwork]:
    torch.manual_seed(0)
    (stage,) = curricula.stages(network, "nano", ["videos"])
    sampling = replace(stage.sampling, crop=(crop, crop), objects=2)
    return replace(stage, sampling=sampling, **changes), build(network, "nano").train()


def measured(stage: Stage, network: MemoryNetwork, clips: int) -> int:
    """The most bytes that torch says it held at once in forward and backward, and those of the clips."""
    length, (height, width) = stage.sampling.frames, stage.sampling.crop
    masks = torch.zeros(clips, length, height, width, dtype=torch.long)
    masks[:, :, 5:20, 5:20], masks[:, :, 25:40, 25:40] = 1, 2
    first = torch.stack([(masks[:, 0] == k).float() for k in (1, 2)], dim=1)
    batch = Batch(torch.rand(clips, length, 3, height, width), masks, first, torch.ones(clips, 2, dtype=torch.bool))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        logits, scores = predict(network, batch, stage, [[i] for i in range(clips)])
        truth = masks.repeat(1, stage.rounds, 1, 1) if stage.rounds else masks[:, 1:]
        objective(stage.loss, logits, scores, truth, batch.valid, 1.0).backward()
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak + sum(tensor.nbytes for tensor in (batch.frames, batch.masks, batch.first_masks))


@pytest.mark.parametrize("network", ["stm", "qpm", "stm-interactive"])
def test_estimate_is_near_what_torch_holds(network):
    stage, built = nano(network)
    held = measured(stage, built, 2)
    assert held / 1.5 < activations(stage, built, 2, Execution()) < held * 1.5


def test_operations_are_a_third_of_those_of_a_real_step():
    stage, built = nano("stm")
    masks = torch.zeros(2, stage.sampling.frames, 48, 48, dtype=torch.long)
    masks[:, :, 5:20, 5:20], masks[:, :, 25:40, 25:40] = 1, 2
    first = torch.stack([(masks[:, 0] == k).float() for k in (1, 2)], dim=1)
    batch = Batch(torch.rand(2, 3, 3, 48, 48), masks, first, torch.ones(2, 2, dtype=torch.bool))
    with FlopCounterMode(display=False) as counter:
        logits, scores = predict(built, batch, stage, [[0], [1]])
        forward = counter.get_total_flops()
        objective(stage.loss, logits, scores, masks[:, 1:], batch.valid, 1.0).backward()
    assert operations(stage, built, 2) == forward
    assert counter.get_total_flops() == pytest.approx(3 * forward, rel=0.1)


def test_activations_grow_with_the_clips_of_a_piece():
    stage, built = nano("stm", batch=8)
    one, two, four = (activations(stage, built, clips, Execution()) for clips in (1, 2, 4))
    assert two == pytest.approx(2 * one, rel=0.05)
    assert four == pytest.approx(4 * one, rel=0.05)
    assert estimate(stage, built, 8, Execution(clips_at_once=2)).activations == two


def test_crop_rounds_and_precision_show():
    stage, built = nano("stm")
    plain = activations(stage, built, 1, Execution())
    larger, _ = nano("stm", crop=96)
    assert activations(larger, built, 1, Execution()) > 3.5 * plain
    assert activations(stage, built, 1, Execution(precision="bf16")) < 0.75 * plain
    asked, interactive = nano("stm-interactive")
    once = activations(replace(asked, rounds=1), interactive, 1, Execution())
    assert activations(asked, interactive, 1, Execution()) > 1.3 * once


@pytest.mark.parametrize("network", ["emn", "cfbi+"])
def test_networks_that_look_at_values_are_estimated_too(network):
    stage, built = nano(network, corruption=Corruption(swap=0.5, morph=0.5))
    assert activations(stage, built, 1, Execution()) > 2**20


def test_weights_and_what_is_kept_of_each_add_up():
    stage, built = nano("stm", optimizer="adam", ema=0.9)
    found = estimate(stage, built, 1, Execution())
    weights = sum(tensor.nbytes for tensor in (*built.parameters(), *built.buffers()))
    learnt = sum(p.nbytes for p in built.parameters())
    assert found == Memory(weights, learnt, 2 * learnt, weights, found.activations)
    assert found.total == 2 * weights + 3 * learnt + found.activations
    assert estimate(stage, built, 1, Execution(), workers=2).gradients == 2 * learnt
    assert estimate(replace(stage, optimizer="sgd", ema=0.0), built, 1, Execution()).optimizer == learnt
    assert estimate(replace(stage, ema=0.0), built, 1, Execution()).average == 0


def test_state_of_an_optimizer_is_what_it_comes_to_hold():
    for kind in ("adam", "adamw", "sgd"):
        stage, built = nano("stm", optimizer=kind)
        optimization = Optimization(stage, built, Execution(), "cpu")
        for parameter in built.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimization.optimizer.step()
        state = [x for kept in optimization.optimizer.state.values() for x in kept.values()]
        held = sum(x.nbytes for x in state if x is not None and x.ndim)
        assert estimate(stage, built, 1, Execution()).optimizer == held


def test_network_stays_as_it_was():
    stage, built = nano("stm")
    built.eval()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    estimate(stage, built, 2, Execution())
    assert not built.training
    assert all(p.grad is None for p in built.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())
