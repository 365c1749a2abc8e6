"""Small sweeps on a local cluster: what trials share, what stops one, and what is told of all."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray import tune

from vosforge.errors import UserError
from vosforge.networks import describe
from vosforge.search.members import gather
from vosforge.search.plots import draw_sweep
from vosforge.search.sweeps import AllFailed, run_sweep
from vosforge.search.trials import Resources, Sweep
from vosforge.tracking.sweeps import SweepRun


@pytest.fixture
def sweep(make_plan, tmp_path, build_shards, moving) -> Sweep:
    build_shards(tmp_path / "validation", [moving(f"v{i}", i) for i in range(4)])
    plan = make_plan("base", probe_clips=0)
    storage = str(tmp_path / "runs")
    return Sweep("sweep", plan, str(tmp_path / "validation"), storage, 3, search="grid", scheduler="asha", rungs=2)


def test_trials_share_their_first_stage_and_one_that_diverges_fails_alone(sweep, tmp_path):
    """A grid of three: two that differ in the last stage's rate, of which one meets NaN, and in the memory at test."""
    space = {
        "last.learning_rate": tune.choice([1e-3, 1e25]),
        "memory_every": tune.grid_search([1, 5]),
        "reader": "topk",
        "top_k": 9,
        "sigma": 5.0,
    }
    store, heard = f"sqlite:///{tmp_path / 'mlflow.db'}", []
    with SweepRun("sweep", sweep.storage, store, {"trials": 3}, 8) as tracked:

        def hear(news):
            heard.append(news)
            tracked.progress(news)

        found = run_sweep(sweep, space, hear)
        pictures = draw_sweep(found, "JF_mean", f"{sweep.storage}/sweep")
        tracked.finish(found, "JF_mean", pictures)

    by_rate = {1e-3: [], 1e25: []}
    for trial in found:
        assert trial["config"].keys() == {"last.learning_rate", "memory_every", "reader", "top_k"}
        by_rate[trial["config"]["last.learning_rate"]].append(trial)
    assert {trial["state"] for trial in by_rate[1e25]} <= {"failed", "stopped"}
    failed = [trial for trial in found if trial["state"] == "failed"]
    assert failed
    assert "stage videos" in failed[0]["error"]
    assert "\n" not in failed[0]["error"]
    best = next(trial for trial in found if trial["state"] == "finished")
    assert (best["config"]["last.learning_rate"], best["step"]) == (1e-3, 8)
    # The end of the shared stage; of three steps between checkpoints, the first multiple after half of all; the end.
    assert [rung["step"] for rung in best["rungs"]] == [4, 6, 8]
    assert describe(best["network"])["parts"]["top_k"] == 9
    assert {news["rung"] for news in heard if "rung" in news} >= {4, 8}

    # Their first stage was trained once, and each of its steps told once.
    warm = [news for news in heard if "warm_start" in news]
    assert len({news["warm_start"] for news in warm}) == 1
    assert sorted(news["reused"] for news in warm) == [False, True, True]
    assert sorted(news["step"] for news in heard if "loss" in news and news["stage"] == "bl30k") == [1, 2, 3, 3, 4, 4]

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("vosforge").experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {run.data.tags["vosforge.stage"]: run for run in runs if run is not parent}
    assert set(children) == {trial["trial"] for trial in found}
    assert children[failed[0]["trial"]].info.status == "FAILED"
    assert "stage videos" in children[failed[0]["trial"]].data.tags["reason"]
    assert children[best["trial"]].data.params["top_k"] == "9"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {
        "trials.json",
        "parallel-coordinates.png",
    }

    # A finished sweep is over, and its networks are candidates.
    assert run_sweep(sweep, space, heard.append) == json.loads(json.dumps(found))
    assert best["trial"] in [one.name for one in gather([f"{sweep.storage}/sweep"], tmp_path).candidates]


