"""Where a study is done without Ray: processes of this machine, one run or measurement each at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any

import cv2
import torch

from vosforge.ablation.measuring import Measurement, measure
from vosforge.ablation.study import Study
from vosforge.training.loop import fit_locally
from vosforge.training.plan import TrainingPlan
from vosforge.training.steps import Execution

_SECONDS_BETWEEN_LOOKS = 0.5
_news: Any


class Processes:
    """Trains and measures in processes of this machine; what they finished or checkpointed outlives them.

    Args:
        study: whose runs and measurements.
        at_once: processes.
        threads: torch's threads in each.
        on_progress: hears a run's name and its steps' metrics, on a thread of this process.
        execution: how steps are computed.
    """

    def __init__(
        self,
        study: Study,
        at_once: int,
        threads: int,
        on_progress: Callable[[str, dict[str, Any]], None],
        execution: Execution | None = None,
    ):
        # A fork of this process would take threads of its libraries along in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self.study, self._on_progress, self.execution = study, on_progress, execution
        self._queue = context.Queue()
        self._pool = ProcessPoolExecutor(at_once, context, initializer=_begin, initargs=(self._queue, threads))
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def train(self, plan: TrainingPlan) -> Future[Any]:
        """Begin a run, or go on with it."""
        return self._pool.submit(_train, plan, self.study.runs, self.execution)

    def measure(self, what: Measurement) -> Future[dict[str, Any]]:
        """Begin a measurement."""
        return self._pool.submit(measure, what, self.study.scores)

    def _listen(self) -> None:
        while (news := self._queue.get()) is not None:
            self._on_progress(*news)

    def __enter__(self) -> Processes:
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(cancel_futures=True)
        self._queue.put(None)
        self._listener.join(timeout=10)


def _begin(news: Any, threads: int) -> None:
    """Set a process up; Ctrl-C is left to the one that started it."""
    global _news
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    torch.set_num_threads(threads)
    _news = news
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A process whose parent was killed would train on beside the one that the next command starts."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _train(plan: TrainingPlan, storage: str, execution: Execution | None) -> None:
    fit_locally(plan, storage, lambda metrics: _news.put((plan.name, metrics)), execution)
