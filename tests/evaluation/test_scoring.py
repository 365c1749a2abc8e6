from __future__ import annotations

import math
import operator
import os

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation import score
from vosforge.evaluation.methods import BASELINES
from vosforge.evaluation.parallel import run_videos
from vosforge.evaluation.predictions import open_masks
from vosforge.evaluation.protocols import PROTOCOLS
from vosforge.evaluation.scoring import Scoring, score_set
from vosforge.evaluation.truth import Truth


@pytest.fixture
def shifted(make_clip, write_davis, write_masks, tmp_path):
    """A truth of three videos, and masks of it that lie three pixels off."""
    clips = [make_clip(name, objects=k) for name, k in (("a", 1), ("b", 2), ("c", 3))]
    truth = Truth(str(write_davis(tmp_path / "truth", *clips)))
    for clip in clips:
        write_masks(tmp_path / "masks", clip, masks=np.roll(clip.masks, 3, axis=2))
    return clips, truth, {"shifted": open_masks(str(tmp_path / "masks"))}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_videos_on_disk_score_as_their_arrays(protocol, shifted):
    clips, truth, masks = shifted
    report, skipped = score_set(Scoring(truth, masks, protocol))
    assert skipped == []
    for clip in clips:
        expected = score(clip.masks, np.roll(clip.masks, 3, axis=2), protocol)
        found = report["shifted"]["scores"][clip.name]
        assert {k: {m: s[m] for m in ("J", "F")} for k, s in found.items()} == expected
        for measures in found.values():
            assert len(measures["frame_ids"]) == len(measures["J"]["frames"])


def test_processes_give_the_report_of_one(shifted):
    _, truth, masks = shifted
    heard: list[int] = []
    alone = score_set(Scoring(truth, masks), workers=1)
    assert score_set(Scoring(truth, masks), workers=2, on_video=heard.append) == alone
    assert heard == [1, 2, 3]


def test_frame_ids_tell_where_values_stand(shifted):
    _, truth, masks = shifted
    report, _ = score_set(Scoring(truth, masks, "youtube"))
    assert report["shifted"]["scores"]["a"][1]["frame_ids"] == ["00001", "00002", "00003", "00004"]


def test_recall_and_decay_are_means_over_objects(shifted):
    _, truth, masks = shifted
    report, _ = score_set(Scoring(truth, masks))
    objects = [s for scores in report["shifted"]["scores"].values() for s in scores.values()]
    assert report["shifted"]["J recall"] == pytest.approx(np.mean([s["J"]["recall"] for s in objects]))
    assert report["shifted"]["F decay"] == pytest.approx(np.mean([s["F"]["decay"] for s in objects]))


def test_video_that_is_bad_for_one_method_is_skipped_for_all(shifted, write_masks, tmp_path):
    clips, truth, masks = shifted
    write_masks(tmp_path / "other", *clips)
    (tmp_path / "other" / "b" / "00002.png").unlink()
    masks["other"] = open_masks(str(tmp_path / "other"))
    report, skipped = score_set(Scoring(truth, masks))
    assert [entry["video"] for entry in skipped] == ["b"]
    assert "other/b/00002.png: no predicted mask" in skipped[0]["reason"]
    assert all(set(result["scores"]) == {"a", "c"} for result in report.values())
    assert report["other"]["J&F"] == 1


def test_no_good_video_is_an_error(shifted, tmp_path):
    _, truth, _ = shifted
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"nothing/a: no predicted masks of this video.*\(and 2 more videos\)"):
        score_set(Scoring(truth, {"none": open_masks(str(tmp_path / "nothing"))}))


def test_baselines_come_first_and_are_timed(shifted):
    _, truth, masks = shifted
    report, _ = score_set(Scoring(truth, masks, baselines=BASELINES))
    assert list(report) == ["copy first mask", "DIS flow", "shifted"]
    assert report["copy first mask"]["frames_per_second"] > 0
    assert report["shifted"]["frames_per_second"] == 0
    assert 0 < report["copy first mask"]["J"] < 1


def test_videos_of_one_frame_and_without_objects_count_nothing(make_clip, write_masks, tmp_path):
    one, empty = make_clip("one", frames=1), make_clip("empty")
    empty = Clip("empty", empty.frames, np.zeros_like(empty.masks))
    folder = write_masks(tmp_path, one, empty)
    for protocol in ("davis2017", "davis2016", "youtube"):
        report, skipped = score_set(Scoring(Truth(str(folder)), {"m": open_masks(str(folder))}, protocol))
        assert (report["m"]["objects"], report["m"]["videos"], skipped) == (0, 0, [])
        assert math.isnan(report["m"]["J&F"])


def test_listed_frames_of_meta_are_those_scored_and_needed(shifted):
    _, truth, masks = shifted
    meta = {name: {"objects": {"1": {"category": "cat", "frames": ["00000", "00002", "00004"]}}} for name in "abc"}
    for name in "abc":
        (masks["shifted"].folder / name / "00003.png").unlink()
    report, skipped = score_set(Scoring(truth, masks, "youtube", meta), seen={"cat"})
    assert skipped == []
    assert report["shifted"]["scores"]["c"][1]["frame_ids"] == ["00002", "00004"]
    assert report["shifted"]["objects seen"] == 3
    assert report["shifted"]["fps"] == 30


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_every_number_is_worked_on_once(workers):
    assert sorted(run_videos(5, operator.neg, workers)) == [(i, -i) for i in range(5)]


def test_errors_of_workers_reach_the_caller():
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"\d: no such folder, zip or shards of masks"):
            list(run_videos(3, open_masks, workers))
    with pytest.raises(UserError, match="at least 1, found 0"):
        list(run_videos(3, operator.neg, 0))


def test_worker_that_dies_is_told():
    with pytest.raises(UserError, match="a worker process died"):
        list(run_videos(3, os._exit, 2))
