"""Warm starts: leading stages that trials have in common are trained once, by the first that needs them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vosforge.errors import UserError
from vosforge.search.space import first_stage
from vosforge.storage import exists, is_local, join, local_path, read_bytes, write_bytes
from vosforge.training.checkpoints import latest_whole
from vosforge.training.plan import TrainingPlan

FOLDER = "warm-starts"
_COST_FILE = "cost.json"


@dataclass(frozen=True)
class WarmStart:
    """A checkpoint at the end of the shared stages.

    Attributes:
        run: URI of the run that made it.
        checkpoint: its folder.
        steps: that it holds.
        seconds: that training it took.
        reused: whether it was there already.
    """

    run: str
    checkpoint: str
    steps: int
    seconds: float
    reused: bool


def shared_stages(plan: TrainingPlan, discrete: dict[str, bool]) -> int:
    """How many leading stages are worth training apart, since several trials may have them in common.

    Args:
        plan: that trials vary.
        discrete: of each key of the search space, whether its values are a few. Of a range no two trials take the same.

    Returns:
        The largest number such that no key with a range changes a stage before it, and some key changes none; 0 when
        every trial must begin by itself.
    """
    firsts = {key: first_stage(plan, key) for key in discrete}
    most = min([first for key, first in firsts.items() if not discrete[key]], default=len(plan.stages))
    count = min(most, len(plan.stages) - 1)
    return count if any(first >= count for first in firsts.values()) else 0


def leading(plan: TrainingPlan, stages: int) -> TrainingPlan:
    """The plan up to a stage, under a name that follows from all that determines its weights."""
    part = replace(plan, stages=plan.stages[:stages])
    return replace(part, name=f"warm-{part.content_digest}")


def warm_start(plan: TrainingPlan, stages: int, storage: str, train: Callable[[TrainingPlan, str], Any]) -> WarmStart:
    """The checkpoint at the end of a plan's leading stages: trained here, or by whoever came first.

    Trials that ask for the same one at a time wait for it. A process that dies leaves it to the next, which goes on
    from its last checkpoint.

    Args:
        plan: of the trial.
        stages: how many of them are shared.
        storage: folder or `s3://` URI of runs; sweeps in it share their warm starts.
        train: trains a plan in a folder of runs to its end.

    Raises:
        UserError: when training fails, or its checkpoint was deleted.
    """
    part, folder = leading(plan, stages), join(storage, FOLDER)
    run = join(folder, part.name)
    with _alone(join(folder, f"{part.name}.lock")):
        reused = exists(join(run, _COST_FILE))
        if not reused:
            started = time.monotonic()
            train(part, folder)
            cost = {"seconds": time.monotonic() - started, "steps": part.total_steps, "plan": asdict(part)}
            write_bytes(join(run, _COST_FILE), json.dumps(cost).encode())
        cost = json.loads(read_bytes(join(run, _COST_FILE)))
        checkpoint = latest_whole(run)
    if checkpoint is None:
        raise UserError(f"{run}: its checkpoint is gone; delete the folder, and it is trained again")
    return WarmStart(run, checkpoint, part.total_steps, cost["seconds"], reused)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock that is free again when this process has ended: on S3 a minute later, else at once."""
    if not is_local(uri):
        from vosforge import s3

        with s3.lease(uri):
            yield
        return
    path = local_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
