"""jobs/evaluate.py as its user runs it."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vosforge import networks
from vosforge.clip import Clip
from vosforge.data.image_files import encode_mask
from vosforge.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def evaluate(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    command = [sys.executable, ROOT / "jobs" / "evaluate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd="/")


@pytest.fixture
def clips(make_clip) -> list[Clip]:
    return [make_clip("a"), make_clip("b", objects=2), make_clip("c")]


@pytest.fixture
def root(clips, write_davis, tmp_path) -> Path:
    return write_davis(tmp_path / "truth", *clips)


@pytest.fixture
def ours(clips, write_masks, tmp_path) -> Path:
    for clip in clips:
        write_masks(tmp_path / "ours", clip, masks=np.roll(clip.masks, 3, axis=2))
    return tmp_path / "ours"


def test_several_masks_are_scored_beside_each_other(root, ours, clips, write_masks, zip_folder, tmp_path):
    theirs = zip_folder(write_masks(tmp_path / "theirs", *clips), tmp_path / "theirs.zip")
    done = evaluate(
        *("--truth", root, "--masks", f"ours={ours}", f"theirs={theirs}", "--no-baselines", "--worst", 2),
        *("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--sheet", tmp_path / "s.png", "--workers", 2),
    )
    assert done.returncode == 0, done.stderr
    assert "| set   | method |   J&F |     J | J recall | J decay |     F | F recall | F decay |" in done.stdout
    assert "| truth | theirs | 1.000 |" in done.stdout
    assert "worst videos of ours on truth" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["sets"]["truth"]["theirs"]["J&F"] == 1
    assert report["sets"]["truth"]["ours"]["scores"]["b"]["2"]["frame_ids"] == ["00001", "00002", "00003"]
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [(row["method"], row["video"], row["object"]) for row in rows[:4]] == [
        ("ours", "a", "1"),
        ("ours", "b", "1"),
        ("ours", "b", "2"),
        ("ours", "c", "1"),
    ]
    assert float(rows[0]["J mean"]) == report["sets"]["truth"]["ours"]["scores"]["a"]["1"]["J"]["mean"]
    for sheet in ("s.png", "s-over-time.png"):
        assert Image.open(tmp_path / sheet).size[0] > 800


def test_bad_video_is_skipped_listed_and_fails_the_job_unless_allowed(root, ours, tmp_path):
    (ours / "b" / "00002.png").unlink()
    command = ("--truth", root, "--masks", ours, "--no-baselines", "--json", tmp_path / "r.json")
    done = evaluate(*command)
    assert done.returncode == 2
    assert f"skipped b of truth: {ours}/b/00002.png: no predicted mask for this frame" in done.stdout
    assert "1 of 3 videos of truth skipped, more than --max-bad 0 of all" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["skipped"]["truth"][0]["video"] == "b"
    allowed = evaluate(*command, "--max-bad", 0.4)
    assert allowed.returncode == 0, allowed.stderr
    assert "skipped b of truth" in allowed.stdout


def test_submission_needs_no_truth_beyond_the_first_masks(root, ours, tmp_path):
    for path in (root / "Annotations").glob("*/*.png"):
        if path.stem != "00000":
            path.unlink()
    command = ("--truth", root, "--masks", ours, "--no-baselines")
    done = evaluate(*command, "--submission", tmp_path / "out.zip")
    assert done.returncode == 0, done.stderr
    assert "15 masks of 3 videos" in done.stdout
    (ours / "c" / "00000.png").unlink()
    lacking = evaluate(*command, "--submission", tmp_path / "lacking.zip")
    assert lacking.returncode == 2
    assert "lacking.zip: not written, the submission is not complete" in lacking.stderr
    assert "| truth |" in lacking.stdout
    unscored = evaluate(*command)
    assert unscored.returncode == 2
    assert "no frame of any object counts under protocol davis2017" in unscored.stderr


def test_youtube_report_is_labelled_and_grouped(root, ours, tmp_path):
    def entries(category: str, objects: int) -> dict:
        return {"objects": {str(k): {"category": category} for k in range(1, objects + 1)}}

    meta = {"a": entries("cat", 1), "b": entries("dog", 2), "c": entries("emu", 1)}
    (root / "meta.json").write_text(json.dumps({"videos": meta}))
    (tmp_path / "seen.json").write_text(json.dumps({"videos": {"x": entries("cat", 1), "y": entries("dog", 1)}}))
    command = ("--truth", root, "--masks", ours, "--no-baselines", "--protocol", "youtube", "--fps", 6)
    done = evaluate(*command, "--seen", tmp_path / "seen.json", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "|     G | J seen | J unseen | F seen | F unseen |" in done.stdout
    assert "offline protocol, not the server's number" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    found = report["sets"]["truth"][str(ours)]
    assert report["label"] == "offline protocol"
    assert found["fps"] == 6
    assert found["G"] == pytest.approx(np.mean([found[f"{m} {g}"] for m in "JF" for g in ("seen", "unseen")]))


def test_network_that_assesses_itself_is_reported_beside_its_true_j(root, tmp_path):
    networks.save(networks.build("qpm", size="nano"), tmp_path / "qpm.safetensors")
    done = evaluate(
        *("--truth", root, "--model", f"qpm={tmp_path / 'qpm.safetensors'}", "--limit", 2),
        *("--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--sheet", tmp_path / "s.png"),
    )
    assert done.returncode == 0, done.stderr
    assert "quality that qpm predicts against true J: correlation" in done.stdout
    assert "| copy first mask |" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())["sets"]["truth"]["qpm"]
    assert len(report["scores"]["b"]["2"]["quality"]) == 3
    assert report["quality"]["masks"] == 9
    assert report["frames_per_second"] > 0
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [bool(row["quality"]) for row in rows] == [row["method"] == "qpm" for row in rows]
    assert (tmp_path / "s.png").exists()


def test_options_that_do_not_go_together_are_one_line(root, ours, tmp_path):
    (root / "a.json").write_text("in the way")
    (tmp_path / "wrong" / "z").mkdir(parents=True)
    (tmp_path / "wrong" / "z" / "0.png").write_bytes(encode_mask(np.zeros((9, 9), np.uint8)))
    for arguments, message in (
        (("--truth", root), "give --model, --masks with predicted masks, or both"),
        (("--truth", root, "--masks", ours, "--protocol", "davis"), "protocol: expected one of davis2017"),
        (("--truth", root, "--masks", f"a={ours}", f"a={root}"), "two entries have one name"),
        (("--truth", root, "--masks", f"a={ours}", f"b={ours}", "--submission", "z.zip"), "--submission: expected one"),
        (("--truth", root, "--masks", ours, "--fps", 25), "--fps: expected 6 or 30, found 25"),
        (("--truth", root, "--masks", f"DIS flow={ours}"), "DIS flow is the name of a baseline"),
        (("--truth", root, "--masks", ours, "--json", root / "a.json" / "b" / "r.json"), "a parent of it is a file"),
        (("--truth", root, "--masks", tmp_path / "wrong"), "expected a folder by video, a and so on, found 1 others"),
    ):
        done = evaluate(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program as a module, which many refusals need not start anew."""
    spec = importlib.util.spec_from_file_location("evaluate_program", ROOT / "jobs" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("protocol", ["davis2017", "interactive"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "--limit: expected at least 1, found 0"),
        ({"limit": -1}, "--limit: expected at least 1, found -1"),
        ({"workers": 0}, "--workers: expected at least 1, found 0"),
        ({"interactions": 0}, "--interactions: expected at least 1, found 0"),
        ({"short_side": 8}, "--short-side: expected at least 16 pixels, found 8"),
        ({"max_bad": 1.5}, "--max-bad: expected a share from 0 to 1, found 1.5"),
        ({"json_file": "."}, r"--json: expected a file to write, found the folder \.; name a file in it"),
        ({"json_file": "new/"}, "--json: expected a file to write, found the folder new/"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(program, protocol, changes, message):
    options = program.Options(["nowhere"], model=["gone.safetensors"], protocol=protocol, **changes)
    with pytest.raises(UserError, match=f"^{message}"):
        program.main(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worst": -3}, "--worst: expected at least 1, found -3"),
        ({"csv_file": "."}, "--csv: expected a file to write, found the folder"),
        ({"submission": Path(".")}, "--submission: expected a file to write, found the folder"),
        ({"sheet": Path(".")}, "--sheet: expected a file to write, found the folder"),
        ({"truth": ["nowhere", "nowhere"]}, "--truth: expected every set once, found one twice"),
    ],
)
def test_outputs_that_are_folders_are_refused_before_anything_is_read(program, changes, message):
    options = program.Options(**{"truth": ["nowhere"], "masks": ["gone"], **changes})
    with pytest.raises(UserError, match=f"^{message}"):
        program.main(options)


def test_sheet_that_would_take_the_place_of_a_folder_is_refused(program, tmp_path):
    (tmp_path / "s.png").mkdir()
    options = program.Options(["nowhere"], masks=["gone"], sheet=tmp_path / "s")
    with pytest.raises(UserError, match=r"^--sheet: expected a file to write, found the folder .*s\.png"):
        program.main(options)


def test_sets_of_one_name_get_a_sheet_each(program, root, ours, tmp_path, capsys):
    other = tmp_path / "other" / "truth"
    shutil.copytree(root, other)
    options = program.Options(
        [str(root), str(other)], masks=[str(ours)], sheet=tmp_path / "s.png", baselines=False, limit=1
    )
    program.main(options)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["s-1-truth.png", "s-2-truth.png"]
    assert f"worst frames of {ours}: {tmp_path}/s-2-truth.png" in capsys.readouterr().out


def test_videos_without_frames_or_with_broken_files_are_skipped_and_listed(program, root, ours, capsys):
    (root / "JPEGImages" / "d").mkdir()
    (ours / "b" / "00002.png").unlink()
    (ours / "b" / "00002.png").symlink_to(root / "gone")
    program.main(program.Options([str(root)], masks=[str(ours)], max_bad=0.5))
    out = capsys.readouterr().out
    assert f"skipped b of truth: {ours}/b/00002.png: cannot be read (No such file or directory)" in out
    assert f"skipped d of truth: {root}/JPEGImages/d: no frames" in out
    # Frames a second are numbers, flush right, and missing for masks.
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert rows[1].endswith("-: |")
    assert rows[-1].endswith("       - |")


def test_meta_that_lacks_a_video_is_named_by_its_path(program, root, ours):
    (root / "meta.json").write_text(json.dumps({"videos": {"x": {"objects": {"1": {"category": "cat"}}}}}))
    options = program.Options([str(root)], masks=[str(ours)], protocol="youtube", baselines=False)
    with pytest.raises(UserError, match=rf"^{root}/meta\.json: no video a; is it the file of this data set"):
        program.main(options)


@pytest.fixture
def model(tmp_path):
    """Writes an untrained nano network."""

    def model(name: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        networks.save(networks.build(name, "nano"), path)
        return path

    return model


def test_interactive_protocol_plays_rounds_with_a_robot(root, model, tmp_path):
    arguments = ("--truth", root, "--protocol", "interactive", "--interactions", 2, "--limit", 2)
    done = evaluate(*arguments, "--model", model("stm-interactive"), "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "J&F@60s" in done.stdout
    results = json.loads((tmp_path / "r.json").read_text())["sets"]["truth"]
    assert {"brush, copied", "brush, DIS flow"} < {*results}
    result = next(iter(results.values()))
    assert (result["videos"], result["objects"], len(result["interactions"])) == (2, 3, 2)
    assert 0 <= result["auc"] <= 1


def test_network_that_takes_no_scribbles_is_refused_by_the_interactive_protocol(root, model):
    done = evaluate("--truth", root, "--protocol", "interactive", "--model", model("stm"))
    assert done.returncode == 2
    assert "scribbles" in done.stderr
    done = evaluate("--truth", root, "--protocol", "interactive", "--masks", root)
    assert done.returncode == 2
    assert "--protocol interactive plays --model" in done.stderr
