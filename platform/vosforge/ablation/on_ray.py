"""Where a study is done on Ray: runs on Ray Train, measurements as tasks, anywhere in the cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import TrainingFailedError

from vosforge.ablation.measuring import Measurement, measure
from vosforge.ablation.study import Study
from vosforge.errors import UserError, find_user_error
from vosforge.training.on_ray import check_cluster, fit
from vosforge.training.plan import TrainingPlan
from vosforge.training.steps import Execution


class OnRay:
    """Trains and measures on a Ray cluster, several at a time.

    Args:
        study: whose runs and measurements.
        at_once: runs and measurements under way together.
        on_progress: hears a run's name and its steps' metrics.
        workers, gpu, threads, execution: of each run, as in `fit`; a measurement takes one GPU, too.

    Raises:
        UserError: when the cluster cannot hold so many runs together.
    """

    def __init__(
        self,
        study: Study,
        at_once: int,
        on_progress: Callable[[str, dict[str, Any]], None],
        workers: int = 1,
        gpu: bool = False,
        threads: int | None = None,
        execution: Execution | None = None,
    ):
        check_cluster(workers * at_once, gpu, 1)
        self.study, self._on_progress = study, on_progress
        self._fit = partial(fit, workers=workers, use_gpu=gpu, threads=threads, execution=execution)
        self._measure = ray.remote(num_cpus=1, num_gpus=int(gpu), max_retries=3)(measure)
        self._pool = ThreadPoolExecutor(at_once)

    def train(self, plan: TrainingPlan) -> Future[Any]:
        """Begin a run, or go on with it."""
        return self._pool.submit(self._trained, plan)

    def measure(self, what: Measurement) -> Future[dict[str, Any]]:
        """Begin a measurement."""
        return self._pool.submit(self._measured, what)

    def _trained(self, plan: TrainingPlan) -> str:
        try:
            return self._fit(plan, self.study.runs, partial(self._on_progress, plan.name))
        except TrainingFailedError as error:
            raise UserError(f"run {plan.name}: {str(error).strip().splitlines()[-1]}") from error

    def _measured(self, what: Measurement) -> dict[str, Any]:
        try:
            return ray.get(self._measure.remote(what, self.study.scores))
        except RayError as error:
            told = find_user_error(error) or UserError(f"measuring failed: {str(error).strip().splitlines()[-1]}")
            raise told from error

    def __enter__(self) -> OnRay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # What threads wait for ends with this process's actors and tasks.
            ray.shutdown()
        self._pool.shutdown(cancel_futures=True)
