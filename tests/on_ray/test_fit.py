from __future__ import annotations

import os
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from mlflow import MlflowClient

from vosforge.errors import UserError
from vosforge.networks import build, save
from vosforge.tracking.training import TrainingRun
from vosforge.training.loop import fit_locally
from vosforge.training.on_ray import fit


def test_ray_train_gives_the_losses_and_weights_of_the_bare_loop_and_is_tracked(make_plan, tmp_path, monkeypatch):
    """From relative paths, though workers run elsewhere, and whatever becomes of those who listen."""
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    save(build("stm", "nano"), "first.safetensors")
    plan = make_plan()
    plan = replace(plan, data=[os.path.relpath(uri) for uri in plan.data], initial="first.safetensors")
    bare, on_ray = {}, {}

    def failing(metrics):
        tracked.progress(metrics)
        on_ray[metrics["step"]] = metrics["loss"]
        raise RuntimeError("a listener fails")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first = fit_locally(plan, str(tmp_path / "bare"), lambda m: bare.update({m["step"]: m["loss"]}))
    finally:
        torch.set_num_threads(threads)
    with TrainingRun(plan, "ray", store) as tracked:
        second = fit(plan, "ray", failing, threads=1)
        tracked.network(second)
    check_runs(MlflowClient(store))
    assert on_ray == bare
    assert set(bare) == set(range(1, 9))
    expected, found = safetensors.torch.load_file(first), safetensors.torch.load_file(second)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    folders = sorted(path.name for path in (tmp_path / "ray" / plan.name).glob("step_*"))
    # The latest two, by names that a second try would take again.
    assert folders == ["step_00000006", "step_00000008"]

    # A finished run is over, and its name is taken.
    heard = []
    assert fit(plan, "ray", heard.append) == second
    assert heard == []
    with pytest.raises(UserError, match=r"run run in ray was started with another seed; choose another name"):
        fit(replace(plan, seed=1), "ray", heard.append)


def check_runs(client: MlflowClient) -> None:
    """A run of the whole and one of each stage, with curves, previews and the network."""
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
