"""Search STM's hyperparameters and parts with Ray Tune.

    python tuning/stm.py --trials 8 --data shards/bl30k --validation shards/validation \
        --initial runs/stm-nano/network.safetensors

Copy this file to search another space: `SPACE` is in Ray Tune's own words, and each key is a field of a stage
(learning_rate, weight_decay, batch, ...) or a part of the network (reader, top_k, backbone, ...).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro
from ray import tune

from vosforge import cluster
from vosforge.evaluation.report import table
from vosforge.search.trials import METRIC, Sweep, run_sweep
from vosforge.storage import check_writable
from vosforge.tracking import Run, default_store
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan

SPACE = {
    "learning_rate": tune.loguniform(5e-4, 4e-3),
    "reader": tune.choice(["dense", "topk"]),
}


def main(
    trials: int,
    data: list[str],
    validation: str,
    stages: list[str] | None = None,
    size: str = "nano",
    steps: int | None = None,
    initial: Path | None = None,
    name: str = "stm-sweep",
    storage: str = "runs",
    concurrency: int = 2,
    seed: int = 0,
    verbose: bool = False,
) -> None:
    """Search STM's hyperparameters and parts.

    Args:
        trials: How many.
        data: Shards to train on.
        validation: Shards that score a trial.
        stages: Stages that each trial trains; bl30k when left out.
        size: nano, small or paper.
        steps: Optimiser steps of every stage.
        initial: Network file that all trials start from.
        name: Of the sweep; the same command again finishes one that was stopped.
        storage: Folder of runs.
        concurrency: Trials at a time; each takes two CPUs.
        seed: Of the search and of all training.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    storage = cluster.lasting(storage, "--storage")
    chosen = curricula.stages("stm", size, stages or ["bl30k"])
    plan = TrainingPlan(
        name=name,
        network="stm",
        size=size,
        stages=[stage if steps is None else replace(stage, steps=steps) for stage in chosen],
        data=data,
        seed=seed,
        initial=str(initial) if initial else None,
    )
    check_writable(storage)
    cluster.connect(verbose)
    print(f"sweep {name}: {trials} trials of {plan.total_steps} steps, {concurrency} at a time", flush=True)
    sweep = Sweep(name, plan, validation, storage, trials, concurrency, seed=seed)
    with console.Progress(trials * plan.total_steps, name, "steps") as bar:
        found = run_sweep(sweep, SPACE, partial(_show, bar, {}))
    for trial in found:
        _track(name, trial, storage)
    print(table([_row(trial) for trial in found], ["trial", *SPACE, METRIC, "network"]))


def _show(bar: console.Progress, steps: dict[str, int], news: dict[str, Any]) -> None:
    """Count every trial's steps, and tell each trial's score when it is there."""
    if METRIC in news:
        bar.say(f"trial {news['trial']}: {METRIC} {news[METRIC]:.3f} with {news['config']}")
    else:
        steps[news["trial"]] = news["step"]
        bar.update(sum(steps.values()), f"trial {news['trial']} loss {news['loss']:.3f} J {news['J']:.3f}")


def _track(sweep: str, trial: dict[str, Any], storage: str) -> None:
    with Run(f"{sweep}-{trial['trial']}", default_store(storage), storage) as run:
        run.params(trial["config"])
        run.tags({"vosforge.sweep": sweep, "vosforge.network": trial["network"] or trial["error"]})
        run.metrics(0, {key: trial[key] for key in (METRIC, "J_mean", "F_mean")})


def _row(trial: dict[str, Any]) -> dict[str, Any]:
    return {**trial["config"], **trial, "network": trial["network"] or trial["error"]}


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
