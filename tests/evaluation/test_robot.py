"""The robot that draws scribbles over errors."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vosforge.errors import UserError
from vosforge.evaluation.robot import Robot, bezier, longest_lines

SIZE = (90, 120)


def ellipse(x: int, y: int, a: int, b: int, k: int = 1, mask: np.ndarray | None = None) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8) if mask is None else mask.copy()
    return cv2.ellipse(mask, (x, y), (a, b), 20, 0, 360, k, -1)


def pixels(stroke: dict) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns nearest to a stroke's points."""
    columns, rows = np.rint(np.array(stroke["path"]) * SIZE[::-1]).astype(int).T
    return rows, columns


EMPTY = np.zeros(SIZE, np.uint8)
TWO = ellipse(85, 60, 20, 12, k=2, mask=ellipse(35, 40, 25, 15))


@pytest.mark.parametrize(
    "prediction",
    [
        EMPTY,
        ellipse(45, 44, 25, 15),
        np.roll(TWO, 9, axis=1),
        np.array([0, 2, 1], np.uint8)[TWO],
        ellipse(60, 45, 50, 40),
    ],
    ids=["empty", "one, moved", "moved", "swapped", "too large"],
)
def test_strokes_lie_in_the_errors_of_their_object(prediction):
    strokes = Robot().draw(TWO, prediction, [1, 2])
    assert strokes
    for stroke in strokes:
        k, place = stroke["object_id"], pixels(stroke)
        assert (TWO[place] == k).all()
        assert (prediction[place] != k).all()
        assert len(stroke["path"]) == 1000


def test_false_positives_are_crossed_by_background():
    strokes = Robot().draw(EMPTY, ellipse(40, 40, 20, 10), [1])
    assert [stroke["object_id"] for stroke in strokes] == [0]


def test_every_object_with_an_error_is_drawn_once_for_each_part():
    strokes = Robot().draw(TWO, EMPTY, [1, 2])
    assert [stroke["object_id"] for stroke in strokes] == [1, 2]
    parts = ellipse(90, 20, 20, 8, mask=ellipse(30, 60, 20, 12))
    assert [stroke["object_id"] for stroke in Robot().draw(parts, EMPTY, [1])] == [1, 1]


def test_strokes_run_along_the_error():
    bar = EMPTY.copy()
    bar[40:50, 10:110] = 1
    (stroke,) = Robot().draw(bar, EMPTY, [1])
    rows, columns = pixels(stroke)
    assert ((rows >= 43) & (rows <= 46)).all()
    assert columns.max() - columns.min() > 80


def test_without_error_nothing_is_drawn():
    assert Robot().draw(TWO, TWO, [1, 2]) == []
    assert Robot().draw(EMPTY, EMPTY, [1, 2]) == []


@pytest.mark.parametrize(("side", "drawn"), [((1, 1), 0), ((1, 3), 0), ((1, 4), 1), ((1, 9), 1)])
def test_tiny_errors_are_drawn_from_four_pixels_on(side, drawn):
    tiny = EMPTY.copy()
    tiny[20 : 20 + side[0], 30 : 30 + side[1]] = 1
    assert len(Robot().draw(tiny, EMPTY, [1])) == drawn


def test_thin_errors_survive_the_opening():
    # The disc of a large thin error is wider than the error, and shrinks until it fits.
    line = EMPTY.copy()
    line[30:33, 5:115] = 1
    assert len(Robot(kernel=0.9).draw(line, EMPTY, [1])) == 1


def test_corners_of_thin_errors_are_not_cut():
    corner = EMPTY.copy()
    corner[20, 20:60] = corner[20:60, 59] = 1
    (stroke,) = Robot().draw(corner, EMPTY, [1])
    assert (corner[pixels(stroke)] == 1).all()
    assert len(stroke["path"]) < 80


def test_errors_may_touch_the_border():
    full = np.ones(SIZE, np.uint8)
    (stroke,) = Robot().draw(full, EMPTY, [1])
    assert 0 <= np.min(stroke["path"]) <= np.max(stroke["path"]) <= 1


def test_void_is_neither_drawn_nor_crossed():
    truth = ellipse(40, 40, 20, 10, k=255)
    assert Robot().draw(truth, ellipse(40, 40, 20, 10), [1]) == []
    assert [s["object_id"] for s in Robot().draw(truth, EMPTY, [255])] == [255]


def test_the_same_masks_get_the_same_strokes():
    # The medial axis of noise has many ties.
    noise = (np.random.default_rng(0).random(SIZE) > 0.3).astype(np.uint8)
    first, *others = (Robot(kernel=0).draw(noise, EMPTY, [1]) for _ in range(3))
    assert all(other == first for other in others)


def test_lines_follow_the_longest_way_through_a_tree():
    skeleton = np.zeros((9, 9), bool)
    skeleton[4, 1:8] = skeleton[2:4, 4] = True
    skeleton[0, 8] = True
    (line,) = longest_lines(skeleton, 2)
    assert sorted(map(tuple, line.tolist())) == [(x, 4) for x in range(1, 8)]
    assert len(longest_lines(skeleton, 1)) == 2
    assert longest_lines(np.zeros((4, 4), bool)) == []


def test_lines_of_a_ring_pass_all_its_pixels_but_the_opened_edge():
    ring = cv2.circle(np.zeros((30, 30), np.uint8), (15, 15), 10, 1, 1) > 0
    (line,) = longest_lines(ring)
    steps = np.abs(np.diff(line, axis=0)).max(axis=1)
    assert (steps == 1).all()
    assert len(line) > 0.8 * ring.sum()
    assert len({*map(tuple, line.tolist())}) == len(line)


def test_bezier_goes_from_end_to_end_between_its_points():
    points = np.array([[0, 0], [10, 20], [20, 0]])
    curve = bezier(points, 101)
    assert curve.shape == (101, 2)
    assert curve[[0, 50, 100]] == pytest.approx(np.array([[0, 0], [10, 10], [20, 0]]))


def test_bezier_of_many_points_stays_finite_and_longer_lines_stay_as_they_are():
    points = np.stack([np.arange(999), np.zeros(999)], axis=1)
    assert bezier(points, 1000)[:, 0] == pytest.approx(np.linspace(0, 998, 1000))
    assert (bezier(points, 500) == points).all()


@pytest.mark.parametrize("options", [{"kernel": 1.0}, {"largest_radius": -1}, {"least_pixels": 0}, {"points": 1}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="robot: expected"):
        Robot(**options)


def test_masks_of_two_sizes_are_refused():
    with pytest.raises(UserError, match="one size"):
        Robot().draw(EMPTY, EMPTY[:5], [1])
