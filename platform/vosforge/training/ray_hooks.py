"""What the Ray Train harness plugs into Ray: what workers report, how often to restart, and with how many workers."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import state as ray_states
from ray.train import TrainingFailedError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import placement_group_cleaner
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.config import ScalingConfig
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vosforge.errors import UserError, find_user_error
from vosforge.storage import Unavailable, delete_folder, is_local, join, local_path

_SECONDS_OF_SILENCE = 30.0
_ANSWER_SECONDS = 5.0
_LOGGER = logging.getLogger(__name__)


def news_queue() -> Queue:
    """A queue to this process, on its own node: on one that dies it would take all further news with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


class RayReporter:
    """Sends metrics to the driver's queue, and checkpoints to Ray Train.

    Args:
        queue: to the driver.
        rank: of this worker.
        run: URI of the run's directory.
    """

    def __init__(self, queue: Queue, rank: int, run: str):
        self.queue, self.rank, self.run = queue, rank, run
        self._announced: set[str] = set()

    def log(self, metrics: dict[str, Any]) -> None:
        self.queue.actor.put_nowait.remote(metrics)

    def checkpoint(self, metrics: dict[str, Any], name: str, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint; Ray has registered it one look of its controller later.

        Raises:
            UserError: when the storage has no room for it, or refuses it for longer than is waited.
        """
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
            try:
                ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
            except OSError as error:
                # What there is of it would only take room.
                delete_folder(join(self.run, name))
                needed = sum(path.stat().st_size for path in Path(folder).iterdir())
                raise storage_error(self.run, error, needed) from error

    def leaving(self) -> bool:
        """Whether nodes of this run's workers were announced to go that were not before."""
        found = ray.train.get_preemption_info()
        announced = set(found.preempted_node_ids) if found else set()
        new = announced - self._announced
        self._announced |= new
        return bool(new)


def storage_error(run: str, error: OSError, needed: int = 0) -> UserError:
    """What to tell of a checkpoint that could not be kept.

    Args:
        run: URI of the run's directory.
        error: that the storage raised.
        needed: bytes of the checkpoint, where they are known.
    """
    goes_on = "the same command then goes on from the last checkpoint"
    if is_local(run) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(local_path(run)).free
        asked = f"{needed:,} bytes needed" if needed else "Ray's list of checkpoints does not fit"
        return UserError(f"{run}: no room for a checkpoint, {asked}, {free:,} free; free some, {goes_on}")
    told = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"{run}: the storage does not take a checkpoint ({told}); mend it, {goes_on}")


def final_error(run: str, error: TrainingFailedError) -> Exception:
    """What ended a training: where a user can mend it, as one line.

    Args:
        run: URI of the run's directory.
        error: of Ray Train.
    """
    failure = getattr(error, "controller_failure", None)
    if isinstance(failure, OSError) and not isinstance(failure, ray.exceptions.RayError):
        # The controller keeps Ray's list of checkpoints.
        return storage_error(run, failure)
    return find_user_error(error) or error


class Listener:
    """Hands what rank 0 says to a function of the driver, on a thread.

    What that function raises costs its news, never the training; it is logged once.

    Args:
        queue: that rank 0 fills.
        on_progress: hears what it says.
        on_silence: called where nothing was said for half a minute, and after twice as long each time.
    """

    def __init__(
        self,
        queue: Queue,
        on_progress: Callable[[dict[str, Any]], None],
        on_silence: Callable[[], None] = lambda: None,
    ):
        self.queue, self.on_progress, self.on_silence = queue, on_progress, on_silence
        self._over = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        heard, patience = time.monotonic(), _SECONDS_OF_SILENCE
        while True:
            over = self._over.is_set()
            try:
                news = self.queue.get(timeout=0.2)
            except Empty:
                if over:
                    return
                if time.monotonic() - heard > patience:
                    patience *= 2
                    self._guarded(self.on_silence)
                continue
            except ray.exceptions.RayError:
                return
            heard, patience = time.monotonic(), _SECONDS_OF_SILENCE
            self._guarded(lambda news=news: self.on_progress(news))

    def _guarded(self, tell: Callable[[], None]) -> None:
        try:
            tell()
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


class FinalErrors(DefaultFailurePolicy):
    """Ray's policy, but what a user has to mend ends the run at once: a restart would meet it again.

    A storage that could not be read may be there again after a restart.
    """

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        cause = find_user_error(training_failed_error)
        if cause is not None and not isinstance(cause, Unavailable):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _GroupCleaner(PlacementGroupCleaner):
    """Ray's actor that frees what a run reserved when its controller was killed, as Ray Tune kills that of a trial.

    Ray's own asks the dashboard, which local clusters do not have, and so frees nothing there.
    """

    def start_monitoring(self) -> bool:
        placement_group_cleaner.is_actor_alive = _is_alive
        return super().start_monitoring()


def _is_alive(actor_id: str, timeout: float) -> bool:
    return ray_states.actors(actor_id).get("State") not in (None, "DEAD")


class GroupCleaning(PlacementGroupCleanerCallback):
    """Ray's callback that starts a cleaner beside a controller, with ours."""

    def after_controller_start(self, train_run_context: Any) -> None:
        self._controller_actor_id = ray.get_runtime_context().get_actor_id()
        # On the head, detached, and outside the reservation of a trial: it has to outlive all of them.
        options = {"lifetime": "detached", "scheduling_strategy": "DEFAULT", "num_cpus": 0}
        options["resources"] = {HEAD_NODE_RESOURCE_NAME: 0.001}
        self._cleaner = (
            ray.remote(_GroupCleaner)
            .options(**options)
            .remote(self._controller_actor_id, self._check_interval_s, self._get_actor_timeout_s, self._stop_timeout)
        )
        self._cleaner.start_monitoring.remote()


class EqualShares(ElasticScalingPolicy):
    """Ray's elastic policy, in numbers of workers that can share the batch and whose clips find decoders.

    Ray counts what workers reserve themselves, of nodes that were there up to 20 s ago; a group that is started with a
    worker too many waits for ever.

    Args:
        scaling_config: Ray's.
        counts: numbers of workers among which to choose.
        needs: CPUs and GPUs of one worker with its decoders.
    """

    def __init__(self, scaling_config: ScalingConfig, counts: Sequence[int], needs: dict[str, float]):
        super().__init__(scaling_config)
        self.counts, self.needs = counts, needs
        self._looked = -math.inf

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        now = time.monotonic()
        if now - self._looked > self.GET_RESERVED_RESOURCES_INTERVAL_S:
            self._looked = now
            look = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(look, timeout=_ANSWER_SECONDS)
        return super()._get_reserved_resources()

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        most = min(super()._count_possible_workers(reserved_resources), room(self.needs, ray.cluster_resources()))
        return max((count for count in self.counts if count <= most), default=0)


def room(needs: dict[str, float], there: dict[str, float]) -> int:
    """How many workers of such needs resources are enough for."""
    return int(min(there.get(name, 0) // amount for name, amount in needs.items() if amount))


def resources() -> dict[str, float]:
    """What the cluster has, and what its autoscaler may add, for which Ray has no public question."""
    there = ray.cluster_resources()
    most = ray_states.state.get_max_resources_from_cluster_config() or {}
    return there | {name: max(amount, there.get(name, 0)) for name, amount in most.items()}
