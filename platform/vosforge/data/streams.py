"""Ray Data, set up the one way that vosforge uses it: numbered work, in order, without chatter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

Row = dict[str, Any]
# A task whose process dies is tried again this often; Ray's default would retry poisonous input for ever.
_RETRIES = 3


def run_tasks(count: int, work: Callable[[int], Row], workers: int) -> Iterator[Row]:
    """`work(0) ... work(count - 1)` as one task each, in parallel; rows come as they are finished.

    Args:
        count: how many.
        work: self-contained; it is sent to every task.
        workers: most tasks at a time, one CPU each.

    Raises:
        ray.exceptions.RayError: when a task fails, or its process dies more often than it is retried.
    """
    _set_up(preserve_order=False)
    with warnings.catch_warnings():
        # The only way to bound retries in this release is announced to be replaced.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        rows = ray.data.range(count, override_num_blocks=count).map(
            lambda row: work(int(row["id"])),
            compute=TaskPoolStrategy(size=min(workers, count)),
            num_cpus=1,
            max_retries=_RETRIES,
        )
    yield from rows.iter_rows()


def run_workers(
    count: int,
    make_work: Callable[[], Callable[[int], Row]],
    workers: int,
    per_block: int = 1,
    ordered: bool = True,
    gpus: float = 0,
) -> Iterator[Row]:
    """`work(0) ... work(count - 1)` by long-lived workers, computed ahead of their use.

    Args:
        count: how many.
        make_work: makes the function once in every worker, so that it can keep files open.
        workers: processes, one CPU each.
        per_block: consecutive numbers that one worker computes at a time.
        ordered: rows come in the order of their numbers; else as they are finished.
        gpus: of each worker.
    """

    class Work:
        """What Ray Data runs in each worker."""

        def __init__(self) -> None:
            self.work = make_work()

        def __call__(self, row: Row) -> Row:
            return self.work(int(row["id"]))

    _set_up(preserve_order=ordered)
    rows = ray.data.range(count, override_num_blocks=-(-count // per_block)).map(
        Work, compute=ActorPoolStrategy(size=workers), num_cpus=1, num_gpus=gpus
    )
    yield from rows.iter_rows()


def _set_up(preserve_order: bool) -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = preserve_order
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)
