from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def command(network: str, make_plan, truth: Path, storage: Path, *more: object) -> list[str]:
    """An ablation of two steps a stage on tiny shards, measured on others."""
    bl30k, videos = make_plan().data
    return [
        sys.executable, str(ROOT / "jobs" / "ablate.py"), "--network", network, "--size", "nano",
        "--data", bl30k, videos, "--truth", str(truth), "--storage", str(storage), "--steps", "2", "--batch", "2",
        "--crop", "32", "--local", *map(str, more),
    ]  # fmt: skip


@pytest.fixture
def truth(build_shards, moving, tmp_path) -> Path:
    build_shards(tmp_path / "truth", [moving(f"t{i}", i + 5) for i in range(2)])
    return tmp_path / "truth"


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    return subprocess.run(words, capture_output=True, text=True, timeout=500, env=environment)


@pytest.mark.cluster
def test_tables_stand_beside_the_papers_and_a_repeated_command_does_nothing_again(make_plan, truth, tmp_path):
    words = command("stm", make_plan, truth, tmp_path / "runs", "--stages", "bl30k", "--seeds", 0, 1)
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 stages to train, 4 steps; without sharing 28, so 86% saved" in done.stdout
    report = tmp_path / "runs" / "ablation-stm-nano" / "report.md"
    assert "| first and previous " in report.read_text()
    assert "mean ± standard deviation over seeds 0 1" in report.read_text()
    (table,) = json.loads(report.with_name("report.json").read_text())
    assert [len(row["sets"]["truth"]["J&F"]) for row in table["rows"]] == [2] * 7

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "scores").iterdir()}
    again = run(words, tmp_path)
    assert again.returncode == 0, again.stderr
    assert "loss" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "scores").iterdir()} == before

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "vosforge"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id], max_results=500)}
    assert "ablation-stm-nano" in runs
    row = runs["ablation-stm-nano table-1-row-3"]
    assert row.data.params["memory"] == "first and previous"
    assert row.data.metrics["truth/JF_mean"] == pytest.approx(table["rows"][2]["sets"]["truth"]["mean"])
    assert sum(name.startswith("stm-nano-bl30k-") and " " not in name for name in runs) == 2
    assert {r.info.status for r in runs.values()} == {"FINISHED"}


@pytest.mark.cluster
def test_run_that_diverges_leaves_the_other_rows(make_plan, truth, tmp_path):
    words = command(
        "skn", make_plan, truth, tmp_path / "runs", "--stages", "bl30k", "--seeds", 0, "--learning-rate", 1e30
    )
    done = run(words, tmp_path)
    assert done.returncode == 2
    assert "error: nothing could be measured; the first reason: stage bl30k, step" in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_tells_what_would_be_done(make_plan, truth, tmp_path):
    done = run(command("camn", make_plan, truth, tmp_path / "runs", "--dry-run"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "CAMN (2021) table 2: 8 rows, 3 seeds" in done.stdout
    assert "18 stages to train" in done.stdout
    assert not (tmp_path / "runs").exists()
