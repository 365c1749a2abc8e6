"""What assessed quality does to the memory and to the query (QPM, 2.2 and 2.3)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from vosforge import networks
from vosforge.networks import MemoryNetwork
from vosforge.propagation import Ensemble, Propagator

HEIGHT, WIDTH = 32, 40
QUALITY = pytest.mark.parametrize("quality", ["own", "shared"])


def make_network(name: str = "qpm", **parts: object) -> MemoryNetwork:
    torch.manual_seed(0)
    return networks.build(name, "nano", **parts).eval()


def constant(network: MemoryNetwork, score: float) -> MemoryNetwork:
    """Sets the head's weights so that every mask gets this score, and a relative quality of 1."""
    torch.nn.init.zeros_(network.quality_head.score.weight)
    torch.nn.init.constant_(network.quality_head.score.bias, score)
    return network


@torch.no_grad()
def telling(network: MemoryNetwork) -> MemoryNetwork:
    """Sets the head's weights so that scores differ much from frame to frame and object to object."""
    head = network.quality_head.double()
    rgb = torch.from_numpy(frames(8)).permute(0, 3, 1, 2) / 255.0
    masks = planes(mask_of(1, 2), [1, 2]).expand(8, -1, -1, -1)
    network.double()
    scores = network.assess(rgb.double(), masks.double())
    factor = 0.1 / scores.std()
    head.score.weight.mul_(factor)
    head.score.bias.sub_(scores.mean()).mul_(factor).add_(0.5)
    return network.float()


def frames(count: int) -> np.ndarray:
    """Noise whose brightness changes from frame to frame."""
    rng = np.random.default_rng(0)
    top = rng.integers(60, 256, count)
    return np.stack([rng.integers(0, high, (HEIGHT, WIDTH, 3), np.uint8) for high in top])


def mask_of(*objects: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for i in objects:
        mask[4:26, 12 * i - 8 : 12 * i] = i
    return mask


def planes(mask: np.ndarray, objects: list[int]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(mask == i) for i in objects])[None].float()


def run(propagator, video: np.ndarray, given: dict[int, np.ndarray]) -> list[torch.Tensor]:
    return [propagator.step(frame, given.get(t)) for t, frame in enumerate(video)]


@QUALITY
def test_quality_is_told_relative_to_the_frame_where_a_mask_was_given(quality):
    network = telling(make_network(quality=quality, memorise_margin=False))
    propagator, video, given = Propagator(network), frames(5), {0: mask_of(1), 2: mask_of(2)}
    told, scores = [], []
    for t, frame in enumerate(video):
        answer = propagator.step(frame, given.get(t))
        told.append(propagator.quality)
        rgb = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            scores.append(dict(zip(propagator.objects, network.assess(rgb, answer[None, 1:])[0], strict=True)))
    entered = {1: 0, 2: 2}
    for t, quality in enumerate(told):
        assert quality.keys() == {i for i in entered if entered[i] <= t}
        for i, value in quality.items():
            assert value == pytest.approx(float(scores[t][i] / scores[entered[i]][i]), rel=1e-4)
    assert told[0] == {1: 1.0}
    assert told[2][2] == 1.0
    assert abs(told[4][1] - 1) > 0.01


def test_mask_given_again_is_the_new_measure():
    propagator = Propagator(telling(make_network()))
    run(propagator, frames(4), {0: mask_of(1), 3: mask_of(1)})
    assert propagator.quality == {1: 1.0}


def test_networks_that_assess_nothing_tell_no_quality():
    for network in (make_network("stm"), make_network(quality="none")):
        propagator = Propagator(network)
        run(propagator, frames(2), {0: mask_of(1)})
        assert propagator.quality == {}


def held_by_rule(qualities: list[dict[int, float]], objects: list[int], every: int, threshold: float, given: int):
    """What the memory of objects given at a frame holds after each later one."""
    stay, held = [given], []
    for t in range(given, len(qualities)):
        latest = [] if t == given else [t]
        held.append([*stay, *latest])
        if t > given and t % every == 0 and np.mean([qualities[t][i] for i in objects]) > threshold:
            stay.append(t)
    return held


@QUALITY
@pytest.mark.parametrize("every", [1, 3])
def test_poor_frames_do_not_stay_in_memory_but_serve_as_the_previous_one(quality, every):
    # The middle of what the head says when nothing is left out.
    threshold = 0.0
    for _ in range(2):
        network = telling(make_network(quality=quality, memory_threshold=threshold))
        propagator, qualities, held = Propagator(network, memory_every=every), [], []
        for t, frame in enumerate(frames(14)):
            propagator.step(frame, mask_of(1, 2) if t == 0 else None)
            qualities.append(propagator.quality)
            held.append(propagator.memory[0]["frames"])
        assert held == held_by_rule(qualities, [1, 2], every, threshold, given=0)
        due = [float(np.mean([*q.values()])) for t, q in enumerate(qualities) if t and t % every == 0]
        assert threshold == 0 or min(due) < threshold < max(due)
        threshold = float(np.median(due))


