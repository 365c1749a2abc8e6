"""The demo at a few steps: every link of the chain, as its user would run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    command = [sys.executable, ROOT / "jobs" / "demo.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=590, cwd="/")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo")
    done = demo("--quick", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_every_link_leaves_its_result_and_the_report_tells_them(finished):
    out, printed = finished
    report = json.loads((out / "report.json").read_text())
    methods = {"copy first mask", "DIS flow", "stm-nano", "best-trial", "ensemble"}
    assert {name: set(scores) for name, scores in report["sets"].items()} == {
        "photographs": methods,
        "rendered": methods,
    }
    assert set(report["sets"]["rendered"]["ensemble"]) >= {"J", "F", "J&F"}
    assert report["model"] == "models:/vosforge-demo/1"
    assert {"train", "search", "register", "segment"} <= set(report["seconds"])
    assert {"vosforge", "ray", "torch", "mlflow"} <= set(report["versions"])
    assert "| ensemble" in printed
    assert "| ensemble" in (out / "report.md").read_text()


def test_registered_model_segmented_the_clip_into_palette_masks_and_pictures(finished):
    out, _ = finished
    masks = [Image.open(path) for path in sorted((out / "masks").glob("0*.png"))]
    assert len(masks) == 8
    assert {mask.mode for mask in masks} == {"P"}
    given = np.asarray(Image.open(out / "clip" / "first-mask.png"))
    assert np.array_equal(np.asarray(masks[0]), given)
    assert Image.open(out / "sheet.png").size[0] > 8 * 100
    assert (out / "overlay.mp4").read_bytes()[4:8] == b"ftyp"


def test_second_call_reuses_every_link(finished):
    out, _ = finished
    again = demo("--quick", "--out", out)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == 15


def test_other_options_in_the_same_folder_are_refused(finished):
    out, _ = finished
    other = demo("--out", out)
    assert other.returncode == 2
    assert "was run with other options; add --fresh or choose another --out" in other.stderr


def test_dry_run_prints_the_commands_and_makes_nothing(tmp_path):
    done = demo("--dry-run", "--out", tmp_path / "out")
    assert "python jobs/train.py --network stm --size nano --stages images bl30k" in done.stdout
    assert not (tmp_path / "out").exists()


def test_fresh_deletes_nothing_that_the_demo_did_not_make(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = demo("--quick", "--fresh", "--out", tmp_path)
    assert done.returncode == 2
    assert "--fresh deletes only what the demo made" in done.stderr
    assert (tmp_path / "thesis.txt").exists()


def test_missing_real_video_is_told_before_anything_is_made(tmp_path):
    done = demo("--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "nowhere: no such folder" in done.stderr
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = demo("--quick", "--out", tmp_path / "file" / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "error: " in done.stderr
    assert "choose another folder" in done.stderr
