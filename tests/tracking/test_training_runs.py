"""Training runs as MLflow shows them, in a real SQLite store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.storage import sha256
from vosforge.tracking.training import TrainingRun
from vosforge.training.loop import fit_locally
from vosforge.training.plan import TrainingPlan, read_plan
from vosforge.training.steps import Diverged

ROOT = Path(__file__).resolve().parents[2]
CURVES = ("loss", "J", "learning_rate", "clips_per_second", "data_wait")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def train_tracked(plan: TrainingPlan, folder: Path, store: str, hear: Callable[[dict], None] = lambda m: None) -> Path:
    """As `jobs/train.py --local` does."""
    with TrainingRun(plan, str(folder), store) as tracked:

        def on_progress(metrics: dict) -> None:
            tracked.progress(metrics)
            hear(metrics)

        network = fit_locally(plan, str(folder), on_progress)
        tracked.network(str(network))
    return network


def runs_in(store: str) -> dict[str, MlflowRun]:
    """Runs by stage, the parent as ""."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("vosforge")
    if experiment is None:
        return {}
    found = client.search_runs([experiment.experiment_id])
    named = {run.data.tags.get("vosforge.stage", ""): run for run in found}
    assert len(named) == len(found), "runs are duplicated"
    return named


def steps_of(store: str, run: MlflowRun, metric: str) -> list[int]:
    return [point.step for point in MlflowClient(store).get_metric_history(run.info.run_id, metric)]


def artefacts(store: str, run: MlflowRun, folder: str | None = None) -> list[str]:
    return sorted(file.path for file in MlflowClient(store).list_artifacts(run.info.run_id, folder))


def test_parent_shows_the_whole_and_each_stage_is_nested_in_it(make_plan, tmp_path, store):
    plan = make_plan(parts={"reader": "topk", "top_k": 20})
    network = train_tracked(plan, tmp_path / "runs", store)
    runs = runs_in(store)
    parent = runs[""]
    assert set(runs) == {"", "bl30k", "videos"}
    assert parent.info.run_name == "run"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {runs[stage].data.tags["mlflow.parentRunId"] for stage in ("bl30k", "videos")} == {parent.info.run_id}
    for metric in CURVES:
        assert steps_of(store, parent, metric) == list(range(1, 9))
        assert steps_of(store, runs["bl30k"], metric) == [1, 2, 3, 4]
        assert steps_of(store, runs["videos"], metric) == [5, 6, 7, 8]
    assert steps_of(store, parent, "probe_J") == [3, 4, 6, 8]
    params = parent.data.params
    assert params["plan"] == plan.digest
    assert params["parts.top_k"] == "20"
    assert [params[f"data.{i}.digest"] for i in (0, 1)] == [ShardSet(uri).digest for uri in plan.data]
    assert {"network", "size", "seed", "code.torch", "code.ray", "code.vosforge"} <= set(params)
    assert runs["videos"].data.params["sampling.still.shear"] == "5"
    assert runs["videos"].data.params["loss.kind"] == "cross-entropy"
    assert artefacts(store, parent) == ["network.safetensors", "plan.json"]
    assert parent.data.tags["vosforge.network"] == str(network)
    assert parent.data.tags["vosforge.network_sha256"] == sha256(network)
    text = MlflowClient(store).download_artifacts(parent.info.run_id, "plan.json", str(tmp_path))
    assert json.loads(Path(text).read_text())["stages"][1]["name"] == "videos"


def test_previews_are_kept_in_the_run_and_shown_with_their_stage(make_plan, tmp_path, store):
    train_tracked(make_plan(), tmp_path / "runs", store)
    runs = runs_in(store)
    assert artefacts(store, runs["bl30k"], "previews") == ["previews/step_00000003.png", "previews/step_00000004.png"]
    assert artefacts(store, runs["videos"], "previews") == ["previews/step_00000006.png", "previews/step_00000008.png"]
    kept = sorted((tmp_path / "runs" / "run" / "previews").iterdir())
    assert [path.name for path in kept] == [f"step_0000000{step}.png" for step in (3, 4, 6, 8)]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in kept)


def command(plan: TrainingPlan, folder: Path) -> list[str]:
    flags = "--local --network stm --size nano --stages bl30k videos --name run --steps 40 --batch 2 --crop 32"
    places = ["--data", *plan.data, "--storage", str(folder), "--checkpoint-every", "5"]
    return [sys.executable, str(ROOT / "jobs" / "train.py"), *flags.split(), *places]


def begin_and_signal(argv: list[str], store: str, number: int, until: Callable[[], bool]) -> int:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not until() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        return process.wait()


