"""The training loop on Ray Train: with `ray_hooks`, the only file of training that knows Ray.

The loop is the bare one. Ray adds workers, their restart from the last registered checkpoint, and clips decoded on
CPU workers anywhere in the cluster. Each worker streams its own slice of the clip order: a clip is a pure function
of its number, so a restart, with any number of workers, begins its stream at the step where it goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from vosforge import s3
from vosforge.clip import Clip
from vosforge.data.streams import run_workers
from vosforge.errors import UserError
from vosforge.storage import absolute, delete, exists, filesystem, join, read_bytes, upload_file
from vosforge.training.checkpoints import NETWORK_FILE, Damaged, latest_whole
from vosforge.training.clip_order import clip_loader, clip_numbers
from vosforge.training.loop import Examine, Feed, Worker, train
from vosforge.training.plan import TrainingPlan, begun_execution, claim_run, note_execution
from vosforge.training.ray_hooks import (
    EqualShares,
    FinalErrors,
    GroupCleaning,
    Listener,
    RayReporter,
    final_error,
    news_queue,
    resources,
    room,
)
from vosforge.training.steps import Execution

# The controller looks for reports this often; at Ray's default of 2 s every checkpoint would cost as much.
_POLL_SECONDS = "0.2"
_STEPS_PER_BLOCK = 4
_ABORT_SECONDS = 20.0
# A node that came back waits so long for its worker; Ray's default is a minute.
_RESIZE_SECONDS = 5.0
# Of Ray's callbacks, one that has ours in its place, and one whose process serves data sets that nobody gives it.
_LEFT_OUT = (PlacementGroupCleanerCallback, DatasetsCallback)
# Ray Train's list of a run's registered checkpoints.
_SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"
_LOGGER = logging.getLogger(__name__)


def fit(
    plan: TrainingPlan,
    storage: str,
    on_progress: Callable[[dict[str, Any]], None],
    workers: int = 1,
    use_gpu: bool = False,
    cpus_per_worker: float = 1,
    feeders: int = 1,
    threads: int | None = None,
    execution: Execution | None = None,
    least: int | None = None,
    gpu_share: float = 1.0,
    keep: int | None = 2,
    examine: Examine = lambda network, step: {},
) -> str:
    """Train on Ray; a run of the same name and plan goes on from its last registered checkpoint.

    Args:
        plan: what to train.
        storage: local folder or `s3://` URI of runs.
        on_progress: hears rank 0's metrics, in this process.
        workers: processes that share the global batch.
        use_gpu: one GPU a worker, or the share of one.
        cpus_per_worker: CPUs that a worker reserves.
        feeders: most decoding tasks at a time, per worker; each reserves one CPU.
        threads: torch's threads in each worker; None leaves its default.
        execution: how steps are computed.
        least: fewest workers to go on with while nodes are gone; all by default.
        gpu_share: of one GPU that a worker reserves; below 1 several runs share it.
        keep: how many of the latest checkpoints stay; None keeps all.
        examine: what else is told of a checkpoint.

    Returns:
        URI of the trained network's file.

    Raises:
        UserError: when the cluster is too small, the batch cannot be shared, the run's name is taken by another
            plan, training diverges, data cannot be read, or the storage takes no checkpoint.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    least = workers if least is None else least
    for stage in plan.stages:
        clip_numbers(0, stage.batch, 0, workers)
    plan.samplers()
    target = join(storage, plan.name, NETWORK_FILE)
    finished = exists(target)
    if not finished:
        check_cluster(workers, use_gpu, cpus_per_worker, feeders, least, gpu_share)
    claim_run(storage, plan, "ray")
    if finished:
        # Ray would start all workers again, to do nothing.
        return target
    execution = begun_execution(storage, plan.name, execution or Execution(), workers)
    settings = {"workers": workers, "min_workers": least if least < workers else None}
    settings |= {"gpu": use_gpu, "feeders": feeders, "threads": threads, "execution": asdict(execution)}
    note_execution(storage, plan.name, settings)
    queue = news_queue()
    run = join(absolute(storage), plan.name)
    trainer = _Trainer(
        _worker,
        train_loop_config={
            "plan": plan,
            "queue": queue,
            "run": run,
            "feeders": feeders,
            "threads": threads,
            "execution": execution,
            "unregistered": _drop_torn_snapshot(run),
            "examine": examine,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=_scaling_config(workers, least, cpus_per_worker, gpu_share * use_gpu),
        run_config=_run_config(plan.name, storage, keep),
    )
    needs = {"CPU": cpus_per_worker + feeders, "GPU": gpu_share * use_gpu}
    if least < workers:
        trainer.scaling = EqualShares(trainer.scaling_config, _counts(plan, execution, workers, least), needs)
    with Listener(queue, on_progress, partial(_tell_waiting, plan.name, least, needs)):
        try:
            result = trainer.fit()
        except KeyboardInterrupt:
            trainer.abort()
            raise
        except TrainingFailedError as error:
            raise final_error(run, error) from None
    _copy_network(result.checkpoint, target)
    return target


def _counts(plan: TrainingPlan, execution: Execution, workers: int, least: int) -> list[int]:
    """Numbers of workers that compute the same: all take equal parts of each batch, and whole shares."""
    numbers = [stage.batch for stage in plan.stages]
    if all(number % execution.shares == 0 for number in numbers):
        numbers = [*numbers, execution.shares]
    fit = [n for n in range(least, workers) if all(number % n == 0 for number in numbers)]
    return [*fit, workers]


def _tell_waiting(name: str, least: int, needs: dict[str, float]) -> None:
    """Say what a run waits for, where the cluster lost what it needs."""
    found = room(needs, ray.cluster_resources())
    if found < least:
        _LOGGER.warning(
            "run %s waits: it needs %d workers of %g CPUs and %g GPUs, the cluster has room for %d; add nodes, or stop "
            "it and go on with fewer --workers",
            *(name, least, needs["CPU"], needs["GPU"], found),
        )


def _drop_torn_snapshot(run: str) -> str | None:
    """Make sure that Ray Train can read its list of checkpoints, or goes on without it.

    Ray writes the list in place: a process that is killed then, or a disk that is full, leaves it torn, and a run whose
    checkpoints were deleted has one that names them. Ray refuses both for ever.

    Args:
        run: URI of the run's directory.

    Returns:
        URI of the whole checkpoint to go on from where there is no list; None where there is, or nothing at all.
    """
    snapshot = join(run, _SNAPSHOT_FILE)
    if exists(snapshot):
        try:
            names = [result["checkpoint_dir_name"] for result in json.loads(read_bytes(snapshot))["checkpoint_results"]]
        except (ValueError, KeyError, TypeError):
            names = [""]
        if all(name and exists(join(run, name)) for name in names):
            return None
        _LOGGER.warning("run %s: Ray's list of checkpoints is damaged; going on from the latest whole checkpoint", run)
        delete(snapshot)
    return latest_whole(run)


def ray_storage(uri: str) -> tuple[str, s3.PatientFileSystem | None]:
    """A folder as Ray takes it for its `storage_path` and `storage_filesystem`; the latter is None for a local one."""
    path = absolute(uri)
    if not path.startswith("s3://"):
        return path, None
    return "/".join(s3.split(path)).rstrip("/"), s3.patient_file_system()


def _run_config(name: str, storage: str, keep: int | None) -> RunConfig:
    """Where a run is kept: a restart is tried three times, after announced losses any number; checkpoints stay."""
    path, files = ray_storage(storage)
    return RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=files,
        failure_config=FailureConfig(max_failures=3, max_preemption_failures=-1),
        checkpoint_config=CheckpointConfig(num_to_keep=keep),
    )