@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_a_population_larger_than_what_runs_at_a_time_takes_turns_and_the_poor_go_on_from_the_better(sweep):
    """Two trials, one at a time: each waits at its rungs for the other, and one of two is always the poorer."""
    population = replace(sweep, scheduler="pbt", trials=2, concurrency=1, rungs=3)
    heard: list[dict] = []
    found = run_sweep(population, {"learning_rate": tune.choice([1e-9, 1e-2])}, heard.append)

    assert {trial["state"] for trial in found} == {"finished"}
    folders = {trial["trial"]: Path(trial["network"]).parent.name for trial in found}
    clones = [trial for trial, folder in folders.items() if re.fullmatch(rf"sweep-{trial}-[0-9a-f]{{6}}", folder)]
    assert clones, folders
    for trial in found:
        if trial["trial"] in clones:
            # It goes on at the rung that the other had reached, and its run begins there.
            begun = min(rung["step"] for rung in trial["rungs"])
            assert begun > 3
            assert max(news["step"] for news in heard if "loss" in news and news["trial"] == trial["trial"]) == 8
            assert (Path(sweep.storage) / "sweep" / folders[trial["trial"]] / "plan.json").is_file()


def test_a_sweep_of_other_settings_or_of_shards_that_changed_since_is_refused(sweep, build_shards, moving):
    space = {"reader": tune.choice(["dense", "topk"])}
    with pytest.raises(UserError, match="trained on these videos; --validation needs others"):
        run_sweep(replace(sweep, validation=sweep.plan.data[0]), space)
    with pytest.raises(UserError, match="lower --workers or --feeders, or --concurrency"):
        run_sweep(replace(sweep, concurrency=3), space)
    with pytest.raises(UserError, match=r"sweep sweep in .* was started with another seed; choose another name"):
        run_sweep(replace(sweep, seed=1), space)
    with pytest.raises(UserError, match=r"was started with another space\.reader; choose another name"):
        run_sweep(sweep, {"reader": "dense"})
    build_shards(sweep.validation, [moving(f"v{i}", i + 9) for i in range(4)])
    with pytest.raises(UserError, match=r"was started with another validation\.digest; choose another name"):
        run_sweep(sweep, space)


@pytest.mark.parametrize(
    ("space", "changes", "message"),
    [
        ({}, {}, "search space: expected some of .*; found nothing"),
        (
            {"reader": "topk"},
            {"metric": "accuracy"},
            "--metric: expected JF_mean or .*, found 'accuracy'",
        ),
        ({"reader": "topk"}, {"scheduler": "luck"}, "--scheduler: expected asha or pbt or none, found 'luck'"),
        ({"reader": "topk"}, {"scheduler": "pbt", "search": "optuna"}, "take --search random or grid with it"),
        ({"reader": "topk"}, {"scheduler": "pbt"}, "changes settings of stages while it trains; the space has none"),
        ({"reader": "nearest"}, {}, "no configuration of the space can run; unknown reader 'nearest'"),
        (
            {"reader": tune.choice(["nearest", "far"])},
            {"search": "optuna"},
            "no configuration of the space can run; unknown reader",
        ),
        ({"reader": "topk"}, {"resources": Resources(2, gpus=0.5)}, "NCCL takes one process a GPU"),
        ({"reader": "topk"}, {"concurrency": 3}, "3 trials at a time: 3 workers .* lower .*or --concurrency"),
        ({"reader": "topk"}, {"trials": 0}, "expected at least 1 trial"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_a_trial_starts(sweep, space, changes, message):
    with pytest.raises(UserError, match=message):
        run_sweep(replace(sweep, **changes), space)
    if "no configuration" in message:
        # The name is free for a space that can run.
        assert not (Path(sweep.storage) / "sweep" / "sweep.json").exists()


def test_a_sweep_of_which_all_trials_fail_says_why(sweep):
    """With one rung behind the end, for the steps between checkpoints are more than all."""
    plan = replace(sweep.plan, stages=sweep.plan.stages[:1], checkpoint_every=3)
    one = replace(sweep, trials=1, rungs=1, plan=plan)
    with pytest.raises(AllFailed, match=r"sweep sweep: all 1 trials failed; the first: stage bl30k, step") as failed:
        run_sweep(one, {"learning_rate": 1e25})
    assert [trial["state"] for trial in failed.value.trials] == ["failed"]
