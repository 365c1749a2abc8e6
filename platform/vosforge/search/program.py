"""What the programs of tuning/ share: options, the sweep behind a search space, and what is told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vosforge import cluster, console
from vosforge.evaluation.report import table
from vosforge.outputs import lasting
from vosforge.search.examining import METRIC
from vosforge.search.plots import draw_sweep
from vosforge.search.sweeps import AllFailed, run_sweep
from vosforge.search.trials import Resources, Sweep
from vosforge.storage import check_writable, join
from vosforge.tracking import default_store
from vosforge.tracking.sweeps import SweepRun
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan

# Options that a sweep has under the same name.
_SAME = (
    "trials", "concurrency", "scheduler", "metric", "rungs", "reduction", "protocol", "short_side", "seed"
)  # fmt: skip


@dataclass
class SweepOptions:
    """Search a network's hyperparameters and parts; the space stands in the program."""

    trials: int
    """How many."""
    data: list[str]
    """Shards to train on."""
    validation: str
    """Shards of which half scores trials; the other half is left to tuning/ensemble.py."""
    stages: list[str] = field(default_factory=lambda: ["bl30k"])
    """Stages that each trial trains, in order."""
    size: str = "nano"
    """nano, small or paper."""
    steps: int | None = None
    """Optimiser steps of every stage; each stage's own when left out."""
    initial: str | None = None
    """Network file, or s3:// URI of one, that all trials start from."""
    name: str | None = None
    """Of the sweep; NETWORK-sweep when left out. The same command again finishes one that was stopped."""
    storage: str = "runs"
    """Folder of runs, which all nodes of a cluster see, or s3:// URI."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """asha stops poor trials at rungs; pbt starts them again from better ones with changed settings."""
    search: Literal["optuna", "random", "grid"] | None = None
    """optuna proposes from what was found, random draws, grid enumerates; optuna when left out, with pbt random."""
    rungs: int = 3
    """Where trials are scored and compared, the end included; without a scheduler that is the end alone. With pbt, ten
    or more: each is a chance to go on from another trial."""
    reduction: int = 2
    """Of asha: each rung keeps one trial of so many, and the next lies at so many times as many steps."""
    metric: str = METRIC
    """What is maximised on the validation set: JF_mean, J_mean or F_mean."""
    protocol: str = "davis2017"
    """Which objects and frames count, as in jobs/evaluate.py."""
    short_side: int | None = None
    """Pixels to which validation frames are reduced."""
    concurrency: int = 2
    """Most trials at a time; each needs a CPU or more for every worker and feeder."""
    workers: int = 1
    """Training processes of a trial."""
    cpus: float = 1
    """That each of them reserves."""
    gpus: float = 0
    """Share of a GPU that each of them reserves; 0.5 puts two on one."""
    feeders: int = 1
    """Processes that decode clips, for each worker."""
    threads: int | None = 1
    """Torch's threads in each worker."""
    seed: int = 0
    """Of the search and of all training."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def search(network: str, space: dict[str, Any], options: SweepOptions) -> str:
    """Run a sweep, or what is left of it, and track it in MLflow.

    Args:
        network: that trials train.
        space: as in `run_sweep`.
        options: of the sweep.

    Returns:
        What there is to tell: a table of the trials, what was refused and saved, and where the pictures are.

    Raises:
        UserError: as `run_sweep`.
    """
    console.verbosity(options.verbose)
    storage = lasting(options.storage, "--storage")
    sweep = make_sweep(network, options, storage)
    check_writable(storage)
    cluster.connect(options.verbose)
    total = sweep.trials * sweep.plan.total_steps
    settings = {**asdict(options), "network": network, "space": sorted(space)}
    with (
        console.Progress(total, sweep.name, "steps") as bar,
        SweepRun(sweep.name, storage, default_store(storage), settings, sweep.plan.total_steps) as tracked,
    ):
        news = _News(bar, sweep)

        def hear(told: dict[str, Any]) -> None:
            tracked.progress(told)
            news.hear(told)

        bar.say(
            f"sweep {sweep.name}: {sweep.trials} trials of {sweep.plan.total_steps} steps, scored at {_rungs(sweep)}"
        )
        try:
            found = run_sweep(sweep, space, hear)
        except AllFailed as error:
            tracked.finish(error.trials, sweep.metric, [])
            raise
        pictures = draw_sweep(found, sweep.metric, join(storage, sweep.name))
        tracked.finish(found, sweep.metric, pictures)
    return report(found, list(space), sweep, news.refused, pictures)


def make_sweep(network: str, options: SweepOptions, storage: str) -> Sweep:
    """The sweep that options describe."""
    name = options.name or f"{network}-sweep"
    chosen = curricula.stages(network, options.size, options.stages)
    stages = [stage if options.steps is None else replace(stage, steps=options.steps) for stage in chosen]
    plan = TrainingPlan(
        name=name,
        network=network,
        size=options.size,
        stages=[replace(stage, repeats=()) for stage in stages],
        data=options.data,
        seed=options.seed,
        initial=options.initial,
    )
    return Sweep(
        name,
        plan,
        options.validation,
        storage,
        resources=Resources(options.workers, options.cpus, options.gpus, options.feeders, options.threads),
        search=options.search or ("random" if options.scheduler == "pbt" else "optuna"),
        **{key: getattr(options, key) for key in _SAME},
    )


class _News:
    """Tells on the progress line what happens in a sweep."""

    def __init__(self, bar: console.Progress, sweep: Sweep):
        self.bar, self.sweep = bar, sweep
        self.refused: list[tuple[dict[str, Any], str]] = []
        self._steps: dict[str, int] = {}

    def hear(self, news: dict[str, Any]) -> None:
        metric = self.sweep.metric
        if "refused" in news:
            self.refused.append((news["refused"], news["reason"]))
        elif "rung" in news:
            self.bar.say(f"trial {news['trial']}: {metric} {news[metric]:.3f} at step {news['rung']}")
        elif "warm_start" in news:
            how = "was there" if news["reused"] else "is trained"
            self.bar.say(f"trial {news['trial']}: its first {news['step']} steps: {news['warm_start']} {how}")
        else:
            if not self._steps:
                # Starting processes says nothing about the speed of training.
                self.bar.resume(news["step"])
            self._steps[news["trial"]] = news["step"]
            note = f"trial {news['trial']} loss {news['loss']:.3f} J {news['J']:.3f}"
            self.bar.update(sum(self._steps.values()), note)


def report(
    found: list[dict[str, Any]],
    keys: list[str],
    sweep: Sweep,
    refused: list[tuple[dict[str, Any], str]],
    pictures: list[str],
) -> str:
    """A sweep in words: a table of its trials, best first, and what was refused, saved and drawn."""
    rows = [{**trial["config"], **trial, "network": trial["network"] or trial["error"]} for trial in found]
    lines = [table(rows, ["trial", "state", "step", *keys, sweep.metric, "network"])]
    for reason, configs in _by_reason(refused).items():
        others = f" and {len(configs) - 1} more" if len(configs) > 1 else ""
        lines.append(f"not tried, {configs[0]}{others}: {reason}")
    reused = [trial for trial in found if trial["saved_steps"]]
    if reused:
        steps, seconds = (sum(trial[f"saved_{unit}"] for trial in reused) for unit in ("steps", "seconds"))
        lines.append(f"warm starts saved {steps} steps, {seconds:.0f} s of training, in {len(reused)} trials")
    trained = sum(trial["step"] for trial in found)
    lines.append(f"{trained} of {len(found) * sweep.plan.total_steps} steps, the others stopped early or failed")
    lines += [f"picture: {picture}" for picture in pictures]
    return "\n".join(lines)


def _by_reason(refused: list[tuple[dict[str, Any], str]]) -> dict[str, list[dict[str, Any]]]:
    """What was refused, by why."""
    found: dict[str, list[dict[str, Any]]] = {}
    for config, reason in refused:
        found.setdefault(reason, []).append(config)
    return found


def _rungs(sweep: Sweep) -> str:
    return ", ".join(str(step) for step in sweep.rung_steps)