@pytest.mark.cluster
def test_killed_run_goes_on_in_the_same_runs_without_gap_or_repetition(make_plan, tmp_path, store):
    """Killed between two checkpoints: in the moment between one and its log, a bare run loses that point."""
    folder = tmp_path / "runs"
    argv = command(make_plan(), folder)

    def reached(step: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            told = re.findall(r'"step": (\d+)', (folder / "run" / "unsent.jsonl").read_text())
            kept = any(int(path.name[5:]) >= step for path in (folder / "run").glob("step_*"))
            return kept and bool(told) and max(map(int, told)) % 5 in (1, 2)
        return False

    assert begin_and_signal(argv, store, signal.SIGKILL, lambda: reached(10)) == -signal.SIGKILL
    assert begin_and_signal(argv, store, signal.SIGTERM, lambda: reached(45)) == 143
    killed = runs_in(store)
    assert (killed[""].info.status, killed["videos"].info.status) == ("KILLED", "KILLED")
    assert killed["bl30k"].info.status == "FINISHED"
    plan, _ = read_plan(str(folder / "run"))
    train_tracked(plan, folder, store)
    runs = runs_in(store)
    assert {stage: run.info.run_id for stage, run in runs.items()} == {
        stage: run.info.run_id for stage, run in killed.items()
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert steps_of(store, runs[""], "loss") == list(range(1, 81))
    assert steps_of(store, runs["bl30k"], "loss") == list(range(1, 41))
    assert steps_of(store, runs["videos"], "loss") == list(range(41, 81))
    assert steps_of(store, runs[""], "system/cpu_utilization_percentage")
    assert runs[""].data.params == killed[""].data.params


def test_curve_of_a_long_stage_is_thinned_but_keeps_its_probes(make_plan, tmp_path, store):
    plan = make_plan(steps=20_000)
    with TrainingRun(plan, str(tmp_path / "runs"), store) as tracked:
        for step in range(1, 96):
            probed = {"probe_J": 0.5} if step == 33 else {}
            tracked.progress({"stage": plan.stages[0].name, "step": step, "loss": 1 / step, **probed})
    runs = runs_in(store)
    for run in (runs[""], runs[plan.stages[0].name]):
        assert steps_of(store, run, "loss") == [10, 20, 30, 33, 40, 50, 60, 70, 80, 90]


def test_training_that_fails_leaves_its_stage_and_the_whole_failed(make_plan, tmp_path, store):
    plan = make_plan(steps=30)
    wild = replace(plan.stages[1], learning_rate=1e30, clip_norm=None, warm_up=0)
    tame = replace(plan.stages[0], steps=2)
    with pytest.raises(Diverged):
        train_tracked(replace(plan, stages=[tame, wild]), tmp_path / "runs", store)
    statuses = {stage: run.info.status for stage, run in runs_in(store).items()}
    assert statuses == {"": "FAILED", "bl30k": "FINISHED", "videos": "FAILED"}


def test_refused_command_leaves_the_run_of_that_name_as_it_is(make_plan, tmp_path, store):
    plan = make_plan(steps=2)
    train_tracked(plan, tmp_path / "runs", store)
    before = runs_in(store)[""]
    with pytest.raises(UserError, match="was started with another seed"):
        train_tracked(replace(plan, seed=1), tmp_path / "runs", store)
    after = runs_in(store)[""]
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert after.data.params == before.data.params


def test_locked_store_gets_everything_when_it_is_free(make_plan, tmp_path, store, caplog):
    MlflowClient(store).search_experiments()
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")

    def free(metrics: dict) -> None:
        if metrics["step"] == 6:
            time.sleep(6)
            lock.execute("COMMIT")

    train_tracked(make_plan(), tmp_path / "runs", store, free)
    lock.close()
    assert len([record for record in caplog.records if "incomplete" in record.message]) <= 1
    assert steps_of(store, runs_in(store)[""], "loss") == list(range(1, 9))
    assert not (tmp_path / "runs" / "run" / "unsent.jsonl").exists()


def test_store_that_cannot_be_written_is_told_once_and_what_it_missed_is_sent_later(make_plan, tmp_path, caplog):
    plan = make_plan()
    missing = tmp_path / "later" / "mlflow.db"
    (tmp_path / "later").write_text("a file where a folder should be")
    train_tracked(plan, tmp_path / "runs", f"sqlite:///{missing}")
    assert len([record for record in caplog.records if "tracking of run run is incomplete" in record.message]) == 1
    assert (tmp_path / "runs" / "run" / "unsent.jsonl").exists()
    (tmp_path / "later").unlink()
    missing.parent.mkdir()
    # The run is finished; the same command sends what is left of it.
    train_tracked(plan, tmp_path / "runs", f"sqlite:///{missing}")
    runs = runs_in(f"sqlite:///{missing}")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert steps_of(f"sqlite:///{missing}", runs[""], "loss") == list(range(1, 9))
    assert artefacts(f"sqlite:///{missing}", runs[""]) == ["network.safetensors", "plan.json"]
    assert not (tmp_path / "runs" / "run" / "unsent.jsonl").exists()
