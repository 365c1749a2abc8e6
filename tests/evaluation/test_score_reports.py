from __future__ import annotations

import math

import numpy as np
import pytest

from vosforge.evaluation import score, summarise
from vosforge.evaluation.report import table


def masks(frames: int, objects: int) -> np.ndarray:
    out = np.zeros((frames, 12, 40), np.uint8)
    for k in range(objects):
        out[:, 2:10, 10 * k : 10 * k + 6] = k + 1
    return out


def test_every_object_weighs_the_same_whatever_its_video():
    crowd, alone = masks(5, 3), masks(5, 1)
    summary = summarise({"crowd": score(crowd, crowd), "alone": score(alone, np.zeros_like(alone))})
    assert summary == {"J": 0.75, "F": 0.75, "J&F": 0.75, "objects": 4, "videos": 2}


def test_j_and_f_is_the_mean_of_the_two():
    truth = masks(4, 1)
    found = score(truth, np.roll(truth, 1, axis=2))
    summary = summarise({"video": found})
    assert summary["J"] == found[1]["J"]["mean"] < summary["F"]
    assert summary["J&F"] == pytest.approx((found[1]["J"]["mean"] + found[1]["F"]["mean"]) / 2)


def test_objects_without_a_counted_frame_do_not_weigh():
    long, short, empty = masks(5, 2), masks(2, 3), masks(5, 0)
    scores = {"long": score(long, long), "short": score(short, short), "empty": score(empty, empty)}
    assert summarise(scores) == {"J": 1, "F": 1, "J&F": 1, "objects": 2, "videos": 1}


def test_summary_of_nothing_is_nan():
    summary = summarise({})
    assert (summary["objects"], summary["videos"]) == (0, 0)
    assert all(math.isnan(summary[k]) for k in ("J", "F", "J&F"))


def test_table_aligns_and_rounds():
    rows = [
        {"video": "bear", "J": 0.98765, "frames": 80, "unused": 1},
        {"video": "bike-packing", "J": np.float32(0.5), "frames": 7},
    ]
    assert table(rows, ["video", "J", "frames"]).splitlines() == [
        "| video        |     J | frames |",
        "| ------------ | ----: | -----: |",
        "| bear         | 0.988 |     80 |",
        "| bike-packing | 0.500 |      7 |",
    ]


def test_table_marks_what_is_missing_and_escapes_bars():
    text = table([{"name": "a|b", "J": math.nan}, {"name": None}], ["name", "J"])
    assert text.splitlines()[2:] == ["| a\\|b |   - |", "| -    |   - |"]


def test_table_without_rows_is_a_heading():
    assert table([], ["video", "J"]).splitlines() == ["| video | J   |", "| ----- | --- |"]
