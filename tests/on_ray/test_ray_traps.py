"""What Ray does behind one's back, and what is done about it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray.train
from ray.train.v2._internal.constants import HEALTH_CHECK_INTERVAL_S_ENV_VAR
from ray.util.queue import Queue

from vosforge.errors import UserError
from vosforge.training import on_ray, ray_hooks
from vosforge.training.loop import Worker, fit_locally, local_feed, train
from vosforge.training.on_ray import check_cluster, fit, ray_feed
from vosforge.training.ray_hooks import Listener, RayReporter

SNAPSHOT = "checkpoint_manager_snapshot.json"


@pytest.mark.parametrize("rank", [0, 1])
def test_ray_hears_of_checkpoints_alone(make_plan, monkeypatch, rank):
    """Every report waits until the controller has looked, so steps between checkpoints must not make one."""
    plan = replace(make_plan(), checkpoint_every=3)
    told, reported = [], []

    def report(metrics, checkpoint, checkpoint_dir_name):
        # Ray keeps metrics as JSON.
        json.dumps(metrics)
        reported.append((metrics["step"], checkpoint is not None, checkpoint_dir_name))

    monkeypatch.setattr(ray.train, "report", report)
    queue = SimpleNamespace(actor=SimpleNamespace(put_nowait=SimpleNamespace(remote=told.append)))
    reporter = RayReporter(queue, rank, "run")
    train(plan, plan.build_network(), local_feed(plan, plan.samplers()), reporter, Worker())
    assert reported == [(step, rank == 0, f"step_{step:08d}") for step in (3, 4, 6, 8)]
    # A checkpoint's step is told twice: before it is kept, and by the loop.
    assert list(dict.fromkeys(metrics["step"] for metrics in told)) == list(range(1, 9))


def test_the_wait_for_a_report_is_short(make_plan, tmp_path, monkeypatch):
    monkeypatch.setenv(HEALTH_CHECK_INTERVAL_S_ENV_VAR, "2")
    monkeypatch.delenv(HEALTH_CHECK_INTERVAL_S_ENV_VAR)
    with pytest.raises(UserError):
        fit(make_plan(), str(tmp_path), print, workers=7)
    assert float(os.environ[HEALTH_CHECK_INTERVAL_S_ENV_VAR]) <= 0.5


def test_listener_that_fails_is_told_once_and_goes_on_listening(caplog):
    queue, heard = Queue(actor_options={"num_cpus": 0}), []

    def failing(news):
        heard.append(news)
        raise OSError("no space left")

    with caplog.at_level(logging.WARNING), Listener(queue, failing):
        for news in range(5):
            queue.put(news)
    assert heard == list(range(5))
    (said,) = [record.message for record in caplog.records if record.name == ray_hooks.__name__]
    assert said == "training goes on, but its progress is not told: OSError: no space left"


def test_what_the_cluster_cannot_hold_is_refused_at_once_with_what_is_there():
    there = ray.cluster_resources()
    cpus = int(there["CPU"])
    with pytest.raises(UserError, match=r"^3 GPU workers asked, the cluster has \d+ GPUs; lower --workers$"):
        check_cluster(3, use_gpu=True, cpus_per_worker=1)
    with pytest.raises(UserError, match=rf"^{cpus} workers with 1 CPUs each .*, the cluster has {cpus} CPUs"):
        check_cluster(cpus, use_gpu=False, cpus_per_worker=1)
    # Each worker's clips need a process of their own: the last worker would wait for one for ever.
    with pytest.raises(UserError, match=r"and 2 for decoding its clips asked.*lower --workers or --feeders"):
        check_cluster(cpus // 2, use_gpu=False, cpus_per_worker=1, feeders=2)
    with pytest.raises(UserError, match="workers and feeders must be at least 1, found 0 and 1"):
        check_cluster(0, use_gpu=False, cpus_per_worker=1)
    check_cluster(cpus // 2, use_gpu=False, cpus_per_worker=1)


def test_nodes_that_an_autoscaler_would_add_count(monkeypatch):
    state = ray_hooks.ray_states.state
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: {"CPU": 640, "GPU": 8})
    check_cluster(8, use_gpu=True, cpus_per_worker=1)
    with pytest.raises(UserError, match="9 GPU workers asked, the cluster has 8 GPUs"):
        check_cluster(9, use_gpu=True, cpus_per_worker=1)


def test_run_that_cannot_begin_leaves_its_name_free(make_plan, tmp_path):
    plan = make_plan()
    for workers, told in ((3, "batch of 2 clips cannot be shared by 3 workers"), (2, "for decoding its clips asked")):
        with pytest.raises(UserError, match=told):
            fit(plan, str(tmp_path / "runs"), print, workers=workers, feeders=100)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["file/runs", "/proc/runs"])
def test_storage_without_rights_is_one_error_before_any_worker_starts(make_plan, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"runs.*: (cannot be written|.*parent of it is a file).*another folder"
    ) as told:
        fit(make_plan(), str(tmp_path / place), print)
    assert "\n" not in str(told.value)


@pytest.fixture
def kept_run(make_plan, tmp_path) -> Path:
    """A run's folder with two whole checkpoints and Ray's list of them."""
    plan = replace(make_plan(), probe_clips=0)
    plan = replace(plan, stages=[replace(plan.stages[0], steps=2)], checkpoint_every=1)
    folders = []

    def keep(metrics):
        (folder,) = (tmp_path / plan.name).glob("step_*")
        folders.append(shutil.copytree(folder, tmp_path / "kept" / folder.name))

    fit_locally(plan, str(tmp_path), keep)
    names = [{"checkpoint_dir_name": folder.name} for folder in folders]
    (tmp_path / "kept" / SNAPSHOT).write_text(json.dumps({"checkpoint_results": names}))
    return tmp_path / "kept"


def test_list_of_checkpoints_that_is_sound_is_left_to_ray(kept_run):
    assert on_ray._drop_torn_snapshot(str(kept_run)) is None
    assert (kept_run / SNAPSHOT).exists()


def test_torn_list_of_checkpoints_is_dropped_for_the_latest_whole_one(kept_run):
    listed = (kept_run / SNAPSHOT).read_bytes()
    for torn in (b"", listed[: len(listed) // 2], b"[]"):
        (kept_run / SNAPSHOT).write_bytes(torn)
        assert on_ray._drop_torn_snapshot(str(kept_run)) == str(kept_run / "step_00000002")
        assert not (kept_run / SNAPSHOT).exists()
        # A driver that dies before Ray has made a new list loses nothing either.
        assert on_ray._drop_torn_snapshot(str(kept_run)) == str(kept_run / "step_00000002")


def test_list_that_names_a_deleted_checkpoint_is_dropped_for_the_one_before(kept_run):
    shutil.rmtree(kept_run / "step_00000002")
    assert on_ray._drop_torn_snapshot(str(kept_run)) == str(kept_run / "step_00000001")
    shutil.rmtree(kept_run / "step_00000001")
    assert on_ray._drop_torn_snapshot(str(kept_run)) is None


@pytest.mark.cluster
def test_any_number_of_workers_sees_the_same_clips_at_the_same_steps(make_plan):
    plan = make_plan(steps=9)
    feeds = {(rank, world): ray_feed(plan, Worker(rank, world), 1) for world in (1, 2) for rank in range(world)}
    # As a run of one worker goes through the second stage, and as two go on in its middle.
    whole = list(feeds[0, 1](1, 0))
    halves = [list(feeds[rank, 2](1, 4)) for rank in range(2)]
    for step in range(4, 9):
        together = [clip for half in halves for clip in half[step - 4]]
        assert [clip.name for clip in together] == [str(2 * step), str(2 * step + 1)]
        for found, expected in zip(together, whole[step], strict=True):
            assert found.name == expected.name
            assert np.array_equal(found.frames, expected.frames)
            assert np.array_equal(found.masks, expected.masks)
