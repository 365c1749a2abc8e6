"""What killing an ablation costs: nothing that was finished, and no figure changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parent.parent.parent
# Seven policies of memory, two seeds.
SCORES = 14


def command(plan, truth: Path, storage: Path, *more: object) -> list[str]:
    bl30k, _ = plan.data
    return [
        sys.executable, str(ROOT / "jobs" / "ablate.py"), "--network", "stm", "--size", "nano", "--stages", "bl30k",
        "--data", bl30k, "--truth", str(truth), "--storage", str(storage), "--steps", "4", "--batch", "2",
        "--crop", "32", "--seeds", "0", "1", *map(str, more),
    ]  # fmt: skip


def finish(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(storage: Path) -> list[list[float]]:
    (table,) = json.loads((storage / "ablation-stm-nano" / "report.json").read_text())
    return [row["sets"]["truth"]["J&F"] for row in table["rows"]]


@pytest.mark.timeout(1500)
def test_killed_ablation_goes_on_to_the_same_figures_here_and_on_ray(make_plan, build_shards, moving, tmp_path):
    plan, truth = make_plan(), tmp_path / "truth"
    build_shards(truth, [moving(f"t{i}", i + 5) for i in range(2)])
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = {**kept, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    words = command(plan, truth, tmp_path / "here", "--local")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    scores = tmp_path / "here" / "scores"
    while not (scores.is_dir() and list(scores.glob("*.json"))):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.kill()
    process.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.json")}
    assert len(before) < SCORES
    finish(words, environment)
    after = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.json")}
    assert {name: after[name] for name in before} == before
    assert len(after) == SCORES
    here = figures(tmp_path / "here")
    assert all(len(row) == 2 for row in here)

    finish(command(plan, truth, tmp_path / "ray"), environment)
    assert figures(tmp_path / "ray") == [pytest.approx(row, abs=1e-4) for row in here]
