"""How a run on Ray shrinks, grows, is given notice and ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.fs
import pytest
import ray
import ray.train
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.util.queue import Queue

from vosforge.errors import UserError
from vosforge.s3 import patient_file_system
from vosforge.storage import Unavailable
from vosforge.training import on_ray, ray_hooks
from vosforge.training.checkpoints import latest_whole
from vosforge.training.on_ray import check_cluster, fit
from vosforge.training.plan import TrainingPlan
from vosforge.training.ray_hooks import EqualShares, FinalErrors, Listener, RayReporter, final_error
from vosforge.training.steps import Execution


@pytest.mark.parametrize(
    ("batch", "shares", "workers", "least", "counts"),
    [
        (4, 2, 2, 1, [1, 2]),
        (12, 4, 4, 1, [1, 2, 4]),
        (12, 6, 6, 2, [2, 3, 6]),
        (4, 4, 4, 3, [4]),
        # A run of three shares that four workers go on with computes other parts in any case.
        (12, 5, 4, 1, [1, 2, 3, 4]),
    ],
)
def test_workers_become_as_few_as_share_batch_and_shares_equally(make_plan, batch, shares, workers, least, counts):
    plan = make_plan()
    plan = replace(plan, stages=[replace(stage, batch=batch) for stage in plan.stages])
    assert on_ray._counts(plan, Execution(shares=shares), workers, least) == counts


@pytest.mark.parametrize(("cpus", "reserved", "found"), [(12, 4, 4), (11, 4, 2), (12, 3, 2), (5, 4, 1), (2, 4, 0)])
def test_no_more_workers_are_started_than_decoders_find_cpus_for(monkeypatch, cpus, reserved, found):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus})
    config = ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1})
    policy = EqualShares(config, [1, 2, 4], {"CPU": 3, "GPU": 0})
    assert policy._count_possible_workers({"a": {"CPU": 1.0}, "b": {"CPU": reserved - 1.0}}) == found


def test_what_a_run_reserved_is_free_again_when_the_process_that_began_it_is_killed(make_plan, tmp_path):
    """As Ray Tune kills a trial that it stops; on a local cluster, which has no dashboard to ask."""

    @ray.remote(num_cpus=0)
    class Trial:
        def train(self, plan: TrainingPlan) -> None:
            fit(plan, str(tmp_path), lambda metrics: None, threads=1)

    trial = Trial.remote()
    training = trial.train.remote(make_plan(steps=2000, probe_clips=0))
    wait_until(lambda: latest_whole(str(tmp_path / "run")) is not None or ray.wait([training], timeout=0)[0])
    with contextlib.suppress(ray.exceptions.GetTimeoutError):
        ray.get(training, timeout=0)
    assert ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]
    ray.kill(trial)
    wait_until(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"])


def wait_until(happened: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_fewest_workers_decide_whether_a_run_may_begin():
    cpus = int(ray.cluster_resources()["CPU"])
    check_cluster(10 * cpus, use_gpu=False, cpus_per_worker=1, least=1)
    with pytest.raises(UserError, match=r"--min-workers must be from 1 to --workers \(2\), found 3"):
        check_cluster(2, use_gpu=False, cpus_per_worker=1, least=3)


@pytest.mark.parametrize(
    ("error", "decision"),
    [
        (UserError("shard a: cut off"), FailureDecision.RAISE),
        (Unavailable("s3://a: fails"), FailureDecision.RETRY),
        (RuntimeError("connection reset by peer"), FailureDecision.RETRY),
    ],
)
def test_what_a_user_has_to_mend_is_not_tried_again(error, decision):
    failed = WorkerGroupError("rank 1 failed", {0: RuntimeError("connection closed"), 1: error})
    assert FinalErrors(FailureConfig(max_failures=3)).make_decision(failed) == decision


def test_storage_without_room_is_told_with_both_numbers(tmp_path):
    found = ray_hooks.storage_error(str(tmp_path), OSError(errno.ENOSPC, "No space left on device"), 12345)
    assert f"{tmp_path}: no room for a checkpoint, 12,345 bytes needed, " in str(found)
    assert " free; free some, the same command then goes on from the last checkpoint" in str(found)


def test_list_of_checkpoints_that_cannot_be_written_is_one_line(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError("AWS Error SLOW_DOWN\nmore")):
        told = str(final_error(str(tmp_path), ControllerError(error)))
        assert told.startswith(f"{tmp_path}: ")
        assert "\n" not in told


def test_each_notice_is_heard_once(monkeypatch):
    heard = [None, {"a"}, {"a"}, {"a", "b"}, {"b"}]
    answers = iter([nodes and SimpleNamespace(preempted_node_ids=sorted(nodes)) for nodes in heard])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(answers))
    reporter = RayReporter(None, 0, "run")
    assert [reporter.leaving() for _ in heard] == [False, True, False, True, False]


def test_patience_with_a_store_survives_the_way_to_another_process(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    files = patient_file_system("eu-west-1", "http://127.0.0.1:9")
    there = pickle.loads(pickle.dumps(files))
    # What Ray looks for before it uploads; and pyarrow's own way would give one of the base class.
    assert isinstance(there, pyarrow.fs.S3FileSystem)
    assert type(there) is type(files)
    assert (there.region, there.endpoint) == ("eu-west-1", "http://127.0.0.1:9")


def test_run_that_nobody_hears_of_tells_what_the_cluster_lacks(monkeypatch, caplog):
    monkeypatch.setattr(ray_hooks, "_SECONDS_OF_SILENCE", 0.3)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3})
    queue, silences = Queue(actor_options={"num_cpus": 0}), []

    def waiting():
        silences.append(1)
        on_ray._tell_waiting("run", 2, {"CPU": 2, "GPU": 0})

    with caplog.at_level(logging.WARNING), Listener(queue, print, waiting):
        while len(silences) < 2:
            pass
    said = [record.message for record in caplog.records if record.name == on_ray.__name__]
    assert said[0].startswith("run run waits: it needs 2 workers of 2 CPUs and 0 GPUs, the cluster has room for 1;")
