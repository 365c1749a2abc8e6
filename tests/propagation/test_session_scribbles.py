"""Scribbles of all forms, and what of them is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vosforge.errors import UserError
from vosforge.propagation.scribbles import NOTHING, Drawn, draw, read_scribbles

SIZE = (20, 30)


def stroke(*points: tuple[float, float], k: int = 1) -> dict:
    return {"path": [list(point) for point in points], "object_id": k}


def davis(*strokes: dict, frame: int = 1, frames: int = 3) -> dict:
    return {"scribbles": [list(strokes) if t == frame else [] for t in range(frames)], "sequence": "bear"}


def pixels(drawn: Drawn, k: int) -> list[list[int]]:
    return np.argwhere(drawn.ids == k).tolist()


def test_strokes_are_lines_between_their_points():
    drawn = draw(davis(stroke((0.1, 0.5), (0.3, 0.5)), stroke((0.5, 0.2), k=0)), 1, 3, SIZE)
    assert pixels(drawn, 1) == [[10, x] for x in range(3, 10)]
    assert pixels(drawn, 0) == [[4, 15]]
    assert (drawn.ids == NOTHING).sum() == 20 * 30 - 8


def test_whole_pixels_divided_by_the_size_come_back():
    size = (480, 854)
    points = [(x, y) for x in range(0, 854, 7) for y in (0, 123, 479)]
    for x, y in points:
        assert pixels(draw([stroke((x / 854, y / 480))], 0, 1, size), 1) == [[y, x]]


def test_the_far_border_is_in_the_frame():
    assert pixels(draw([stroke((1.0, 1.0), k=255)], 0, 1, SIZE), 255) == [[19, 29]]


def test_wide_strokes_are_wider():
    thin, wide = (draw([stroke((0.2, 0.5), (0.8, 0.5))], 0, 1, SIZE, width) for width in (1, 3))
    assert (wide.ids == 1).sum() >= 3 * (thin.ids == 1).sum()
    assert set(map(tuple, pixels(thin, 1))) < set(map(tuple, pixels(wide, 1)))


def test_a_stroke_for_one_object_speaks_against_the_others():
    drawn = draw([stroke((0.5, 0.5), k=1), stroke((0.1, 0.1), k=2), stroke((0.9, 0.9), k=0)], 0, 1, SIZE)
    planes = drawn.planes([1, 2, 7])
    assert planes.shape == (3, 2, *SIZE)
    assert planes[:, 0].sum(axis=(1, 2)).tolist() == [1, 1, 0]
    assert planes[:, 1].sum(axis=(1, 2)).tolist() == [2, 2, 3]
    assert not (planes[:, 0] & planes[:, 1]).any()


def test_maps_of_ids_are_taken_as_they_are():
    ids = np.full(SIZE, -1)
    ids[3, 4], ids[5, 6] = 9, 0
    drawn = draw(ids, 0, 1, SIZE)
    assert (pixels(drawn, 9), pixels(drawn, 0)) == ([[3, 4]], [[5, 6]])


def test_planes_of_one_object_deny_it_without_saying_what_is_there():
    planes = np.zeros((2, *SIZE), bool)
    planes[0, 2, 2], planes[1, 8, 8] = True, True
    found = draw({4: planes}, 0, 1, SIZE).planes([4, 5])
    assert np.argwhere(found).tolist() == [[0, 0, 2, 2], [0, 1, 8, 8], [1, 1, 2, 2]]


def test_later_strokes_hold_where_they_disagree():
    first = draw([stroke((0.5, 0.5), k=1), stroke((0.1, 0.5), k=1)], 0, 1, SIZE)
    both = draw([stroke((0.5, 0.5), k=2)], 0, 1, SIZE).over(first)
    assert (pixels(both, 2), pixels(both, 1)) == ([[10, 15]], [[10, 3]])
    denied = np.zeros((2, *SIZE), bool)
    denied[1, 10, 3] = True
    after = draw({1: denied}, 0, 1, SIZE).over(both)
    assert pixels(after, 1) == []
    assert after.planes([1])[0, 1, 10, 3]
    again = draw([stroke((0.1, 0.5), k=1)], 0, 1, SIZE).over(after)
    assert again.planes([1])[0, :, 10, 3].tolist() == [True, False]


def test_thin_strokes_survive_a_smaller_size():
    drawn = draw([stroke((0.5, 0.0), (0.5, 1.0)), stroke((0.05, 0.9), k=0)], 0, 1, (100, 200)).resized((10, 20))
    assert pixels(drawn, 1) == [[y, 10] for y in range(10)]
    assert pixels(drawn, 0) == [[9, 1]]


@pytest.mark.parametrize(
    ("scribbles", "told"),
    [
        (davis(stroke((0.5, 1.2))), "frame 1, stroke 0: expected coordinates in .0, 1., found .0.5, 1.2."),
        (davis(stroke((0.5, 0.2)), stroke((float("nan"), 0.2))), "stroke 1: expected coordinates"),
        (davis(stroke((0.5, 0.2), k=256)), "object_id must be a whole number 0..255, found 256"),
        (davis(stroke((0.5, 0.2), k=-1)), "found -1"),
        (davis(stroke((0.5, 0.2), k="dog")), "found 'dog'"),
        (davis(stroke()), "path must be a list"),
        (davis({"path": [[1, 2, 3]], "object_id": 1}), "path must be a list"),
        (davis({"path": "here", "object_id": 1}), "path must be a list"),
        (davis({"points": [[0.1, 0.1]]}), "expected {'path'"),
        (davis(), "nothing is drawn"),
        ([], "nothing is drawn"),
        (davis(stroke((0.5, 0.5)), frame=2), r"on frames \[2\]"),
        (davis(stroke((0.5, 0.5)), frames=4), "lists for 3 frames, found 4"),
        ({"strokes": []}, "expected {'scribbles'"),
        ({"scribbles": {"1": []}}, "expected {'scribbles'"),
        ("scribbles.json", r"found the path scribbles.json; give read_scribbles\(path\)"),
        (None, "expected {'scribbles'"),
        (np.zeros((4, 4), int), "found .4, 4. int64"),
        (np.zeros(SIZE, np.uint8), "signed"),
        (np.full(SIZE, 300), "found 300..300"),
        (np.full(SIZE, -1), "nothing is drawn"),
        ({1: np.zeros((3, *SIZE), bool)}, "positive and negative planes"),
        ({1: np.ones((2, *SIZE), bool)}, "positive where it is negative"),
        ({0: np.zeros((2, *SIZE), bool)}, "objects 1..255"),
    ],
)
def test_other_scribbles_are_refused_by_name(scribbles, told):
    with pytest.raises(UserError, match=told) as error:
        draw(scribbles, 1, 3, SIZE)
    assert "frame 1" in str(error.value)
    assert "\n" not in str(error.value)


def test_scribble_files_are_read_or_named(tmp_path):
    good, torn, other = (tmp_path / name for name in ("good.json", "torn.json", "other.json"))
    content = davis(stroke((0.1, 0.2)))
    good.write_text(json.dumps(content))
    torn.write_text('{"scribbles": [[')
    other.write_text("[1, 2]")
    assert read_scribbles(good) == content
    for path, told in ((torn, "expected JSON"), (other, "expected {'scribbles'"), (tmp_path / "none.json", "No such")):
        with pytest.raises(UserError, match=told) as error:
            read_scribbles(path)
        assert path.name in str(error.value)
