from __future__ import annotations

import math

import numpy as np
import pytest

from vosforge.errors import UserError
from vosforge.evaluation import boundary_f, jaccard
from vosforge.evaluation.metrics import statistics


def plain_f(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    """F of one small frame from the definition: every boundary pixel against every other."""

    def boundary(mask: np.ndarray) -> np.ndarray:
        height, width = mask.shape
        points = []
        for y in range(height):
            for x in range(width):
                near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
                if any(mask[v, u] != mask[y, x] for v, u in near if v < height and u < width):
                    points.append((y, x))
        return np.array(points).reshape(-1, 2)

    wanted, given = boundary(truth), boundary(prediction)
    if not len(wanted) or not len(given):
        return float(len(wanted) == len(given))
    near = ((wanted[:, None] - given[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(0).mean(), near.any(1).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_disc_pairs_score_as_in_the_official_code(formulas, golden):
    for case in golden("metrics.json")["cases"]:
        height, width = case["h"], case["w"]
        truth, prediction = (
            np.zeros((1, height, width), bool)
            if case[side] is None
            else formulas.disc(height, width, *case[side])[None]
            for side in ("gt", "pred")
        )
        name = f"{case['name']} at {height}x{width}"
        assert jaccard(truth, prediction)[0] == pytest.approx(case["J"], abs=1e-9), name
        assert boundary_f(truth, prediction)[0] == pytest.approx(case["F"], abs=1e-9), name


@pytest.mark.parametrize("radius", [1, 2, 3, 5, 8])
def test_boundary_f_follows_the_definition_up_to_the_frame_s_border(radius):
    rng = np.random.default_rng(radius)
    for _ in range(40):
        height, width = rng.integers(1, 24, 2)
        density = rng.choice([0.02, 0.3, 0.9])
        pair = rng.random((2, height, width)) < density
        pair[:, : rng.integers(0, height + 1)] = False
        found = boundary_f(pair[:1], pair[1:], bound_threshold=radius)[0]
        assert found == pytest.approx(plain_f(*pair, radius), abs=1e-12), (height, width, density)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 8, 9, 12])
def test_match_radius_is_a_disc_without_holes(radius):
    truth = np.zeros((12, 12), bool)
    truth[0, 0] = True  # in this corner alone the boundary is a single pixel
    for place in np.ndindex(truth.shape):
        prediction = np.zeros_like(truth)
        prediction[place] = True
        found = boundary_f(truth[None], prediction[None], bound_threshold=radius)[0]
        assert found == pytest.approx(plain_f(truth, prediction, radius), abs=1e-12), place


def test_each_frame_is_scored_alone():
    rng = np.random.default_rng(0)
    truth, prediction = rng.random((2, 5, 20, 30)) < 0.1
    for metric in (jaccard, boundary_f):
        together = metric(truth, prediction)
        assert together.shape == (5,)
        assert together.tolist() == [metric(truth[t : t + 1], prediction[t : t + 1])[0] for t in range(5)]


def test_two_empty_masks_agree_and_one_empty_mask_scores_nothing():
    empty, full = np.zeros((1, 8, 9), bool), np.zeros((1, 8, 9), bool)
    full[0, 2:5, 3:6] = True
    for metric in (jaccard, boundary_f):
        assert metric(empty, empty) == 1
        assert metric(full, empty) == 0
        assert metric(empty, full) == 0


def test_mask_that_fills_the_frame_has_no_boundary():
    full, empty = np.ones((1, 8, 9), bool), np.zeros((1, 8, 9), bool)
    assert jaccard(full, empty) == 0
    assert boundary_f(full, empty) == 1


@pytest.mark.parametrize("place", [(0, 0), (0, 29), (19, 0), (19, 29), (10, 15)])
def test_single_pixel_matches_itself_and_nothing_far(place):
    truth, far = np.zeros((2, 1, 20, 30), bool)
    truth[0][place] = True
    far[0, (place[0] + 10) % 20, (place[1] + 15) % 30] = True
    assert jaccard(truth, truth) == boundary_f(truth, truth) == 1
    assert jaccard(truth, far) == boundary_f(truth, far) == 0


def test_object_moved_within_the_radius_keeps_its_contour():
    truth = np.zeros((1, 100, 100), bool)
    truth[0, 40:60, 40:60] = True
    assert boundary_f(truth, np.roll(truth, 2, axis=2)) == 1
    assert boundary_f(truth, np.roll(truth, 3, axis=2)) < 1
    assert boundary_f(truth, np.roll(truth, 3, axis=2), bound_threshold=3) == 1


def test_any_value_but_zero_is_foreground():
    rng = np.random.default_rng(1)
    truth, prediction = rng.integers(0, 3, (2, 2, 16, 16))
    for metric in (jaccard, boundary_f):
        assert metric(truth, prediction).tolist() == metric(truth > 0, prediction > 0).tolist()


def test_no_frames_give_no_values():
    none = np.zeros((0, 8, 9), bool)
    assert jaccard(none, none).shape == boundary_f(none, none).shape == (0,)


def test_differing_shapes_are_refused():
    for metric in (jaccard, boundary_f):
        with pytest.raises(UserError, match=r"\(1, 8, 9\) and \(1, 9, 8\)"):
            metric(np.zeros((1, 8, 9), bool), np.zeros((1, 9, 8), bool))


@pytest.mark.parametrize("threshold", [-0.1, math.nan, math.inf])
def test_senseless_threshold_is_refused(threshold):
    with pytest.raises(UserError, match="bound_threshold"):
        boundary_f(np.zeros((1, 8, 9), bool), np.zeros((1, 8, 9), bool), threshold)


def test_statistics_are_those_of_the_official_code_where_it_is_right(golden):
    for case in golden("metrics.json")["statistics"]:
        found = statistics(0.6 + 0.35 * np.sin(0.37 * np.arange(case["n"])))
        assert found["mean"] == pytest.approx(case["mean"], abs=1e-9)
        assert found["recall"] == pytest.approx(case["recall"], abs=1e-9)
        if case["n"] <= 255:
            assert found["decay"] == pytest.approx(case["decay"], abs=1e-9)


def test_decay_is_right_above_255_frames():
    values = 0.6 + 0.35 * np.sin(0.37 * np.arange(300))
    assert statistics(values)["decay"] == pytest.approx(values[:76].mean() - values[224:].mean(), abs=1e-12)
    falling = np.linspace(1, 0, 3000)
    assert statistics(falling)["decay"] == pytest.approx(0.75, abs=1e-3)


def test_statistics_of_nothing_are_nan():
    assert all(math.isnan(v) for v in statistics([]).values())
    assert all(math.isnan(v) for v in statistics([math.nan, math.nan]).values())


def test_frames_without_a_score_do_not_count():
    assert statistics([math.nan, 0.9, 0.2, math.nan]) == statistics([0.9, 0.2])
    assert statistics([0.5, 0.75])["recall"] == 0.5


def test_one_value_has_no_decay():
    assert statistics([0.75]) == {"mean": 0.75, "recall": 1.0, "decay": 0.0}
