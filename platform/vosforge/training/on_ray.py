"""The training loop on Ray Train: the only file of training that knows Ray.

The loop is the bare one. Ray adds workers, their restart from the last registered checkpoint, and clips decoded on
CPU workers anywhere in the cluster. Each worker streams its own slice of the clip order: a clip is a pure function
of its number, so a restart, with any number of workers, begins its stream at the step where it goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray._private.state import state as ray_state
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from ray.util.queue import Empty, Queue

from vosforge.clip import Clip
from vosforge.data.streams import run_workers
from vosforge.errors import UserError, find_user_error
from vosforge.storage import absolute, delete, exists, filesystem, join, read_bytes, upload_file
from vosforge.training.checkpoints import NETWORK_FILE, Damaged, latest_whole
from vosforge.training.clip_order import clip_loader, clip_numbers
from vosforge.training.loop import Examine, Feed, Worker, train
from vosforge.training.plan import TrainingPlan, begun_execution, claim_run, note_execution
from vosforge.training.steps import Diverged, Execution

# The controller looks for reports this often; at Ray's default of 2 s every checkpoint would cost as much.
_POLL_SECONDS = "0.2"
_STEPS_PER_BLOCK = 4
_ABORT_SECONDS = 20.0
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
        gpu_share: of one GPU that a worker reserves; below 1 several runs share it.
        keep: how many of the latest checkpoints stay; None keeps all.
        examine: what else is told of a checkpoint.

    Returns:
        URI of the trained network's file.

    Raises:
        UserError: when the cluster is too small, the batch cannot be shared, the run's name is taken by another
            plan, or training diverges.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_SECONDS)
    for stage in plan.stages:
        clip_numbers(0, stage.batch, 0, workers)
    plan.samplers()
    target = join(storage, plan.name, NETWORK_FILE)
    finished = exists(target)
    if not finished:
        check_cluster(workers, use_gpu, cpus_per_worker, feeders, gpu_share)
    claim_run(storage, plan, "ray")
    if finished:
        # Ray would start all workers again, to do nothing.
        return target
    execution = begun_execution(storage, plan.name, execution or Execution(), workers)
    settings = {"workers": workers, "gpu": use_gpu, "feeders": feeders, "threads": threads}
    note_execution(storage, plan.name, {**settings, "execution": asdict(execution)})
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = _Trainer(
        _worker,
        train_loop_config={
            "plan": plan,
            "queue": queue,
            "feeders": feeders,
            "threads": threads,
            "execution": execution,
            "unregistered": _drop_torn_snapshot(join(absolute(storage), plan.name)),
            "examine": examine,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus_per_worker, "GPU": gpu_share * use_gpu},
        ),
        run_config=_run_config(plan.name, storage, keep),
    )
    with Listener(queue, on_progress):
        try:
            result = trainer.fit()
        except KeyboardInterrupt:
            trainer.abort()
            raise
        except TrainingFailedError as error:
            raise find_user_error(error) or error from None
    if result.return_value and "refused" in result.return_value:
        raise UserError(f"run {plan.name}: {result.return_value['refused']}")
    _copy_network(result.checkpoint, target)
    return target


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


def _run_config(name: str, storage: str, keep: int | None) -> RunConfig:
    """Where a run is kept: a restart is tried three times, the latest checkpoints stay."""
    return RunConfig(
        name=name,
        storage_path=absolute(storage),
        failure_config=FailureConfig(max_failures=3),
        checkpoint_config=CheckpointConfig(num_to_keep=keep),
    )


class _Trainer(TorchTrainer):
    """Ray's trainer, but Ctrl-C is a KeyboardInterrupt; Ray's own handler ends the process with status 0."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the run's processes; its checkpoints stay."""
        if self._controller is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._controller.abort.remote(), timeout=_ABORT_SECONDS)