def _scaling_config(workers: int, least: int, cpus: float, gpus: float) -> ScalingConfig:
    """Workers that may become fewer are spread, so that a lost node takes few of them; else packed near each other."""
    return ScalingConfig(
        num_workers=(least, workers) if least < workers else workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, "GPU": gpus},
        placement_strategy="SPREAD" if least < workers else "PACK",
        elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
    )


class _Trainer(TorchTrainer):
    """Ray's trainer, with policies of ours, and Ctrl-C is a KeyboardInterrupt; Ray's handler ends with status 0.

    Attributes:
        scaling: in what numbers workers are started; None for always the same.
    """

    scaling: EqualShares | None = None
    _controller: Any = None

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["failure_policy"] = FinalErrors(self.run_config.failure_config)
        settings["scaling_policy"] = self.scaling or settings["scaling_policy"]
        others = [one for one in settings["callbacks"] if not isinstance(one, _LEFT_OUT)]
        settings["callbacks"] = [*others, GroupCleaning()]
        return super()._initialize_and_run_controller(**settings)

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the run's processes; its checkpoints stay."""
        if self._controller is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._controller.abort.remote(), timeout=_ABORT_SECONDS)


def check_cluster(
    workers: int,
    use_gpu: bool,
    cpus_per_worker: float,
    feeders: int = 1,
    least: int | None = None,
    gpu_share: float = 1.0,
) -> None:
    """Refuse at once what the cluster cannot hold, instead of waiting silently.

    Every worker's clips are decoded by processes of its own. A worker whose decoders find no CPU would wait for ever,
    and all others for it.

    Raises:
        UserError: with what is asked and what is there, or could be added by an autoscaler.
    """
    least = workers if least is None else least
    if min(workers, feeders) < 1:
        raise UserError(f"workers and feeders must be at least 1, found {workers} and {feeders}")
    if not 1 <= least <= workers:
        raise UserError(f"--min-workers must be from 1 to --workers ({workers}), found {least}")
    there = resources()
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    if use_gpu and least > gpus * (1 // gpu_share if gpu_share < 1 else 1 / gpu_share):
        told = "" if gpu_share == 1 else f" with {gpu_share:g} of a GPU each"
        raise UserError(f"{least} GPU workers{told} asked, the cluster has {gpus:g} GPUs; lower --workers")
    if least * (cpus_per_worker + feeders) > cpus:
        raise UserError(
            f"{least} workers with {cpus_per_worker:g} CPUs each and {feeders} for decoding its clips asked, "
            f"the cluster has {cpus:g} CPUs; lower --workers or --feeders"
        )
    free = ray.available_resources()
    if least * (cpus_per_worker + feeders) > free.get("CPU", 0) or least * gpu_share * use_gpu > free.get("GPU", 0):
        told = " and ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        _LOGGER.warning("the cluster is busy: %s are free; training starts when enough are", told)


def _worker(config: dict[str, Any]) -> None:
    """What runs in each of Ray Train's workers."""
    plan: TrainingPlan = config["plan"]
    context = ray.train.get_context()
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    worker = Worker(context.get_world_rank(), context.get_world_size(), device, config["execution"])
    wrap = prepare_model if worker.world > 1 else (lambda network: network.to(device))
    feed = ray_feed(plan, worker, config["feeders"])
    reporter = RayReporter(config["queue"], worker.rank, config["run"])
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and config["unregistered"]:
        checkpoint = _checkpoint_at(config["unregistered"])
    if checkpoint is None:
        train(plan, plan.build_network(), feed, reporter, worker, wrap, examine=config["examine"])
        return
    with checkpoint.as_directory() as folder:
        try:
            network = plan.build_network(fresh=False)
            train(plan, network, feed, reporter, worker, wrap, Path(folder), config["examine"])
        except Damaged as error:
            raise Damaged(str(error).replace(folder, _uri(checkpoint))) from error


def _checkpoint_at(uri: str) -> ray.train.Checkpoint:
    files, path = filesystem(uri)
    return ray.train.Checkpoint(path, filesystem=files)


def _uri(checkpoint: ray.train.Checkpoint) -> str:
    """Where a checkpoint lies; Ray leaves the scheme out."""
    kind = checkpoint.filesystem.type_name
    return checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"


def ray_feed(plan: TrainingPlan, worker: Worker, feeders: int) -> Feed:
    """A feed whose clips are decoded by Ray Data, in order, one row a step."""

    def feed(stage: int, first: int) -> Iterator[list[Clip]]:
        settings = plan.stages[stage]
        make_work = partial(clip_loader, settings, plan.data, plan.seed, first, worker.rank, worker.world)
        for row in run_workers(settings.steps - first, make_work, feeders, _STEPS_PER_BLOCK):
            yield [
                Clip(str(number), frames, masks)
                for number, frames, masks in zip(row["numbers"], row["frames"], row["masks"], strict=True)
            ]

    return feed


def _copy_network(checkpoint: ray.train.Checkpoint, target: str) -> None:
    """Put the final checkpoint's network where its users look for it."""
    with checkpoint.as_directory() as folder:
        upload_file(Path(folder) / NETWORK_FILE, target)
