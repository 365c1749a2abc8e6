"""Work on many videos, in this process or several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import cv2

from vosforge.errors import UserError

Answer = TypeVar("Answer")
_WORTH_SECONDS = 20.0
"""Work left beyond which starting processes, some seconds each, pays."""

_work: Callable[[int], Any]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_videos(count: int, work: Callable[[int], Answer], workers: int | None = None) -> Iterator[tuple[int, Answer]]:
    """`work(0) ... work(count - 1)`, in any order, each with its number, as they are finished.

    Args:
        count: how many.
        work: sent once to every process; what it raises ends the run.
        workers: processes; 1 works in this one. None works here until the time that the first took says that
            processes pay, then with one a core.

    Raises:
        UserError: for less than one worker, or when a worker dies.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers: expected at least 1, found {workers}")
    done = 0
    started = time.monotonic()
    while done < count and (workers in (None, 1)):
        if done and workers is None:
            left = (time.monotonic() - started) / done * (count - done)
            if cores() > 1 and left > _WORTH_SECONDS:
                break
        yield done, work(done)
        done += 1
    if done == count:
        return
    # A fork of this process would take threads of its libraries along in whatever state they are.
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    pool = ProcessPoolExecutor(
        min(workers or cores(), count - done),
        mp_context=multiprocessing.get_context(kind),
        initializer=_begin,
        initargs=(work,),
    )
    try:
        waiting = {pool.submit(_run, i): i for i in range(done, count)}
        for future in as_completed(waiting):
            yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise UserError("a worker process died, most often because memory ran out; try fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[int], Any]) -> None:
    """Set a worker up: the work, one thread, and Ctrl-C left to the process that started it."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    # The work may have brought torch along; this module does without.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _work = work


def _run(i: int) -> Any:
    return _work(i)
