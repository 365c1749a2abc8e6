from __future__ import annotations

import time

import pytest
from mlflow import MlflowClient

from vosforge.errors import UserError
from vosforge.tracking import Run, default_store
from vosforge.tracking.clients import experiment


def logged(store: str, name: str):
    client = MlflowClient(store)
    found = client.get_experiment_by_name("vosforge")
    return client.search_runs([found.experiment_id], f"tags.`vosforge.run` = '{name}'")


def test_run_that_resumes_goes_on_in_the_same_mlflow_run(tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with Run("one", store, tmp_path) as run:
        run.params({"learning_rate": 0.1})
        run.metrics(1, {"loss": 2.0, "stage": "images", "probe/J": 0.25})
    with Run("one", store, tmp_path) as run:
        run.params({"learning_rate": 0.2, "seed": 3})
        run.metrics(2, {"loss": 1.0})
    (only,) = logged(store, "one")
    assert only.info.status == "FINISHED"
    assert only.data.params == {"learning_rate": "0.1", "seed": "3"}
    history = MlflowClient(store).get_metric_history(only.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_run_that_breaks_says_so(tmp_path, error, status):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(error), Run("broken", store, tmp_path):
        raise error
    assert logged(store, "broken")[0].info.status == status


def test_tracking_server_that_is_away_stops_nothing(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    started = time.monotonic()
    with Run("away", "http://127.0.0.1:9") as run:
        for step in range(2000):
            run.metrics(step, {"loss": 1.0})
        logging_took = time.monotonic() - started
    assert logging_took < 5
    assert [record.message for record in caplog.records if "incomplete" in record.message]


def test_store_that_is_away_is_one_error_where_it_is_needed(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        experiment(MlflowClient("http://127.0.0.1:9"), "vosforge", ".")


def test_environment_names_the_store(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_store(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert default_store(tmp_path) == "http://tracker:5000"
