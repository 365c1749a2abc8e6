"""Reports of the interactive protocol: videos left out, baselines that paint, and the program that plays it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vosforge import networks
from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation.interactive import Rules, evaluate_interactive
from vosforge.evaluation.interactive_methods import skipped_videos, without_videos
from vosforge.evaluation.methods import INTERACTIVE_BASELINES, Brush
from vosforge.evaluation.truth import Truth
from vosforge.propagation import CopyFirstMask, OpticalFlow

ROOT = Path(__file__).resolve().parent.parent.parent
ONE = Rules(interactions=1)
LOST = UserError("video lost: frame 00002 does not decode")


class Half:
    """Knows the upper half of the truth."""

    def __init__(self, clip: Clip):
        self.masks = clip.masks.copy()
        self.masks[:, clip.size[0] // 2 :] = 0

    def interact(self, frame: int, scribbles: list) -> np.ndarray:
        return self.masks


def blank(name: str = "blank") -> Clip:
    return Clip(name, np.zeros((3, 60, 80, 3), np.uint8), np.zeros((3, 60, 80), np.uint8))


def unannotated(clip: Clip) -> Clip:
    return Clip("bare", clip.frames, np.zeros_like(clip.masks), np.zeros(len(clip), bool))


def test_videos_that_cannot_be_played_are_left_out_with_their_reasons(make_clip):
    good, heard = [make_clip("a"), make_clip("b", objects=3)], []
    clips = [LOST, good[0], blank(), good[1], unannotated(good[0])]
    found = evaluate_interactive(Half, clips, rules=ONE, clock=lambda: 0.0, on_video=heard.append)
    assert found.pop("skipped") == [
        "video lost: frame 00002 does not decode",
        "video blank: expected at least one object in its masks, found none",
        "video bare: expected at least one object in its masks, found none",
    ]
    alone = evaluate_interactive(Half, good, rules=ONE, clock=lambda: 0.0)
    assert alone.pop("skipped") == []
    assert found == alone
    assert (found["videos"], found["objects"]) == (2, 4)
    assert heard == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("clips", [[LOST, blank()], [blank(), LOST], [LOST]])
def test_when_nothing_can_be_played_the_first_reason_is_raised(clips):
    told = "video blank: expected at least one object" if isinstance(clips[0], Clip) else str(LOST)
    with pytest.raises(UserError, match=told):
        evaluate_interactive(Half, clips, rules=ONE)


def test_a_video_that_fails_in_a_later_session_does_not_count_at_all(make_clip):
    def first_scribbles(t: int) -> dict:
        lines = [{"path": [[0.1, 0.1], [0.2, 0.2]], "object_id": 1}]
        return {"scribbles": [lines if u == t else [] for u in range(5)], "sequence": "a"}

    class Fragile(Half):
        def interact(self, frame: int, scribbles: list) -> np.ndarray:
            if frame == 3:
                raise UserError("out of memory")
            return super().interact(frame, scribbles)

    scribbles = {"a": [first_scribbles(0), first_scribbles(3)]}
    found = evaluate_interactive(Fragile, [make_clip("a"), make_clip("b")], scribbles, ONE)
    assert {row["sequence"] for row in found["rows"]} == {"b"}
    assert found["skipped"] == ["video a: out of memory"]


def test_a_video_with_broken_scribbles_is_left_out_with_their_error(make_clip):
    scribbles = {"a": UserError("a/001.json: expected JSON")}
    found = evaluate_interactive(Half, [make_clip("a"), make_clip("b")], scribbles, ONE, clock=lambda: 0.0)
    assert found["skipped"] == ["video a: a/001.json: expected JSON"]
    assert found["videos"] == 1


def test_video_that_one_method_cannot_do_counts_for_none(make_clip):
    class Fragile(Half):
        def __init__(self, clip: Clip):
            if clip.name == "b":
                raise UserError("out of memory")
            super().__init__(clip)

    clips = [make_clip("a"), make_clip("b", objects=3), make_clip("c", objects=2)]
    played = {
        name: evaluate_interactive(method, clips, rules=ONE, clock=lambda: 0.0)
        for name, method in (("half", Half), ("fragile", Fragile))
    }
    skipped = skipped_videos(played, ["a", "b", "c"])
    assert skipped == [{"video": "b", "reason": "video b: out of memory"}]
    found = without_videos(played, {"b"}, ONE)
    alone = evaluate_interactive(Half, [clips[0], clips[2]], rules=ONE, clock=lambda: 0.0)
    assert {**found["half"], "skipped": []} == alone
    assert {**found["fragile"], "skipped": []} == alone
    with pytest.raises(UserError, match="no video is left that every method can do; the first: video b: out of memory"):
        without_videos(played, {"a", "b", "c"}, ONE)


@pytest.mark.parametrize("kind", ["layout", "shards"])
def test_truth_gives_an_error_in_place_of_a_video_that_cannot_be_read(
    make_clip, write_davis, build_shards, tmp_path, kind
):
    clips = [make_clip("a"), make_clip("b"), make_clip("c")]
    if kind == "layout":
        (write_davis(tmp_path, *clips) / "Annotations" / "b" / "00002.png").write_bytes(b"no picture")
        told = r"^video b: .*b/00002\.png: expected a mask PNG"
    else:
        shards = build_shards(tmp_path, clips)
        path = tmp_path / shards.videos[1].file
        # The third frame of the second video.
        start = int(shards.videos[1].ranges("image")[2][0])
        data = path.read_bytes()
        path.write_bytes(data[:start] + bytes(200) + data[start + 200 :])
        told = r"^video b: .*:b/00002: expected a JPEG or PNG image"
    first, error, last = Truth(str(tmp_path)).clips()
    assert (first.name, last.name) == ("a", "c")
    assert (last.masks == clips[2].masks).all()
    assert isinstance(error, UserError)
    with pytest.raises(UserError, match=told):
        raise error


def stroke(*points: tuple[float, float], k: int) -> dict:
    return {"path": [list(point) for point in points], "object_id": k}


@pytest.fixture
def frames(make_clip) -> np.ndarray:
    """Five frames of 60 x 80."""
    return make_clip("a").frames


def test_a_stroke_paints_a_band_that_is_carried_to_all_frames(frames):
    masks = Brush(CopyFirstMask(), frames).interact(2, [stroke((0.25, 0.5), (0.75, 0.5), k=7)])
    assert set(np.unique(masks)) == {0, 7}
    assert (masks == masks[2]).all()
    rows, columns = np.nonzero(masks[2])
    # A twentieth of 60 pixels, around the line from (20, 30) to (60, 30).
    assert {29, 30, 31} <= set(rows[columns == 40])
    assert abs(rows - 30).max() <= 2
    assert 17 <= columns.min() <= 20
    assert 60 <= columns.max() <= 63


def test_bands_are_about_as_broad_as_asked_and_at_least_a_pixel(frames):
    strokes = [stroke((0.2, 0.5), (0.8, 0.5), k=1)]
    for breadth, height in ((0.25, 15), (0.1, 6), (0.0001, 1)):
        masks = Brush(CopyFirstMask(), frames, breadth).interact(0, strokes)
        # Thick lines of OpenCV are up to two pixels broader.
        assert height <= (masks[0, :, 40] == 1).sum() <= height + (2 if height > 1 else 0)


def test_a_background_stroke_erases_and_leaves_the_rest(frames):
    brush = Brush(CopyFirstMask(), frames)
    painted = brush.interact(1, [stroke((0.1, 0.5), (0.9, 0.5), k=1), stroke((0.1, 0.8), (0.9, 0.8), k=2)])
    erased = brush.interact(1, [stroke((0.5, 0.4), (0.5, 0.6), k=0)])
    gone = (painted != erased)[1]
    assert (painted[1][gone] == 1).all()
    assert not erased[1][gone].any()
    assert {39, 40, 41} <= set(np.nonzero(gone)[1]) <= {38, 39, 40, 41, 42}
    assert ((erased == 2) == (painted == 2)).all()
    assert (erased == erased[1]).all()


def test_later_strokes_paint_over_earlier_ones(frames):
    brush = Brush(CopyFirstMask(), frames)
    brush.interact(0, [stroke((0.2, 0.5), (0.8, 0.5), k=1)])
    masks = brush.interact(0, [stroke((0.5, 0.2), (0.5, 0.8), k=2)])
    assert masks[0, 30, 40] == 2
    assert masks[0, 30, 20] == 1
    assert masks[0, 15, 40] == 2


def test_brushes_refuse_what_sessions_refuse(frames):
    brush = Brush(OpticalFlow(), frames)
    with pytest.raises(UserError, match="expected an object, found background alone"):
        brush.interact(0, [stroke((0.5, 0.4), (0.5, 0.6), k=0)])
    with pytest.raises(UserError, match="scribbles on frame 0: nothing is drawn"):
        brush.interact(0, [])


@pytest.mark.parametrize("name", INTERACTIVE_BASELINES)
def test_a_second_round_improves_the_baselines(make_clip, name):
    clips = [make_clip("a", step=3), make_clip("bb", objects=2, step=3)]
    found = evaluate_interactive(INTERACTIVE_BASELINES[name], clips, rules=Rules(interactions=2))
    first, second = (means["J&F"] for means in found["interactions"])
    assert 0 < first < second - 0.02
    assert found["skipped"] == []


def test_the_baselines_of_a_clip_do_not_know_its_masks(make_clip):
    clip = make_clip("a")
    strokes = [stroke((0.1, 0.2), (0.2, 0.2), k=1)]
    for make in INTERACTIVE_BASELINES.values():
        told, untold = (
            make(Clip("a", clip.frames, masks)).interact(0, strokes) for masks in (clip.masks, blank().masks[[0] * 5])
        )
        assert (told == untold).all()


def test_flow_follows_a_painted_object_that_a_copy_loses(make_clip):
    clip = make_clip("a", step=3)
    # A broad band over the whole square of frame 0.
    strokes = [stroke((0.175, 0.15), (0.175, 0.2), k=1)]
    found = {}
    for segmenter in (CopyFirstMask(), OpticalFlow()):
        masks = Brush(segmenter, clip.frames, breadth=0.2).interact(0, strokes)
        found[type(segmenter)] = ((masks[-1] == 1) & (clip.masks[-1] == 1)).sum() / (masks[-1] == 1).sum()
    assert found[OpticalFlow] > found[CopyFirstMask] + 0.2


def play(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    command = [sys.executable, ROOT / "jobs" / "evaluate.py", *map(str, arguments), "--protocol", "interactive"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd="/")


@pytest.fixture
def root(make_clip, write_davis, tmp_path) -> Path:
    """Three videos of three frames."""
    return write_davis(tmp_path / "truth", *(make_clip(name, frames=3) for name in "abc"))


@pytest.fixture
def model(tmp_path):
    """Writes an untrained nano network."""

    def model(name: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        networks.save(networks.build(name, "nano"), path)
        return path

    return model


METHODS = {"ours", "brush, copied", "brush, DIS flow"}


def test_program_tells_the_model_beside_brushes(root, model, tmp_path):
    done = play(
        *("--truth", root, "--model", f"ours={model('stm-interactive')}", "--interactions", 2, "--limit", 2),
        *("--json", tmp_path / "r.json"),
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert rows[0] == ["set", "method", "AUC", "J&F@60s", "objects", "videos"]
    assert {row[1] for row in rows[2:]} == METHODS
    assert "skipped" not in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["protocol"] == "interactive"
    assert report["skipped"] == {"truth": []}
    found = report["sets"]["truth"]
    assert set(found) == METHODS
    for row in rows[2:]:
        assert row[2:] == [f"{found[row[1]]['auc']:.3f}", f"{found[row[1]]['at']:.3f}", "2", "2"]
        assert len(found[row[1]]["interactions"]) == 2


def test_program_scores_the_other_videos_and_fails_when_a_mask_is_broken(root, model, tmp_path):
    broken = root / "Annotations" / "b" / "00001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    done = play(
        "--truth",
        root,
        "--model",
        f"ours={model('stm-interactive')}",
        "--interactions",
        1,
        "--json",
        tmp_path / "r.json",
    )
    assert done.returncode == 2
    assert done.stdout.count("skipped b of truth: ") == 1
    assert f"{broken}: expected a mask PNG" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "error: 1 of 3 videos of truth skipped, more than --max-bad 0 of all"
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert [entry["video"] for entry in report["skipped"]["truth"]] == ["b"]
    assert {name: result["videos"] for name, result in report["sets"]["truth"].items()} == dict.fromkeys(METHODS, 2)


def test_program_refuses_a_network_that_takes_masks_alone(root, model):
    done = play("--truth", root, "--model", model("stm"), "--interactions", 1)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "expected a network that takes scribbles (stm-interactive" in line
    assert line.endswith("found one that takes masks alone")
    assert done.stdout == ""
