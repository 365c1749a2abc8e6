from __future__ import annotations

import numpy as np
import pytest

from vosforge.evaluation.predictions import open_masks
from vosforge.evaluation.scoring import Scoring, score_set
from vosforge.evaluation.sheets import Drawn, time_sheet, worst_frames, worst_sheet
from vosforge.evaluation.truth import Truth


def scores(**videos: list[float]) -> dict:
    return {
        name: {1: {"J": {"frames": values}, "frame_ids": [f"{t:05d}" for t in range(len(values))]}}
        for name, values in videos.items()
    }


@pytest.fixture
def drawn(make_clip, write_davis, write_masks, tmp_path) -> Drawn:
    """Two videos with a good and a bad method; the bad one loses its object in one frame of each."""
    clips = [make_clip("a", frames=8, step=4), make_clip("b", objects=2, frames=8, step=4)]
    truth = Truth(str(write_davis(tmp_path / "truth", *clips)))
    masks = {"good": open_masks(str(write_masks(tmp_path / "good", *clips)))}
    for clip in clips:
        lost = clip.masks.copy()
        lost[5] = 0
        write_masks(tmp_path / "bad", clip, masks=lost)
    masks["bad"] = open_masks(str(tmp_path / "bad"))
    report, _ = score_set(Scoring(truth, masks))
    return Drawn(truth, masks, {name: result["scores"] for name, result in report.items()})


def test_worst_frame_of_every_video_comes_before_a_second_one():
    found = worst_frames(scores(a=[0.9, 0.1, 0.2, 0.8], b=[0.5, 0.6, 0.7, 0.4]), 2)
    assert found == [("a", "00001"), ("b", "00003")]


def test_further_frames_of_a_video_lie_apart():
    values = [0.9] * 40
    values[10:13], values[30] = [0.2, 0.1, 0.3], 0.5
    assert worst_frames(scores(a=values), 2) == [("a", "00011"), ("a", "00030")]
    assert len(worst_frames(scores(a=values), 99)) == 40


def test_worst_sheet_shows_truth_and_every_method(drawn):
    wide, narrow = (
        worst_sheet(drawn, "bad", 2),
        worst_sheet(Drawn(drawn.truth, {"bad": drawn.masks["bad"]}, drawn.scores), "bad", 2),
    )
    assert wide.dtype == narrow.dtype == np.uint8
    assert wide.shape[1] - narrow.shape[1] > 300
    assert wide.shape[0] == narrow.shape[0]


def test_box_marks_the_error_and_nothing_else(drawn):
    yellow = np.array([255, 225, 0])

    def boxes(name: str) -> int:
        only = Drawn(drawn.truth, {name: drawn.masks[name]}, drawn.scores)
        return int((worst_sheet(only, "bad", 2) == yellow).all(axis=2).sum())

    assert boxes("bad") > 100
    assert boxes("good") == 0


def test_time_sheet_has_a_row_for_truth_and_each_method_of_each_video(drawn):
    one, two = time_sheet(drawn, ["a"]), time_sheet(drawn, ["a", "b"])
    title = 2 * one.shape[0] - two.shape[0]
    assert 20 < title < 60
    assert (one.shape[0] - title) % 3 == 0
    assert one.shape[1] > 5 * 250


def test_truth_without_frames_is_drawn_on_grey(drawn, write_masks, make_clip, tmp_path):
    clips = [make_clip("a", frames=8, step=4), make_clip("b", objects=2, frames=8, step=4)]
    bare = Truth(str(write_masks(tmp_path / "bare", *clips)))
    sheet = worst_sheet(Drawn(bare, drawn.masks, drawn.scores), "bad", 2)
    assert (sheet == 96).all(axis=2).mean() > 0.2
