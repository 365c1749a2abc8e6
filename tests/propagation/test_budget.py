from __future__ import annotations

import math

import pytest
import torch

from vosforge.errors import UserError
from vosforge.propagation import MemoryBank, Propagator
from vosforge.propagation.memory import parse_budget


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (None, (None, None)),
        (24, (24, None)),
        ("512MiB", (None, 2**29)),
        ("1.5 kb", (None, 1500)),
        ("2GB", (None, 2 * 10**9)),
        ("100B", (None, 100)),
    ],
)
def test_budget_is_frames_or_bytes(budget, expected):
    assert parse_budget(budget) == expected


@pytest.mark.parametrize("budget", ["lots", "0MB", "-1MB", 1.5, True])
def test_budget_of_another_form_is_refused(budget):
    with pytest.raises(UserError, match="budget must be a number of frames, or bytes"):
        parse_budget(budget)


@pytest.mark.parametrize("name", ["stm", "stcn", "camn"])
def test_bytes_are_kept_over_all_groups_of_objects(nano, noise, name):
    clip, network = noise(14, 3), nano(name)
    free, bounded = Propagator(network, memory_every=1), Propagator(network, memory_every=1, budget="500KB")
    for t, frame in enumerate(clip.frames):
        for propagator in (free, bounded):
            propagator.step(frame, clip.masks[t] if t < 3 else None)
    assert sum(bank["bytes"] for bank in free.memory) > 500_000
    assert sum(bank["bytes"] for bank in bounded.memory) <= 500_000
    assert all(bank["frames"][-1] == 13 and bank["frames"][0] <= 2 for bank in bounded.memory)
    assert any(bank["evicted"] for bank in bounded.memory)


def test_given_and_latest_frame_stay_whatever_the_budget(nano, noise):
    clip = noise(4, 1)
    propagator = Propagator(nano(), memory_every=1, budget="1B")
    for t, frame in enumerate(clip.frames):
        propagator.step(frame, clip.masks[t] if t == 0 else None)
    assert propagator.memory[0]["frames"] == [0, 3]


def test_worst_frame_goes_first_when_quality_decides():
    bank = MemoryBank(every=1, budget=4, eviction="quality")
    for t, quality in enumerate([1.0, 0.9, 0.3, 0.8, 0.9, 0.7]):
        bank.add(t, (torch.zeros(1),), permanent=t == 0, quality=quality)
    # Frame 1 is older than frame 3, and no better by more than that.
    assert bank.frames == [0, 3, 4, 5]
    assert bank.evicted == [2, 1]


def test_unknown_eviction_is_refused():
    with pytest.raises(UserError, match="unknown eviction 'newest'; valid: oldest, quality"):
        MemoryBank(every=1, eviction="newest")


def test_assessed_quality_decides_what_a_network_forgets(nano, noise):
    clip, network = noise(12, 1), nano("qpm", memory_threshold=-1.0)
    propagator = Propagator(network, memory_every=1, budget=4, eviction="quality")
    quality, held = {}, []
    for t, frame in enumerate(clip.frames):
        propagator.step(frame, clip.masks[t] if t == 0 else None)
        quality[t] = propagator.quality[3]
        held.append(t)
        if len(held) > 4:
            held.remove(min(held[1:-1], key=lambda i: quality[i] + math.exp(i - t)))
        assert propagator.memory[0]["frames"] == held


def test_quality_may_be_relative_to_the_first_predicted_mask(nano, noise):
    clip = noise(4, 1)
    found = {}
    for reference in ("given", "predicted"):
        propagator = Propagator(nano("qpm", quality_reference=reference))
        found[reference] = []
        for t, frame in enumerate(clip.frames):
            propagator.step(frame, clip.masks[t] if t == 0 else None)
            found[reference].append(propagator.quality[3])
    assert found["given"][0] == found["predicted"][0] == found["predicted"][1] == 1
    assert found["given"][1] != 1
    assert found["predicted"][3] == pytest.approx(found["given"][3] / found["given"][1], rel=1e-4)
