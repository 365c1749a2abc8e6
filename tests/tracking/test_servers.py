"""Tracking servers that die, hang, or are told with a password."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from faulty_s3 import s3_server
from mlflow import MlflowClient
from stores import Server

from vosforge.storage import exists, list_names, read_bytes
from vosforge.tracking import Run, first_line, runs
from vosforge.tracking.training import TrainingRun


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def tell(tracked: TrainingRun, steps: range) -> None:
    for step in steps:
        stage = "bl30k" if step <= 4 else "videos"
        tracked.progress({"stage": stage, "step": step, "loss": 1 / step, "J": 0.5, "learning_rate": 0.1})


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.mark.cluster
def test_server_that_is_killed_gets_what_it_missed_when_it_is_back(make_plan, server, tmp_path, caplog):
    plan, folder = make_plan(), tmp_path / "runs"
    unsent = folder / "run" / "unsent.jsonl"
    with TrainingRun(plan, str(folder), server.uri) as tracked:
        tell(tracked, range(1, 4))
        until(lambda: not unsent.exists())
        server.kill()
        tell(tracked, range(4, 7))
    told = [record for record in caplog.records if "incomplete" in record.message]
    assert len(told) == 1
    assert unsent.exists()
    server.start()
    with TrainingRun(plan, str(folder), server.uri) as tracked:
        # The last checkpoint was at step 5.
        tell(tracked, range(6, 9))
        until(lambda: not unsent.exists())
    client = MlflowClient(server.uri)
    found = client.search_runs([client.get_experiment_by_name("vosforge").experiment_id])
    assert sorted(run.info.run_name for run in found) == ["run", "run bl30k", "run videos"]
    assert {run.info.status for run in found} == {"FINISHED"}
    steps = {run.info.run_name: client.get_metric_history(run.info.run_id, "loss") for run in found}
    assert [point.step for point in steps["run"]] == list(range(1, 9))
    assert [point.step for point in steps["run videos"]] == [5, 6, 7, 8]
    assert not unsent.exists()


@pytest.mark.cluster
def test_server_that_never_answers_holds_up_neither_the_run_nor_its_end(make_plan, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
    monkeypatch.setattr(runs, "_CLOSING_SECONDS", 2.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with TrainingRun(make_plan(), str(tmp_path), f"http://127.0.0.1:{silent.getsockname()[1]}") as tracked:
            tell(tracked, range(1, 9))
        assert time.monotonic() - started < 30
    assert "the store does not answer" in caplog.text
    assert '"step": 8' in (tmp_path / "run" / "unsent.jsonl").read_text()


def test_passwords_of_stores_are_neither_told_nor_kept(tmp_path, caplog):
    store = "http://someone:hunter2@127.0.0.1:9"
    unsent = tmp_path / "unsent.jsonl"
    with Run("secret", store, tmp_path, unsent=str(unsent)) as run:
        run.params({"store": store, "data": "s3://bucket/shards?secret_key=hunter2&region=here"})
        run.text(f"at {store}", "notes.txt")
    assert "tracking of run secret is incomplete" in caplog.text
    assert "hunter2" not in caplog.text + unsent.read_text()
    assert "s3://bucket/shards?secret_key=***&region=here" in unsent.read_text()
    assert first_line(OSError(f"{store}/api failed")) == "http://***@127.0.0.1:9/api failed"


def test_artefacts_without_a_place_do_not_keep_numbers_from_the_store(tmp_path, caplog):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    # Artefacts go below a file.
    (tmp_path / "place").write_text("")
    (tmp_path / "picture.png").write_bytes(b"")
    with Run("one", store, tmp_path / "place") as run:
        run.artefact(tmp_path / "picture.png")
        run.metrics(1, {"loss": 2.0})
    client = MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("vosforge").experiment_id])
    assert (found.data.metrics, found.info.status) == ({"loss": 2.0}, "FINISHED")
    assert "tracking of run one is incomplete" in caplog.text


@pytest.mark.cluster
def test_run_on_remote_storage_keeps_previews_and_what_is_unsent_there(make_plan, tmp_path, monkeypatch):
    with s3_server() as address:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        plan, storage = make_plan(), "s3://bucket/runs"
        with TrainingRun(plan, storage, "http://127.0.0.1:9") as tracked:
            tell(tracked, range(1, 4))
            tracked.progress({"stage": "bl30k", "step": 4, "loss": 0.25, "preview": b"a picture"})
        assert exists(f"{storage}/run/unsent.jsonl")
        assert read_bytes(f"{storage}/run/previews/step_00000004.png") == b"a picture"
        store = f"sqlite:///{tmp_path / 'mlflow.db'}"
        with TrainingRun(plan, storage, store) as tracked:
            tell(tracked, range(4, 9))
        assert not exists(f"{storage}/run/unsent.jsonl")
        client = MlflowClient(store)
        found = client.search_runs([client.get_experiment_by_name("vosforge").experiment_id])
        named = {run.info.run_name: run.info.run_id for run in found}
        assert [point.step for point in client.get_metric_history(named["run"], "loss")] == list(range(1, 9))
        assert [file.path for file in client.list_artifacts(named["run bl30k"], "previews")] == [
            "previews/step_00000004.png"
        ]
        assert list_names("s3://bucket/runs/mlartifacts")
