"""One trial of a sweep: Ray Train fits a varied plan, and Ray Tune hears how good it is at every rung.

Ray Train keeps a trial's checkpoints. Ray Tune gets pointers to them, small folders that say where one is: with them it
can restore a trial, and population based training can start one trial from another's weights.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.util.queue import Queue

from vosforge.data.shards import ShardSet
from vosforge.networks import MemoryNetwork
from vosforge.search.examining import METRIC, METRICS, RUNGS, Examination, check_scores, note_scores, rungs_of
from vosforge.search.space import CHOICES, DEFAULT_EVERY, MEMORY_EVERY, vary
from vosforge.search.warm_starts import WarmStart, warm_start
from vosforge.storage import absolute, delete_folder, exists, is_local, join
from vosforge.training.checkpoints import adopt, latest_whole
from vosforge.training.loop import Examine
from vosforge.training.on_ray import fit
from vosforge.training.plan import TrainingPlan

_POINTER_FILE = "pointer.json"
_SECONDS_BETWEEN_LOOKS = 0.5
# Of a run on S3, where every look is paid for.
_SECONDS_BETWEEN_REQUESTS = 3.0
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Resources:
    """What a trial reserves.

    Attributes:
        workers: training processes.
        cpus: of each.
        gpus: share of a GPU of each; 0 trains on CPUs, 0.5 puts two workers on a GPU.
        feeders: processes that decode clips, for each worker; each reserves a CPU.
        threads: torch's in each worker; None leaves its default.
    """

    workers: int = 1
    cpus: float = 1
    gpus: float = 0
    feeders: int = 1
    threads: int | None = 1


@dataclass(frozen=True)
class Sweep:
    """What every trial of a sweep shares.

    Attributes:
        name: of the sweep; with the storage it identifies it.
        plan: the training plan that trials vary.
        validation: URI of the shards of which half scores trials; no trial trains on them.
        storage: `s3://` URI of runs, or a folder that all nodes see.
        trials: how many.
        concurrency: most trials at a time.
        resources: of each.
        scheduler: "asha" stops poor trials at rungs, "pbt" starts them again from better ones, changed; or "none".
        search: "optuna" proposes from what was found, "random" draws, "grid" enumerates.
        metric: what is maximised, one of `METRICS`.
        rungs: how many there are, the end included.
        reduction: at each rung ASHA keeps one of so many trials; with it, so many times as many steps lie before the
            next rung.
        protocol, short_side: how trials are scored, as in `Examination`.
        seed: of the searcher.
        shared_stages: leading stages that are trained once for all trials that have them in common.
        memory_every: values of the space, with which the end of the shared stages is scored.
    """

    name: str
    plan: TrainingPlan
    validation: str
    storage: str
    trials: int
    concurrency: int = 2
    resources: Resources = Resources()
    scheduler: str = "none"
    search: str = "optuna"
    metric: str = METRIC
    rungs: int = 3
    reduction: int = 2
    protocol: str = "davis2017"
    short_side: int | None = None
    seed: int = 0
    shared_stages: int = 0
    memory_every: tuple[int, ...] = (DEFAULT_EVERY,)

    @property
    def folder(self) -> str:
        """Of the sweep's runs."""
        return join(self.storage, self.name)

    @property
    def rung_steps(self) -> tuple[int, ...]:
        """Steps at which trials are scored, the last step included."""
        total = self.plan.total_steps
        if self.scheduler == "none":
            return (total,)
        first = self.first_rung
        if self.scheduler == "pbt":
            return tuple(dict.fromkeys([*range(first, total, first), total]))
        return tuple(sorted({min(total, first * self.reduction**i) for i in range(self.rungs)} | {total}))

    @property
    def first_rung(self) -> int:
        """Steps before the first rung, and between the rungs of population based training.

        A checkpoint is due there: a multiple of the plan's steps between checkpoints, or less than those.
        """
        parts = self.rungs if self.scheduler == "pbt" else self.reduction ** (self.rungs - 1)
        steps, every = -(-self.plan.total_steps // parts), self.plan.checkpoint_every
        return steps if steps < every else -(-steps // every) * every

    def examination(self, scores: str, rungs: tuple[int, ...], memory_every: int) -> Examination:
        """What scores a run at some steps, and writes into a folder."""
        return Examination(self.validation, scores, rungs, memory_every, self.protocol, self.short_side)

    @property
    def digest(self) -> str:
        """Of how trials are scored."""
        content = [ShardSet(self.validation).digest, self.protocol, self.short_side]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def run_trial(config: dict[str, Any], sweep: Sweep, queue: Queue) -> None:
    """What Ray Tune runs for each trial."""
    trial, choices = tune.get_context().get_trial_id(), config[CHOICES]

    def tell(news: dict[str, Any]) -> None:
        shown = {key: value for key, value in news.items() if key != "preview"}
        queue.actor.put_nowait.remote({**shown, "trial": trial})

    given = _given_pointer()
    plan = vary(sweep.plan, choices, f"{sweep.name}-{trial}")
    warm = None
    if given is None and sweep.shared_stages:
        warm = warm_start(plan, sweep.shared_stages, sweep.storage, partial(_train_shared, sweep=sweep, tell=tell))
    name, begin, reported = _continuation(trial, plan, given, warm)
    plan = vary(sweep.plan, choices, name)
    run = join(sweep.folder, name)
    adopted = adopt(begin, run, plan.digest) if begin and latest_whole(run) is None else None
    saved = _saved(warm) if warm else (given or {}).get("saved", {})
    every = choices.get(MEMORY_EVERY, DEFAULT_EVERY)
    report = partial(_report, trial=trial, plan=plan, tell=tell, saved=saved)
    if warm is not None:
        tell({"warm_start": warm.run, "step": warm.steps, "reused": warm.reused})
        for scores in rungs_of(_warm_scores(warm.run, sweep, every)):
            note_scores(join(run, RUNGS), scores)
            report(scores, warm.checkpoint)
    examine = sweep.examination(join(run, RUNGS), sweep.rung_steps, every)
    training = _Training(partial(_fit, plan, sweep.folder, sweep, tell, examine))
    _report_rungs(training, run, reported, plan.total_steps, report)
    network = training.result()
    if adopted is not None and sweep.scheduler != "pbt":
        delete_folder(adopted)
    last = rungs_of(join(run, RUNGS))[-1]
    report(last, _checkpoint(run, last["step"]), network=absolute(network))


def _report_rungs(training: _Training, run: str, reported: int, total: int, report: Callable[..., None]) -> None:
    """Report each rung while a run trains, but the last: it ends a trial, and is reported with the network."""
    while not training.over:
        time.sleep(_SECONDS_BETWEEN_LOOKS if is_local(run) else _SECONDS_BETWEEN_REQUESTS)
        for scores in rungs_of(join(run, RUNGS), after=reported):
            if scores["step"] < total and _is_kept(run, scores["step"]):
                report(scores, _checkpoint(run, scores["step"]))
                reported = scores["step"]


class _Training:
    """A fit on Ray Train in a thread of its own, which dies with the trial."""

    def __init__(self, train: Callable[[], str]):
        self._network, self._error = "", None

        def work() -> None:
            try:
                self._network = train()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> str:
        if self._error is not None:
            raise self._error
        return self._network


def _fit(plan: TrainingPlan, storage: str, sweep: Sweep, tell: Tell, examine: Examine) -> str:
    resources = sweep.resources
    return fit(
        plan,
        storage,
        tell,
        workers=resources.workers,
        use_gpu=resources.gpus > 0,
        cpus_per_worker=resources.cpus,
        feeders=resources.feeders,
        threads=resources.threads,
        gpu_share=resources.gpus or 1.0,
        keep=None if sweep.scheduler == "pbt" else 2,
        examine=examine,
    )


def _train_shared(part: TrainingPlan, storage: str, sweep: Sweep, tell: Tell) -> None:
    """Train leading stages to their end, and score them there with each `memory_every` that a trial may have."""
    run = join(storage, part.name)
    scored = [
        sweep.examination(_warm_scores(run, sweep, every), (part.total_steps,), every) for every in sweep.memory_every
    ]
    _fit(part, storage, sweep, tell, partial(_examine_all, scored))


def _examine_all(examinations: list[Examination], network: MemoryNetwork, step: int) -> dict[str, float]:
    """What the last of several examinations gives; all of them write their scores down."""
    found: dict[str, float] = {}
    for examine in examinations:
        found = examine(network, step)
    return found


def _warm_scores(run: str, sweep: Sweep, every: int) -> str:
    """Where scores of a warm start are, which other sweeps may score otherwise."""
    return join(run, f"{RUNGS}-{sweep.digest}-{every}")


def _checkpoint(run: str, step: int) -> str:
    return join(run, f"step_{step:08d}")


def _continuation(
    trial: str, plan: TrainingPlan, given: dict[str, Any] | None, warm: WarmStart | None
) -> tuple[str, str | None, int]:
    """Name of the trial's run, the checkpoint that it begins from, and the last step that Tune has heard of.

    A trial that is restored is given its own pointer, and goes on with that run. One that is to go on from another
    trial's weights is given that one's, and begins a new run.
    """
    if given is None:
        return plan.name, warm.checkpoint if warm else None, warm.steps if warm else 0
    if (given["trial"], given["plan"]) == (trial, plan.digest):
        return given["run"], None, given["step"]
    mark = hashlib.sha256(f"{given['checkpoint']} {plan.digest}".encode()).hexdigest()[:6]
    return f"{plan.name}-{mark}", given["checkpoint"], given["step"]


def _given_pointer() -> dict[str, Any] | None:
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return json.loads((Path(folder) / _POINTER_FILE).read_text())


def _is_kept(run: str, step: int) -> bool:
    """Whether the checkpoint of a rung is there, which is written after its scores, or was there and is gone."""
    latest = latest_whole(run)
    return latest is not None and int(latest.rpartition("_")[2]) >= step


def _report(
    scores: dict[str, Any],
    checkpoint: str,
    trial: str,
    plan: TrainingPlan,
    tell: Tell,
    saved: dict[str, Any],
    **extra: Any,
) -> None:
    """Tell Tune and the sweep what a rung gave, with a pointer to its checkpoint.

    Raises:
        UserError: for scores that are no numbers.
    """
    check_scores(scores, f"run {plan.name}")
    step = scores["step"]
    metrics = {name: scores[name] for name in METRICS}
    tell({"rung": step, **metrics})
    pointer = {"trial": trial, "run": plan.name, "checkpoint": checkpoint, "step": step, "plan": plan.digest}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _POINTER_FILE).write_text(json.dumps({**pointer, "saved": saved}))
        told = {**metrics, "step": step, "run": plan.name, **saved, **extra}
        tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))


def _saved(warm: WarmStart) -> dict[str, Any]:
    """What a warm start that was there already saved a trial."""
    return {"saved_steps": warm.steps, "saved_seconds": warm.seconds} if warm.reused else {}


def network_of(run: str, step: int) -> str | None:
    """The network of a run that is finished, else the one of a step, else the newest; None where there is none.

    A trial trains on for a moment after the rung at which it is stopped.
    """
    for folder in (run, _checkpoint(run, step), latest_whole(run)):
        if folder is not None and exists(found := join(folder, "network.safetensors")):
            return found
    return None