def test_objects_that_entered_apart_are_gated_apart():
    network = telling(make_network(memory_threshold=1.0))
    propagator = Propagator(network, memory_every=1)
    qualities, held = [], {1: [], 2: []}
    for t, frame in enumerate(frames(14)):
        propagator.step(frame, {0: mask_of(1), 2: mask_of(2)}.get(t))
        qualities.append(propagator.quality)
        for bank in propagator.memory:
            held[bank["objects"][0]].append(bank["frames"])
    assert held[1] == held_by_rule(qualities, [1], 1, threshold=1.0, given=0)
    assert held[2] == held_by_rule(qualities, [2], 1, threshold=1.0, given=2)
    assert [t for t in held[1][-1] if t > 2] != [t for t in held[2][-1] if t > 2]


@pytest.mark.parametrize(("threshold", "kept"), [(0.99, [0, 1, 2, 3, 4, 5]), (1.0, [0, 5]), (1.01, [0, 5])])
def test_frames_at_the_threshold_do_not_stay(threshold, kept):
    propagator = Propagator(constant(make_network(memory_threshold=threshold), 0.5), memory_every=1)
    run(propagator, frames(6), {0: mask_of(1, 2)})
    assert propagator.quality == {1: 1.0, 2: 1.0}
    assert propagator.memory[0]["frames"] == kept


def test_given_frames_always_stay():
    propagator = Propagator(constant(make_network(memory_threshold=2.0), 0.5), memory_every=1)
    run(propagator, frames(7), {0: mask_of(1), 3: mask_of(1, 2)})
    assert [(m["objects"], m["frames"]) for m in propagator.memory] == [([1], [0, 3, 6]), ([2], [3, 6])]


def test_poor_frames_leave_a_memory_that_keeps_no_previous_frame():
    propagator = Propagator(constant(make_network(memory_threshold=2.0, memory_policy="every"), 0.5), memory_every=3)
    held = []
    for t, frame in enumerate(frames(9)):
        propagator.step(frame, mask_of(1) if t == 0 else None)
        held.append(propagator.memory[0]["frames"])
    # Frame 3 is poor, and is the previous one for frame 4 alone.
    assert all(3 not in frames for frames in held[4:])


def test_head_that_finds_the_given_mask_worthless_warns_and_leaves_the_gate_open():
    network = constant(make_network(memory_threshold=0.99, prior_threshold=0.99), 0.01)
    propagator = Propagator(network, memory_every=1)
    video = frames(5)
    with pytest.warns(UserWarning, match=r"frame 0: a given mask is assessed below 0\.05; all its masks count as good"):
        propagator.step(video[0], mask_of(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for frame in video[1:]:
            propagator.step(frame)
    assert propagator.quality == {1: 1.0, 2: 1.0}
    assert propagator.memory[0]["frames"] == [0, 1, 2, 3, 4]


def test_usual_scores_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Propagator(constant(make_network(), 0.06)), frames(3), {0: mask_of(1), 1: mask_of(2)})


def test_query_is_enhanced_by_the_given_mask_once_the_previous_one_is_poor():
    answers = {}
    for threshold in (0.5, 0.99, 1.0, 5.0):
        network = constant(make_network(prior_threshold=threshold, memory_threshold=0.0), 0.5)
        answers[threshold] = run(Propagator(network, memory_every=1), frames(4), {0: mask_of(1, 2)})
    previous, first = answers[0.5], answers[1.0]
    assert all((a == b).all() for a, b in zip(previous, answers[0.99], strict=True))
    assert all((a == b).all() for a, b in zip(first, answers[5.0], strict=True))
    # At frame 1 the previous mask is the given one.
    assert (previous[1] == first[1]).all()
    assert (previous[2] - first[2]).abs().max() > 1e-5


def test_what_is_poor_changes_what_follows():
    answers = []
    for threshold in (0.0, 2.0):
        network = constant(make_network(memory_threshold=threshold), 0.5)
        answers.append(run(Propagator(network, memory_every=1), frames(4), {0: mask_of(1)}))
    assert all((a == b).all() for a, b in zip(answers[0][:3], answers[1][:3], strict=True))
    assert (answers[0][3] - answers[1][3]).abs().max() > 1e-5


@pytest.mark.parametrize("margin", [True, False])
def test_frames_before_the_first_mask_are_background(margin):
    propagator = Propagator(make_network(memorise_margin=margin))
    answers = run(propagator, frames(3), {2: mask_of(1)})
    assert all((answer == torch.ones(1, HEIGHT, WIDTH)).all() for answer in answers[:2])
    assert (propagator.objects, propagator.memory[0]["frames"]) == ([1], [2])


def test_members_of_an_ensemble_gate_their_own_memories():
    open_, shut = (constant(make_network(memory_threshold=t), 0.5) for t in (0.5, 2.0))
    members = [Propagator(network, memory_every=1) for network in (open_, shut)]
    run(Ensemble(members), frames(5), {0: mask_of(1)})
    assert [member.memory[0]["frames"] for member in members] == [[0, 1, 2, 3, 4], [0, 4]]