def check_cluster(
    workers: int, use_gpu: bool, cpus_per_worker: float, feeders: int = 1, gpu_share: float = 1.0
) -> None:
    """Refuse at once what the cluster cannot hold, instead of waiting silently.

    Every worker's clips are decoded by processes of its own. A worker whose decoders find no CPU would wait for ever,
    and all others for it.

    Raises:
        UserError: with what is asked and what is there, or could be added by an autoscaler.
    """
    if min(workers, feeders) < 1:
        raise UserError(f"workers and feeders must be at least 1, found {workers} and {feeders}")
    there = _resources()
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    if use_gpu and workers * gpu_share > gpus:
        told = "" if gpu_share == 1 else f" with {gpu_share:g} of a GPU each"
        raise UserError(f"{workers} GPU workers{told} asked, the cluster has {gpus:g} GPUs; lower --workers")
    if workers * (cpus_per_worker + feeders) > cpus:
        raise UserError(
            f"{workers} workers with {cpus_per_worker:g} CPUs each and {feeders} for decoding its clips asked, "
            f"the cluster has {cpus:g} CPUs; lower --workers or --feeders"
        )
    free = ray.available_resources()
    if workers * (cpus_per_worker + feeders) > free.get("CPU", 0) or workers * gpu_share * use_gpu > free.get("GPU", 0):
        told = " and ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        _LOGGER.warning("the cluster is busy: %s are free; training starts when enough are", told)


def _resources() -> dict[str, float]:
    """What the cluster has, and what its autoscaler may add, for which Ray has no public question."""
    there = ray.cluster_resources()
    most = ray_state.get_max_resources_from_cluster_config() or {}
    return there | {name: max(amount, there.get(name, 0)) for name, amount in most.items()}


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in each of Ray Train's workers."""
    plan: TrainingPlan = config["plan"]
    context = ray.train.get_context()
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    worker = Worker(context.get_world_rank(), context.get_world_size(), device, config["execution"])
    wrap = prepare_model if worker.world > 1 else (lambda network: network.to(device))
    feed = ray_feed(plan, worker, config["feeders"])
    reporter = _RayReporter(config["queue"], worker.rank)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None and config["unregistered"]:
        checkpoint = _checkpoint_at(config["unregistered"])
    try:
        if checkpoint is None:
            train(plan, plan.build_network(), feed, reporter, worker, wrap, examine=config["examine"])
        else:
            with checkpoint.as_directory() as folder:
                network = plan.build_network(fresh=False)
                train(plan, network, feed, reporter, worker, wrap, Path(folder), config["examine"])
    except Diverged as error:
        # Every worker diverges at the same step, and would again: returning ends the run without a restart.
        return {"refused": str(error)}
    except Damaged as error:
        # So it is with a checkpoint, which all read before anything else.
        return {"refused": str(error).replace(folder, _uri(checkpoint))}
    return {}


def _checkpoint_at(uri: str) -> ray.train.Checkpoint:
    files, path = filesystem(uri)
    return ray.train.Checkpoint(path, filesystem=files)


def _uri(checkpoint: ray.train.Checkpoint) -> str:
    """Where a checkpoint lies; Ray leaves the scheme out."""
    kind = checkpoint.filesystem.type_name
    return checkpoint.path if kind == "local" else f"{kind}://{checkpoint.path}"


class _RayReporter:
    """Sends metrics to the driver's queue, and checkpoints to Ray Train."""

    def __init__(self, queue: Queue, rank: int):
        self.queue, self.rank = queue, rank

    def log(self, metrics: dict[str, Any]) -> None:
        self.queue.actor.put_nowait.remote(metrics)

    def checkpoint(self, metrics: dict[str, Any], name: str, write: Callable[[Path], None]) -> None:
        # Ray keeps them in a JSON file; pictures go to the driver alone.
        metrics = {key: value for key, value in metrics.items() if isinstance(value, (int, float, str))}
        if self.rank:
            ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
            return
        # Told before it is kept, and again by the loop: a run that goes on from here does not compute this step again.
        self.log(metrics)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)


class Listener:
    """Hands what rank 0 says to a function of the driver, on a thread.

    What that function raises costs its news, never the training; it is logged once.
    """

    def __init__(self, queue: Queue, on_progress: Callable[[dict[str, Any]], None]):
        self.queue, self.on_progress = queue, on_progress
        self._over = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        while True:
            over = self._over.is_set()
            try:
                news = self.queue.get(timeout=0.2)
            except Empty:
                if over:
                    return
                continue
            except ray.exceptions.RayError:
                return
            try:
                self.on_progress(news)
            except Exception as error:
                if not self._complained:
                    told = f"{type(error).__name__}: {error}".splitlines()[0]
                    _LOGGER.warning("training goes on, but its progress is not told: %s", told)
                self._complained = True

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        self.queue.shutdown(force=True)


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
