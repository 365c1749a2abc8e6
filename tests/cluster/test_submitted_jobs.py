"""Jobs as users submit them, to a cluster that has only third-party packages, and to one that has vosforge too."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from heads import BIN

pytestmark = pytest.mark.cluster


TELLING = """
import json, os, platform, importlib.util, torch, cv2, ray.data, ray.train, mlflow, vosforge
hugging_face = importlib.util.find_spec("datasets")
print("TOLD", json.dumps({
    "system": platform.system(),
    "package": vosforge.__file__,
    "shadowed": hugging_face is not None and (hugging_face.origin or "").startswith(os.getcwd()),
    "folder": sorted(os.listdir()),
}))
"""
WAITING = """
import pathlib, sys, time
print("BEGUN")
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.1)
"""


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `TELLING` printed."""
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    return json.loads(line.removeprefix("TOLD "))


def test_submitted_job_imports_the_libraries_and_the_shipped_package(head):
    found = told(head.submit("python", "-c", TELLING))
    assert found["system"] == "Linux"
    assert "py_modules_files" in found["package"]
    assert not found["shadowed"]
    assert {"datasets", "jobs", "platform", "tuning"} <= set(found["folder"])
    assert not {".git", ".venv", "docs", "runs", "shards", "tests"} & set(found["folder"])


def test_job_submitted_to_nodes_with_vosforge_ships_nothing_or_its_programs(installed, tmp_path):
    head, place = installed
    assert told(head.submit("python", "-c", TELLING, shipped=()))["package"] == f"{place}/vosforge/__init__.py"
    shards = tmp_path / "shards"
    built = head.submit(
        "python", "bl30k.py", "--videos", "2", "--out", str(shards), "--frames", "2", "--height", "32", "--width", "32",
        shipped=("--working-dir", "datasets"),
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    assert (shards / "manifest.json").is_file()


def test_what_a_job_prints_comes_while_it_runs(head, tmp_path):
    command = head.submission("python", "-u", "-c", WAITING, str(tmp_path / "go"), shipped=())
    job = subprocess.Popen([BIN / "ray", *command], stdout=subprocess.PIPE, text=True, env=head.environment)
    assert "BEGUN\n" in job.stdout
    assert job.poll() is None
    (tmp_path / "go").touch()
    job.communicate(timeout=120)
    assert job.returncode == 0


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
