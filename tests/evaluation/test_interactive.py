"""The protocol of DAVIS interactive."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation import boundary_f, jaccard
from vosforge.evaluation.interactive import (
    Row,
    Rules,
    curve,
    evaluate_interactive,
    find_scribbles,
    summarise_interactions,
)


def squares(name: str = "squares", frames: int = 4, objects: int = 2) -> Clip:
    masks = np.zeros((frames, 40, 60), np.uint8)
    for t in range(frames):
        for k in range(objects):
            masks[t, 5:25, 4 + t + 28 * k : 24 + t + 28 * k] = k + 1
    return Clip(name, np.zeros((*masks.shape, 3), np.uint8), masks)


def stopwatch(*seconds: float) -> Callable[[], float]:
    """A clock that shows these durations one after the other, the last one for ever."""
    each = itertools.chain(seconds, itertools.repeat(seconds[-1]))
    readings = itertools.chain.from_iterable((0.0, taken) for taken in each)
    return lambda: next(readings)


class Perfect:
    """Knows the truth, and keeps what it was asked."""

    def __init__(self, clip: Clip):
        self.clip, self.asked = clip, []

    def interact(self, frame: int, scribbles: list) -> np.ndarray:
        self.asked.append((frame, scribbles))
        return self.clip.masks


class Learner(Perfect):
    """Knows the truth of the frames that were drawn on, and nothing of the others."""

    def interact(self, frame: int, scribbles: list) -> np.ndarray:
        super().interact(frame, scribbles)
        known = np.isin(np.arange(len(self.clip)), [t for t, _ in self.asked])
        return np.where(known[:, None, None], self.clip.masks, 0).astype(np.uint8)


@pytest.mark.parametrize("number", [0, 1])
def test_curves_are_those_of_the_official_service(golden, number):
    case = golden("metrics.json")["interactive"][number]
    found = curve(case["per_interaction_time"], case["metric"], case["avg_nb_objects"] * case["max_t_per_object"], 60)
    assert found.auc == pytest.approx(case["result"]["auc"], abs=1e-9)
    assert found.at == pytest.approx(case["result"]["at"], abs=1e-9)
    assert found.seconds == pytest.approx(case["result"]["time"], abs=1e-9)
    assert found.values == pytest.approx(case["result"]["metric"], abs=1e-9)


@pytest.mark.parametrize("number", [0, 1])
def test_rows_of_thirty_videos_give_the_same_curves(golden, number):
    case = golden("metrics.json")["interactive"][number]
    # The official validation set: 61 objects in 30 videos.
    counts = [3 if v == 0 else 2 for v in range(30)]
    rows = [
        Row(i, f"v{v}", s, k, value, value, seconds)
        for i, (value, seconds) in enumerate(zip(case["metric"], case["per_interaction_time"], strict=True), 1)
        for v, count in enumerate(counts)
        for s in (1, 2, 3)
        for k in range(1, count + 1)
    ]
    found = summarise_interactions(rows)
    assert (found["objects"], found["videos"]) == (61, 30)
    assert found["auc"] == pytest.approx(case["result"]["auc"], abs=1e-9)
    assert found["at"] == pytest.approx(case["result"]["at"], abs=1e-9)


def test_objects_weigh_the_same_and_so_do_the_times_of_videos():
    rows = [Row(1, "a", 1, 1, 0.2, 0.4, 10.0), Row(1, "b", 1, 1, 0.8, 1.0, 40.0), Row(1, "b", 1, 2, 0.8, 1.0, 40.0)]
    found = summarise_interactions(rows, Rules(interactions=1))
    assert found["interactions"][0] == pytest.approx({"J": 0.6, "F": 0.8, "J&F": 0.7, "seconds": 25.0})
    assert found["curve"]["seconds"] == [0, 25, 45]
    assert found["auc"] == pytest.approx((0.7 / 2 * 25 + 0.7 * 20) / 45)


def test_a_perfect_method_has_the_area_of_its_first_seconds():
    clips = [squares("one", objects=1), squares("two", objects=2)]
    found = evaluate_interactive(Perfect, clips, clock=stopwatch(6.0))
    # From 0 to 1 in 6 seconds, then level until 8 * 30 seconds for each of 1.5 objects.
    assert found["auc"] == pytest.approx((3 + 360 - 6) / 360)
    assert found["at"] == 1
    assert [m["J&F"] for m in found["interactions"]] == [1] * 8
    assert [m["seconds"] for m in found["interactions"]] == [6] + [0] * 7
    assert (found["objects"], found["videos"], len(found["rows"])) == (3, 2, 24)


def test_the_robot_begins_on_the_first_frame_that_shows_an_object():
    clip = squares()
    clip.masks[:2] = 0
    sessions = []
    evaluate_interactive(lambda c: sessions.append(Perfect(c)) or sessions[-1], [clip], clock=stopwatch(1.0))
    ((frame, strokes),) = sessions[0].asked
    assert frame == 2
    assert [stroke["object_id"] for stroke in strokes] == [1, 2]


def test_the_worst_frame_not_drawn_on_comes_next():
    class Uneven(Perfect):
        def interact(self, frame: int, scribbles: list) -> np.ndarray:
            super().interact(frame, scribbles)
            masks = self.clip.masks.copy()
            for t, kept in enumerate((20, 5, 15, 10)):
                masks[t, 5 + kept :] = 0
            return masks

    sessions = []
    found = evaluate_interactive(
        lambda c: sessions.append(Uneven(c)) or sessions[-1],
        [squares()],
        rules=Rules(interactions=7),
        clock=stopwatch(1.0),
    )
    # Nothing is wrong on frame 0. When all have been drawn on, the worst is drawn on again.
    assert [frame for frame, _ in sessions[0].asked] == [0, 1, 3, 2, 1, 1, 1]
    assert len(found["interactions"]) == 7


def test_rounds_improve_what_the_method_learns():
    found = evaluate_interactive(Learner, [squares(frames=4)], rules=Rules(interactions=5), clock=stopwatch(2.0))
    assert [m["J"] for m in found["interactions"]] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert [m["seconds"] for m in found["interactions"]] == [2, 2, 2, 2, 0]


def test_rows_are_means_over_all_annotated_frames():
    clip = squares(frames=5)
    clip = Clip(clip.name, clip.frames, clip.masks, np.array([True, True, False, True, True]))

    class Shifted(Perfect):
        def interact(self, frame: int, scribbles: list) -> np.ndarray:
            assert frame != 2
            return np.roll(self.clip.masks, 2, axis=1)

    found = evaluate_interactive(Shifted, [clip], rules=Rules(interactions=6), clock=stopwatch(1.0))
    kept = clip.annotated
    for row in found["rows"]:
        pair = clip.masks[kept] == row["object"], np.roll(clip.masks, 2, axis=1)[kept] == row["object"]
        assert (row["J"], row["F"]) == pytest.approx((jaccard(*pair).mean(), boundary_f(*pair).mean()))


def test_answers_after_the_deadline_are_dropped():
    rules = Rules(interactions=4, seconds=30.0)
    # One object: 120 seconds in all.
    found = evaluate_interactive(Learner, [squares(objects=1)], rules=rules, clock=stopwatch(50.0, 60.0, 20.0))
    assert [m["J"] for m in found["interactions"]] == pytest.approx([0.25, 0.5, 0.5, 0.5])
    assert [m["seconds"] for m in found["interactions"]] == [50, 60, 0, 0]
    late = evaluate_interactive(Learner, [squares(objects=1)], rules=rules, clock=stopwatch(121.0))
    assert (late["auc"], late["at"]) == (0, 0)


def test_more_objects_have_more_time():
    rules = Rules(interactions=4, seconds=30.0)
    found = evaluate_interactive(Learner, [squares(objects=2)], rules=rules, clock=stopwatch(121.0, 10.0))
    assert [m["seconds"] for m in found["interactions"]] == [121, 10, 10, 10]
    assert found["curve"]["seconds"][-1] == 240


def first_scribbles(frame: int, frames: int = 4) -> dict:
    lines = [{"path": [[0.2, 0.3], [0.3, 0.4]], "object_id": 1}]
    return {"scribbles": [lines if t == frame else [] for t in range(frames)], "sequence": "squares"}


def test_the_data_sets_scribbles_come_first_and_each_makes_a_session():
    sessions = []
    found = evaluate_interactive(
        lambda c: sessions.append(Learner(c)) or sessions[-1],
        [squares()],
        {"squares": [first_scribbles(1), first_scribbles(3)], "other": []},
        rules=Rules(interactions=2),
        clock=stopwatch(1.0),
    )
    assert [session.asked[0] for session in sessions] == [
        (1, first_scribbles(1)["scribbles"][1]),
        (3, first_scribbles(3)["scribbles"][3]),
    ]
    assert {(row["interaction"], row["scribble"], row["object"]) for row in found["rows"]} == {
        (i, s, k) for i in (1, 2) for s in (1, 2) for k in (1, 2)
    }


def test_scribble_files_are_found_by_video(tmp_path: Path):
    for name, frame in (("bear/002.json", 2), ("bear/001.json", 0), ("dog/001.json", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(first_scribbles(frame)))
    assert find_scribbles(tmp_path) == {
        "bear": [first_scribbles(0), first_scribbles(2)],
        "dog": [first_scribbles(1)],
    }
    (tmp_path / "dog" / "002.json").write_text("{}")
    found = find_scribbles(tmp_path)
    assert found["bear"] == [first_scribbles(0), first_scribbles(2)]
    assert isinstance(found["dog"], UserError)
    assert "dog/002.json: expected {'scribbles'" in str(found["dog"])
    with pytest.raises(UserError, match="found none"):
        find_scribbles(tmp_path / "bear")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scribbles": {"squares": [first_scribbles(0, frames=9)]}}, "video squares: .*4 frames.*found 9"),
        ({"scribbles": {"squares": [{"scribbles": [[], [], [], []]}]}}, "video squares: .*a stroke"),
        (
            {"clips": [Clip("blank", np.zeros((2, 9, 9, 3), np.uint8), np.zeros((2, 9, 9), np.uint8))]},
            "video blank: .*obj",
        ),
        ({"clips": []}, "at least one annotated video"),
        ({"rules": Rules(interactions=0)}, "at least 1 interaction"),
        ({"rules": Rules(measure="IoU")}, "unknown measure 'IoU'; valid: J&F, J, F"),
    ],
)
def test_what_does_not_fit_is_named(change, told):
    with pytest.raises(UserError, match=told):
        evaluate_interactive(**{"make_session": Perfect, "clips": [squares()], "clock": stopwatch(1.0), **change})


def test_masks_of_another_form_are_named():
    class Wrong(Perfect):
        def interact(self, frame: int, scribbles: list) -> np.ndarray:
            return self.clip.masks[:, :5]

    with pytest.raises(UserError, match=r"video squares: expected masks \(4, 40, 60\) uint8"):
        evaluate_interactive(Wrong, [squares()], clock=stopwatch(1.0))


def test_one_measure_alone_can_make_the_curve():
    found = evaluate_interactive(Learner, [squares()], rules=Rules(interactions=1, measure="J"), clock=stopwatch(3.0))
    assert found["curve"]["values"][-1] == found["interactions"][0]["J"] == pytest.approx(0.25)
