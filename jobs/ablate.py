"""Train and measure the rows of a paper's ablation tables, and print them beside the paper's figures.

    python jobs/ablate.py --network emn --size nano --data shards/pseudo shards/bl30k --stages images bl30k \
        --truth DAVIS --split val --local
    python jobs/ablate.py --network skn --data shards/images shards/bl30k shards/videos --truth shards/val --gpu
    ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/ablate.py ... --storage s3://bucket/ablations

What rows share is trained once. The same command again goes on where it was stopped, and a command with another row,
seed or set of videos does only what is new.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from typing import Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import torch
import tyro

from vosforge import cluster
from vosforge.ablation.measuring import TruthSource
from vosforge.ablation.processes import Processes
from vosforge.ablation.recording import Recording, record_tables
from vosforge.ablation.report import markdown, results
from vosforge.ablation.study import Needs, Study, needs, perform
from vosforge.ablation.tables import tables
from vosforge.errors import UserError
from vosforge.evaluation.parallel import cores
from vosforge.evaluation.report import without_nan
from vosforge.outputs import lasting
from vosforge.storage import check_writable, is_local, join, write_bytes
from vosforge.tracking import default_store
from vosforge.training.steps import Execution


@dataclasses.dataclass
class Options:
    """Train and measure the rows of a paper's ablation tables."""

    network: str
    """stm, emn, qpm, skn or camn."""
    data: list[str]
    """Folders or s3:// URIs of shards to train on; each stage takes those of its kind."""
    truth: list[str]
    """Videos to measure on, as in evaluate.py; a column each. Nothing is trained on them."""
    split: str | None = None
    """List in ImageSets/ of a folder."""
    limit: int | None = None
    """Most videos of each set."""
    size: str = "paper"
    """nano, small or paper."""
    stages: list[str] | None = None
    """Some of images, bl30k and videos, in order; by default those of the paper."""
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2])
    """Every network is trained once with each."""
    steps: int | None = None
    """Optimiser steps of every stage; the curriculum's when left out."""
    batch: int | None = None
    """Global batch in clips of every stage."""
    learning_rate: float | None = None
    """Of every stage."""
    crop: int | None = None
    """Height and width of training clips in pixels."""
    short_side: int | None = None
    """Pixels to which frames are reduced when measuring; their own size when left out."""
    protocol: str = "davis2017"
    """davis2017, davis2016, youtube or all-frames."""
    storage: str = "runs/ablations"
    """Folder or s3:// URI; ablations that share it share what they have in common."""
    name: str | None = None
    """Of the report and its MLflow run; ablation-network-size when left out."""
    at_once: int | None = None
    """Trainings and measurements under way together; by default one a core with --local, else two."""
    workers: int = 1
    """Processes that share a training's batch, on Ray."""
    gpu: bool = False
    """One GPU for each worker, and for measuring."""
    threads: int = 1
    """Torch's threads in each process."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = dataclasses.field(default_factory=Execution)
    local: bool = False
    """Train and measure in processes of this machine, without Ray."""
    dry_run: bool = False
    """Print what would be trained and measured, and stop."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def main(options: Options) -> None:
    """Do what the tables need, print them and write the report."""
    console.verbosity(options.verbose)
    storage = lasting(options.storage, "--storage")
    study = make_study(options, storage)
    found = needs(study)
    describe(study, found)
    if options.dry_run:
        return
    check_writable(storage)
    name = options.name or f"ablation-{options.network}-{options.size}"
    store = default_store(storage)
    scores, failed = carry_out(options, study, found, store)
    if not scores:
        raise UserError(f"nothing could be measured; the first reason: {next(iter(failed.values()))}")
    told = results(study, found, scores, failed)
    text = markdown(study, told, shlex.join(["python", *sys.argv]))
    write_bytes(join(storage, name, "report.md"), text.encode())
    write_bytes(join(storage, name, "report.json"), json.dumps(without_nan(told), indent=1).encode())
    record_tables(name, study, told, text, store)
    print(f"\n{text}\nreport: {join(storage, name, 'report.md')}")


def make_study(options: Options, storage: str) -> Study:
    """What the options ask for."""
    if options.local and not is_local(storage):
        raise UserError(f"--storage {storage}: with --local it must be a local folder; leave --local out")
    if options.local and (options.workers != 1 or options.gpu):
        raise UserError("--local trains in single processes; leave --workers and --gpu out")
    for flag in ("at_once", "workers", "threads"):
        if getattr(options, flag) is not None and getattr(options, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')}: expected at least 1, found {getattr(options, flag)}")
    numbers = {key: getattr(options, key) for key in ("steps", "batch", "learning_rate")}
    return Study(
        tables(options.network),
        options.size,
        tuple(options.data),
        tuple(TruthSource(uri, options.split, options.limit) for uri in options.truth),
        storage,
        tuple(options.seeds),
        tuple(options.stages) if options.stages else None,
        {key: value for key, value in numbers.items() if value is not None},
        options.crop,
        options.protocol,
        options.short_side,
        "cuda" if options.gpu or (options.local and torch.cuda.is_available()) else "cpu",
    )


def describe(study: Study, found: Needs) -> None:
    """Print what is trained and measured, and how much sharing saves."""
    for table in study.tables:
        print(f"{table.source}: {len(table.rows)} rows, {len(study.seeds)} seeds")
    saved = 1 - found.steps / found.wanted
    print(
        f"  {len(found.runs)} stages to train, {found.steps:,} steps; without sharing {found.wanted:,}, so {saved:.0%} "
        f"saved\n  {len(found.measurements)} models to measure",
        flush=True,
    )


def carry_out(
    options: Options, study: Study, found: Needs, store: str
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Train and measure, with progress, tracking every training."""
    how = {"workers": options.workers, "gpu": options.gpu, "ablation": options.network}
    recording = Recording(study, found, store, how)
    steps: dict[str, int] = {}
    done: set[str] = set()
    with console.Progress(found.steps, f"ablation {options.network}", "steps") as bar:

        def on_progress(name: str, metrics: dict[str, Any]) -> None:
            steps[name] = metrics["step"]
            recording.progress(name, metrics)
            bar.update(sum(steps.values()), f"{name} loss {metrics['loss']:.3f} J {metrics['J']:.3f}")

        def on_done(name: str, reason: str | None) -> None:
            if reason is not None:
                bar.say(f"{name} failed: {reason}")
            if name in found.runs:
                recording.done(name, reason)
                if steps.get(name) != found.runs[name].total_steps:
                    steps[name] = found.runs[name].total_steps
                    bar.update(sum(steps.values()))
                return
            done.add(name)
            bar.say(f"measured {len(done)} of {len(found.measurements)}")

        try:
            with workplace(options, study, on_progress) as place:
                return perform(found, place.train, place.measure, on_done)
        finally:
            recording.close()


def workplace(options: Options, study: Study, on_progress: Any) -> Any:
    """Where to train and measure: processes of this machine, or Ray."""
    if options.local:
        return Processes(study, options.at_once or cores(), options.threads, on_progress, options.execution)
    from vosforge.ablation.on_ray import OnRay

    cluster.connect(options.verbose)
    console.heed_sigterm()
    return OnRay(
        study, options.at_once or 2, on_progress, options.workers, options.gpu, options.threads, options.execution
    )


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)))
