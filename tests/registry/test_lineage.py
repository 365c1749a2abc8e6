from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vosforge import networks
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.propagation import save_model
from vosforge.registry.lineage import find, tags
from vosforge.storage import sha256
from vosforge.tracking import Run
from vosforge.training.plan import claim_run


def network(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    networks.save(networks.build("stm", "nano"), path)
    return path


@pytest.fixture
def run(make_plan, tmp_path) -> Path:
    """The folder of a finished run, with a checkpoint in it."""
    plan = make_plan("run")
    claim_run(str(tmp_path / "runs"), plan, "local")
    folder = tmp_path / "runs" / "run"
    network(folder / "network.safetensors")
    network(folder / "step_00000003" / "network.safetensors", 1)
    (folder / "step_00000003" / "position.json").write_text(
        json.dumps({"stage": 0, "step": 3, "plan": "", "bytes": {}})
    )
    return folder


@pytest.fixture
def sweep(make_plan, run, tmp_path) -> Path:
    """The folder of a finished sweep of two trials that went on from the run's network."""
    folder = tmp_path / "runs" / "sweep"
    trials = []
    for i in range(2):
        plan = replace(make_plan(f"sweep-{i}"), initial=str(run / "network.safetensors"))
        claim_run(str(folder), plan, "ray")
        file = network(folder / f"sweep-{i}" / "network.safetensors", 2 + i)
        trials.append({"trial": str(i), "state": "finished", "network": str(file), "config": {"depth": i}, "step": 8})
    (folder / "trials.json").write_text(json.dumps(trials))
    (folder / "sweep.json").write_text(json.dumps({"data_digests": ["dd"], "validation": {"uri": "v", "digest": "vv"}}))
    network(folder / "network.safetensors", 2)
    return folder


def data_of(tmp_path: Path) -> list[str]:
    return [ShardSet(str(tmp_path / name)).digest for name in ("shards", "videos")]


def test_run_tells_its_data_and_settings(run, tmp_path):
    source = find(str(run), "", tmp_path / "empty")
    assert source.digest == sha256(run / "network.safetensors")
    (member,) = source.lineage["members"]
    assert [entry["digest"] for entry in member["run"]["data"]] == data_of(tmp_path)
    assert (member["run"]["name"], member["run"]["stages"]) == ("run", ["bl30k", "videos"])
    found = tags(source.lineage)
    assert found["vosforge.data"].split() == data_of(tmp_path)
    assert (found["vosforge.runs"], found["vosforge.networks"]) == (str(run), "stm-nano")
    assert "vosforge=" in found["vosforge.code"]


def test_checkpoint_belongs_to_the_run_that_it_lies_in(run, tmp_path):
    source = find(str(run / "step_00000003"), "", tmp_path)
    (member,) = source.lineage["members"]
    assert member["checkpoint"]["step"] == 3
    assert member["run"]["uri"] == str(run)


def test_sweep_is_its_best_trial_and_all_that_it_started_from(sweep, run, tmp_path):
    (member,) = find(str(sweep), "", tmp_path).lineage["members"]
    assert member["trial"] == {"trial": "0", "config": {"depth": 0}, "step": 8}
    assert member["sweep"]["uri"] == str(sweep)
    assert member["run"]["initial"]["run"]["uri"] == str(run)
    assert tags(find(str(sweep), "", tmp_path).lineage)["vosforge.runs"] == f"{sweep}/sweep-0 {run}"


def test_ensemble_leads_back_over_sweep_and_run_to_the_data(sweep, tmp_path):
    files = [sweep / f"sweep-{i}" / "network.safetensors" for i in range(2)]
    folder = save_model(tmp_path / "team", files)
    ways = [
        {"way": "best single", "members": [{"name": "0", "count": 1, "network": str(files[0])}]},
        {"way": "vote", "members": [{"name": str(i), "count": i + 1, "network": str(files[i])} for i in range(2)]},
    ]
    (folder / "ensemble.json").write_text(json.dumps({"kept": "vote", "ways": ways}))
    source = find(str(folder), "", tmp_path)
    members = source.lineage["members"]
    assert [(member["name"], member["count"]) for member in members] == [("0", 1), ("1", 2)]
    assert {member["sweep"]["uri"] for member in members} == {str(sweep)}
    found = tags(source.lineage)
    assert (found["vosforge.kind"], found["vosforge.ensemble"]) == ("ensemble", str(folder))
    assert set(data_of(tmp_path)) <= set(found["vosforge.data"].split())
    # A network that was trained again since is not what went into the ensemble.
    network(files[1], 9)
    again = find(str(folder), "", tmp_path).lineage["members"]
    assert "run" in again[0]
    assert "run" not in again[1]


def test_mlflow_run_leads_to_its_network_and_ensemble(run, tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with Run("one", store, tmp_path) as tracked:
        tracked.tags({"vosforge.network": str(run / "network.safetensors")})
    folder = save_model(tmp_path / "team", [run / "network.safetensors"])
    with Run("team", store, tmp_path) as tracked:
        tracked.tags({"vosforge.model": str(folder)})
    import mlflow

    client = mlflow.MlflowClient(store)
    place = client.get_experiment_by_name("vosforge").experiment_id
    ids = {found.info.run_name: found.info.run_id for found in client.search_runs([place])}
    source = find(ids["one"], store, tmp_path)
    assert source.lineage["members"][0]["run"]["uri"] == str(run)
    assert tags(source.lineage)["vosforge.mlflow_run"] == ids["one"]
    assert find(ids["team"], store, tmp_path).model == folder


def test_folder_without_a_network_is_one_error(tmp_path):
    with pytest.raises(UserError, match="no model; expected a network's file, the folder of a finished run"):
        find(str(tmp_path), "", tmp_path)
    with pytest.raises(UserError, match="no model; expected a network's file"):
        find(str(tmp_path / "nowhere.safetensors"), "", tmp_path)


def test_broken_neighbour_is_named(run, tmp_path):
    (run / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: expected JSON"):
        find(str(run), "", tmp_path)
