from __future__ import annotations

from mlflow import MlflowClient

from vosforge.tracking.training import TrainingRun
from vosforge.training.on_ray import fit


def test_workers_of_ray_train_are_tracked_with_previews_and_the_network(make_plan, tmp_path):
    plan, storage = make_plan(), str(tmp_path / "runs")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with TrainingRun(plan, storage, store) as tracked:
        tracked.network(fit(plan, storage, tracked.progress, threads=1))
    client = MlflowClient(store)
    found = client.search_runs([client.get_experiment_by_name("vosforge").experiment_id])
    runs = {run.data.tags.get("vosforge.stage", ""): run.info.run_id for run in found}
    assert set(runs) == {"", "bl30k", "videos"}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert [point.step for point in client.get_metric_history(runs[""], "loss")] == list(range(1, 9))
    assert [point.step for point in client.get_metric_history(runs["videos"], "probe_J")] == [6, 8]
    assert [file.path for file in client.list_artifacts(runs["bl30k"], "previews")] == [
        "previews/step_00000003.png",
        "previews/step_00000004.png",
    ]
    assert "network.safetensors" in {file.path for file in client.list_artifacts(runs[""])}
