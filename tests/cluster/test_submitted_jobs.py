"""Jobs as users submit them: from the repository's root, to a cluster that has only third-party packages."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.cluster


def test_submitted_job_imports_the_libraries_and_the_shipped_package(head):
    code = (
        "import platform, torch, cv2, ray.data, ray.train, mlflow, vosforge; "
        "print('IMPORTED', platform.system(), vosforge.__file__)"
    )
    done = head.submit("python", "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "IMPORTED Linux" in done.stdout
    assert "py_modules_files" in done.stdout


def test_failing_job_gives_its_one_line_and_a_status(head, tmp_path):
    done = head.submit(
        "python", "jobs/train.py", "--network", "stm", "--size", "nano", "--stages", "images",
        "--data", str(tmp_path), "--storage", str(tmp_path / "runs"),
    )  # fmt: skip
    assert done.returncode != 0
    assert f"error: {tmp_path}: no manifest.json, so no finished shards" in done.stdout


def test_relative_storage_is_refused_because_it_would_vanish(head):
    done = head.submit("python", "datasets/bl30k.py", "--videos", "1", "--out", "shards")
    assert done.returncode != 0
    assert "error: --out shards: a submitted job needs an absolute path" in done.stdout


def test_training_runs_submitted_with_two_workers(head, tmp_path):
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    built = head.submit(
        "python", "datasets/bl30k.py", "--videos", "4", "--out", str(shards), "--frames", "4", "--height", "64",
        "--width", "64", "--speed", "4",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    done = head.submit(
        "python", "jobs/train.py", "--network", "stm", "--size", "nano", "--stages", "bl30k", "--data", str(shards),
        "--storage", str(runs), "--steps", "4", "--batch", "4", "--crop", "48", "--workers", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (runs / "stm-nano" / "network.safetensors").is_file()


def test_demo_runs_submitted(head, tmp_path):
    done = head.submit("python", "jobs/demo.py", "--quick", "--out", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "ensemble" in json.loads((tmp_path / "demo" / "report.json").read_text())["sets"]["photographs"]
