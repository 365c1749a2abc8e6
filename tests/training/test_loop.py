from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.training import loop
from vosforge.training.checkpoints import Position, load_checkpoint
from vosforge.training.loop import Diverged, fit_locally
from vosforge.training.plan import claim_run


class Stopped(Exception):
    """Stands for a process that ends in the middle."""


def losses_of(plan, storage: Path, stop_after: int | None = None) -> dict[int, float]:
    losses: dict[int, float] = {}

    def on_progress(metrics):
        losses[metrics["step"]] = metrics["loss"]
        if metrics["step"] == stop_after:
            raise Stopped

    if stop_after is None:
        fit_locally(plan, str(storage), on_progress)
    else:
        with pytest.raises(Stopped):
            fit_locally(plan, str(storage), on_progress)
    return losses


def weights(storage: Path, plan) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(storage / plan.name / "network.safetensors")


@pytest.mark.parametrize("stop_after", [3, 5, 7])
def test_stopped_run_goes_on_to_the_same_losses_and_weights(make_plan, tmp_path, stop_after):
    plan = make_plan()
    straight = losses_of(plan, tmp_path / "straight")
    first = losses_of(plan, tmp_path / "stopped", stop_after)
    second = losses_of(plan, tmp_path / "stopped")
    assert set(straight) == set(range(1, 9))
    # Steps after the last checkpoint are computed again, and nothing before it.
    assert min(second) == {3: 4, 5: 5, 7: 7}[stop_after]
    assert {**first, **second} == straight
    expected, found = weights(tmp_path / "straight", plan), weights(tmp_path / "stopped", plan)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_finished_run_is_not_run_again(make_plan, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path)
    assert losses_of(plan, tmp_path) == {}


def test_same_seed_gives_the_same_run_and_another_seed_another(make_plan, tmp_path):
    first, same, other = (losses_of(make_plan(seed=seed), tmp_path / str(i)) for i, seed in enumerate((5, 5, 6)))
    assert first == same
    assert first != other


def test_only_the_latest_checkpoint_is_kept_and_none_is_half_written(make_plan, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path)
    names = sorted(path.name for path in (tmp_path / plan.name).iterdir())
    assert names == ["network.safetensors", "plan.json", "step_00000008"]


def test_gradients_that_are_not_finite_stop_the_run_with_the_stage_and_step(make_plan, tmp_path):
    plan = make_plan(steps=30)
    wild = replace(plan, stages=[replace(stage, learning_rate=1e30, clip_norm=None) for stage in plan.stages])
    with pytest.raises(Diverged, match=r"stage bl30k, step \d+: the gradient is (nan|inf).*lower the learning rate"):
        fit_locally(wild, str(tmp_path), lambda metrics: None)


def test_feed_out_of_order_is_refused(make_plan, tmp_path):
    plan = make_plan()
    honest = loop.local_feed(plan, plan.samplers())

    def swapped(stage, first):
        return (list(reversed(clips)) for clips in honest(stage, first))

    reporter = loop.LocalReporter(tmp_path / "run", lambda metrics: None)
    with pytest.raises(RuntimeError, match="out of order"):
        loop.train(plan, plan.build_network(), swapped, reporter)


def test_checkpoint_of_another_plan_is_refused(make_plan, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path)
    folder = tmp_path / plan.name / "step_00000008"
    assert load_checkpoint(folder, plan.build_network(), plan.digest)[0] == Position(2, 0)
    with pytest.raises(UserError, match="the checkpoint is of another plan"):
        load_checkpoint(folder, plan.build_network(), "0" * 16)


def test_metrics_tell_speed_waiting_and_the_probe(make_plan, tmp_path):
    heard = []
    fit_locally(make_plan(), str(tmp_path), heard.append)
    assert {"stage", "step", "loss", "J", "learning_rate", "clips_per_second", "data_wait"} <= set(heard[0])
    assert [metrics["step"] for metrics in heard if "probe_J" in metrics] == [3, 4, 6, 8]
    assert all(0 <= metrics["data_wait"] <= 1 for metrics in heard)


def test_run_is_not_continued_on_other_data_or_by_the_other_harness(make_plan, build_shards, tmp_path):
    plan = make_plan()
    losses_of(plan, tmp_path, stop_after=3)
    with pytest.raises(UserError, match="was started with another harness"):
        claim_run(str(tmp_path), plan, "ray")
    clip = ShardSet(plan.data[0]).read(ShardSet(plan.data[0]).videos[0])
    build_shards(plan.data[0], [clip], kind="bl30k")
    with pytest.raises(UserError, match=r"was started with another data_digests\.0"):
        losses_of(plan, tmp_path)


def test_changed_field_of_a_stage_is_named(make_plan, tmp_path):
    plan = make_plan()
    claim_run(str(tmp_path), plan, "local")
    slower = replace(plan, stages=[replace(plan.stages[0], learning_rate=1e-9), plan.stages[1]])
    with pytest.raises(UserError, match=r"another stages\.0\.learning_rate;"):
        claim_run(str(tmp_path), slower, "local")


@pytest.mark.parametrize("name", ["a/../../b", "..", "", "a b"])
def test_names_that_would_leave_the_storage_are_refused(make_plan, name):
    with pytest.raises(UserError, match="run name"):
        make_plan(name=name)


def test_missing_initial_network_is_one_error(make_plan, tmp_path):
    with pytest.raises(UserError, match="no such network file"):
        make_plan(initial=str(tmp_path / "none.safetensors")).build_network()


def test_remote_storage_is_refused_without_ray(make_plan):
    with pytest.raises(UserError, match="leave --local out"):
        fit_locally(make_plan(), "s3://bucket/runs", lambda metrics: None)
