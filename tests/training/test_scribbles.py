from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vosforge.clip import Clip
from vosforge.networks import build
from vosforge.training import curricula
from vosforge.training.batches import Batch, make_batch
from vosforge.training.scribbles import Rounds, draw_round, scribble
from vosforge.training.steps import Execution, Optimization


def disc(size: int = 60, radius: int = 20) -> np.ndarray:
    y, x = np.indices((size, size)) - size // 2
    return x**2 + y**2 <= radius**2


@pytest.mark.parametrize("seed", range(6))
def test_line_runs_inside_its_region_and_is_thin_and_connected(seed):
    region = np.zeros((60, 80), bool)
    region[10:30, 5:70] = True
    line = scribble(region, np.random.default_rng(seed))
    assert 4 <= line.sum() <= 3 * region.sum() ** 0.5 + 1
    assert not (line & ~region).any()
    rows, _ = np.nonzero(line)
    # Along the middle of the bar, as its skeleton is, whose ends reach for the corners.
    assert np.abs(rows - 19.5).mean() < 6


def test_line_goes_through_the_largest_part():
    region = np.zeros((60, 120), bool)
    region[5:15, 5:15] = True
    region[10:50, 40:110] = True
    assert all(scribble(region, np.random.default_rng(s))[:, 40:].any() for s in range(5))


def test_regions_of_a_few_pixels_are_left_alone():
    region = np.zeros((20, 20), bool)
    assert not scribble(region, np.random.default_rng(0)).any()
    region[3:5, 3:6] = True
    assert not scribble(region, np.random.default_rng(0)).any()


def test_same_draws_give_the_same_line_and_others_others():
    region = np.zeros((60, 80), bool)
    region[10:30, 5:70] = True
    lines = [scribble(region, np.random.default_rng(s)) for s in (0, 0, 1, 2, 3)]
    assert (lines[0] == lines[1]).all()
    assert any((lines[0] != other).any() for other in lines[2:])


def test_first_round_crosses_objects_and_ground_of_a_frame_that_shows_some():
    truth = np.zeros((4, 60, 60), np.int64)
    truth[2][disc()] = 1
    for seed in range(12):
        frame, planes = draw_round(truth, None, 2, [], np.random.default_rng(seed))
        assert frame == 2
        assert planes.shape == (2, 2, 60, 60)
        positive, negative = planes[0]
        assert positive.any()
        assert (truth[2][positive] == 1).all()
        assert (truth[2][negative] == 0).all()
        assert negative.any()
        # The second object is not there: whatever is drawn speaks against it.
        assert not planes[1, 0].any()
        assert (planes[1, 1] == positive | negative).all()


def test_several_errors_of_a_frame_are_crossed_in_one_round():
    truth = np.zeros((1, 60, 90), np.int64)
    for left in (5, 35, 65):
        truth[0, 10:50, left : left + 20] = 1
    _, planes = draw_round(truth, np.zeros_like(truth), 1, [], np.random.default_rng(0))
    assert all(planes[0, 0][:, left : left + 20].any() for left in (5, 35, 65))


def test_lines_are_of_different_thickness_and_stay_in_their_region():
    truth = np.zeros((1, 60, 60), np.int64)
    truth[0, 27:33] = 1
    drawn = [draw_round(truth, None, 1, [], np.random.default_rng(seed))[1][0, 0] for seed in range(12)]
    assert not any((plane & (truth[0] == 0)).any() for plane in drawn)
    assert len({int(np.median(plane.sum(axis=0)[plane.any(axis=0)])) for plane in drawn}) == 2


def test_later_rounds_cross_what_is_wrong_in_the_worst_untouched_frame():
    truth = np.zeros((3, 60, 60), np.int64)
    truth[:, 10:50, 10:30] = 1
    estimate = truth.copy()
    estimate[1, 10:50, 10:25] = 0  # missed
    estimate[2, 40:58, 40:58] = 1  # too much, less than that
    frame, planes = draw_round(truth, estimate, 1, [0], np.random.default_rng(0))
    assert frame == 1
    assert planes[0, 0][10:50, 10:25].any()
    assert not planes[0, 1].any()
    frame, planes = draw_round(truth, estimate, 1, [0, 1], np.random.default_rng(0))
    assert frame == 2
    assert not planes[0, 0].any()
    assert planes[0, 1][40:58, 40:58].any()


def clips(count: int = 2) -> Batch:
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        frames = rng.integers(0, 90, (4, 64, 64, 3), dtype=np.uint8)
        masks = np.zeros((4, 64, 64), np.uint8)
        for t in range(4):
            box = slice(10 + 3 * t, 34 + 3 * t), slice(8 + 6 * i, 34 + 6 * i)
            frames[t][box] = (220, 60 + 90 * i, 30)
            masks[t][box] = 1
        made.append(Clip(str(i), frames, masks))
    return make_batch(made)


def test_network_answers_every_round_for_all_frames():
    torch.manual_seed(0)
    network, batch = build("stm-interactive", "nano").eval(), clips()
    draw = Rounds(batch.masks, 1, [[0], [1]])
    with torch.no_grad():
        found = network(batch.frames, batch.first_masks, batch.valid, draw=draw, rounds=3)
    assert found.logits.shape == (2, 12, 2, 64, 64)
    assert found.scores is None
    assert [len(set(touched)) for touched in draw.touched] == [3, 3]


def test_steps_in_rounds_teach_a_network_to_follow_scribbles():
    torch.manual_seed(0)
    network, batch = build("stm-interactive", "nano").train(), clips()
    (stage,) = curricula.stages("stm-interactive", "nano", ["images"])
    stage = replace(stage, steps=30, rounds=3, warm_up=0)
    optimization = Optimization(stage, network, Execution(), "cpu")
    told = [optimization.step(network, batch, step, [[step, 0], [step, 1]]) for step in range(30)]
    assert told[-1][0] < told[0][0] / 2
    assert told[-1][1] > 0.6


def test_gradients_reach_the_memory_encoder_from_the_first_round():
    torch.manual_seed(0)
    network, batch = build("stm-interactive", "nano").train(), clips(1)
    found = network(batch.frames, batch.first_masks, batch.valid, draw=Rounds(batch.masks, 1, [[0]]), rounds=1)
    found.logits.sum().backward()
    grads = [p.grad for p in network.memory_encoder.parameters() if p.grad is not None]
    assert any((grad != 0).any() for grad in grads)
