"""Train a network through stages of its curriculum, on Ray or in this process.

    python jobs/train.py --network stm --size nano --stages images bl30k --data shards/pseudo shards/bl30k
    python jobs/train.py --network emn --size nano --stages images --data shards/pseudo --parts reader=topk --local
    python jobs/train.py --network skn --stages bl30k videos --data shards/* --videos.learning-rate 2e-5 --dry-run
    ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/train.py ... --storage s3://bucket/runs

The same command again continues a run that was stopped, from its last checkpoint; so does `--resume runs/NAME`, from
what the run's directory says. Every number of a stage has a flag:
--videos.batch, --images.sampling.crop, --bl30k.loss.hardest; name network and size, and --help lists them all with the
values of that curriculum.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import torch
import tyro

from vosforge import cluster, pictures
from vosforge.data.sampling import ClipSampler
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.networks import preset
from vosforge.networks.parts import parse
from vosforge.outputs import lasting, lasting_file
from vosforge.storage import check_space, check_writable
from vosforge.tracking import default_store
from vosforge.tracking.training import TrainingRun
from vosforge.training import curricula
from vosforge.training.checkpoints import latest_whole, space_needed
from vosforge.training.clip_order import clip_numbers, dataset_names
from vosforge.training.loop import fit_locally
from vosforge.training.memory import Memory, estimate
from vosforge.training.plan import TrainingPlan, noted_execution, read_plan
from vosforge.training.sheets import stage_rows
from vosforge.training.stages import Stage
from vosforge.training.steps import Execution

# What a run's directory says of how it was computed last, beside `Execution`.
_HOW = ("workers", "min_workers", "gpu", "feeders", "threads")


@dataclass
class Options:
    """Train a network through stages of its curriculum; or go on with a run: --resume URI, --resume --help."""

    network: str
    """stm, stm-interactive, emn, qpm, skn, camn, cfbi+, mivos, kmn or stcn."""
    stages: list[str]
    """Some of images, bl30k and videos, in order."""
    data: list[str]
    """Folders or s3:// URIs of shards; each stage takes those of its kind."""
    size: str = "paper"
    """nano, small or paper."""
    name: str | None = None
    """Of the run; network-size when left out."""
    storage: str = "runs"
    """Folder or s3:// URI of runs."""
    parts: list[str] = field(default_factory=list)
    """Parts of the network as PART=VALUE, e.g. reader=kernel sigma=5 siamese=true; the preset's when left out."""
    steps: int | None = None
    """Optimiser steps of every stage; each stage's own when left out, as below."""
    batch: int | None = None
    """Global batch in clips of every stage, shared by the workers."""
    learning_rate: float | None = None
    """Of every stage."""
    crop: int | None = None
    """Height and width of training clips in pixels, of every stage."""
    initial: str | None = None
    """Network file to start from."""
    seed: int = 0
    """Weights, clips and their order follow from it."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    workers: int = 1
    """Processes that share the batch."""
    min_workers: int | None = None
    """Fewest of them to go on with while machines are gone; all when left out. The same is learnt by fewer, slower."""
    gpu: bool = False
    """One GPU for each worker."""
    feeders: int = 1
    """Processes that decode clips, for each worker."""
    threads: int | None = None
    """Torch's threads in each worker."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)
    local: bool = False
    """Train in this process, without Ray."""
    dry_run: bool = False
    """Print the plan, with the memory that each stage needs, and stop."""
    sheet: Path | None = None
    """Picture (PNG) of clips that each stage would train on, with spoilt masks and scribbles where it has them."""
    verbose: bool = False
    """Show tracebacks and library messages."""


@dataclass
class Resumption:
    """Continue a run that was stopped, from what its directory says."""

    resume: str
    """The run's folder or s3:// URI: its storage and name."""
    workers: int = 1
    """Processes that share the batch; another number than before sees the same clips at the same steps."""
    min_workers: int | None = None
    """Fewest of them to go on with while machines are gone; all when left out."""
    gpu: bool = False
    """One GPU for each worker."""
    feeders: int = 1
    """Processes that decode clips, for each worker."""
    threads: int | None = None
    """Torch's threads in each worker."""
    execution: tyro.conf.OmitArgPrefixes[Execution] = field(default_factory=Execution)
    verbose: bool = False
    """Show tracebacks and library messages."""


def parse_flags() -> tuple[Options, dict[str, Stage]]:
    """The options, and the stages of the network's curriculum with what flags change in them."""
    chosen, _ = _chooser().parse_known_args()
    there = curricula.curriculum(chosen.network, chosen.size).stages
    groups = [("options", tyro.conf.OmitArgPrefixes[Options])]
    groups += [(name, Stage, field(default=stage)) for name, stage in there.items()]
    # Which stages there are, and their values, depend on the network and its size.
    flags = tyro.cli(make_dataclass("Flags", groups), config=(tyro.conf.AvoidSubcommands,), description=Options.__doc__)
    stages = {name: getattr(flags, name) for name in there}
    strange = [name for name in there if stages[name] != there[name] and name not in flags.options.stages]
    if strange:
        raise UserError(f"--{strange[0]}...: stage {strange[0]} is not in --stages {' '.join(flags.options.stages)}")
    return flags.options, stages


def parse_resumption() -> Resumption:
    """The options, by default as the run was computed last."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume")
    uri = parser.parse_known_args()[0].resume
    if not uri:
        return tyro.cli(Resumption)
    noted = noted_execution(lasting(uri.rstrip("/"), "--resume"))
    known = {name: noted[name] for name in _HOW if name in noted}
    before = noted.get("execution", {})
    execution = Execution(**{f.name: before[f.name] for f in fields(Execution) if f.name in before})
    return tyro.cli(Resumption, default=Resumption(uri, execution=execution, **known))


def _chooser() -> argparse.ArgumentParser:
    """What has to be known of the command line before the rest can be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--network", default="stm")
    parser.add_argument("--size", default="paper")
    return parser


def main(options: Options, stages: dict[str, Stage]) -> None:
    """Train as the options say, or print what would be done."""
    console.verbosity(options.verbose)
    storage = lasting(options.storage, "--storage")
    if options.local and (options.workers != 1 or options.min_workers is not None or options.gpu):
        raise UserError(
            "--local trains in this one process, on its GPU where it has one; leave --workers, --min-workers and --gpu "
            "out"
        )
    plan = make_plan(options, stages)
    describe(plan, options, options.dry_run)
    if options.sheet is not None:
        draw_sheet(plan, options.sheet)
    if not options.dry_run:
        train(plan, storage, options, options.local)


def resume(options: Resumption) -> None:
    """Go on with a run."""
    console.verbosity(options.verbose)
    where = lasting(options.resume.rstrip("/"), "--resume")
    plan, harness = read_plan(where)
    latest = latest_whole(where)
    describe(plan, options, fresh=latest is None)
    print(f"  its latest whole checkpoint: {latest.rpartition('/')[2] if latest else 'none, so it begins anew'}")
    train(plan, where.rpartition("/")[0], options, harness == "local")


def train(plan: TrainingPlan, storage: str, options: Options | Resumption, local: bool) -> None:
    """Train, in this process or on Ray, and track it."""
    check_writable(storage)
    check_space(storage, space_needed(plan.build_network(fresh=False)))
    with (
        TrainingRun(plan, storage, default_store(storage), _how(options)) as tracked,
        console.Progress(plan.total_steps, plan.name, "steps") as bar,
    ):
        latest: dict[str, Any] = {}

        def on_progress(metrics: dict[str, Any]) -> None:
            tracked.progress(metrics)
            if not latest:
                # Steps of an earlier process say nothing about this one's speed.
                bar.resume(metrics["step"])
            # The probe's J stays in sight between checkpoints.
            latest.update(metrics)
            bar.update(metrics["step"], _note(latest))

        if local:
            if options.threads:
                torch.set_num_threads(options.threads)
            target = str(fit_locally(plan, storage, on_progress, options.execution))
        else:
            from vosforge.training.on_ray import fit

            cluster.connect(options.verbose)
            console.heed_sigterm()
            target = fit(
                plan,
                storage,
                on_progress,
                options.workers,
                options.gpu,
                feeders=options.feeders,
                threads=options.threads,
                execution=options.execution,
                least=options.min_workers,
            )
        tracked.network(target)
    print(f"trained network: {target}")


def make_plan(options: Options, stages: dict[str, Stage]) -> TrainingPlan:
    """The chosen stages with what the options change in all of them."""
    known = curricula.stages(options.network, options.size, options.stages)
    if len(set(options.stages)) < len(options.stages):
        raise UserError(f"--stages: expected each once, found {' '.join(options.stages)}")
    sets = [ShardSet(uri) for uri in options.data]
    chosen = {"steps": options.steps, "batch": options.batch, "learning_rate": options.learning_rate}
    settings = {key: value for key, value in chosen.items() if value is not None}
    return TrainingPlan(
        name=options.name or f"{options.network}-{options.size}",
        network=options.network,
        size=options.size,
        stages=[_adjusted(_mixed(stages[stage.name], stage, sets), settings, options.crop) for stage in known],
        data=options.data,
        parts=parse(options.parts, type(preset(options.network, options.size))),
        seed=options.seed,
        initial=options.initial,
        checkpoint_every=options.checkpoint_every,
    )


def _mixed(stage: Stage, known: Stage, sets: list[ShardSet]) -> Stage:
    """The stage without its curriculum's own repeats of data sets that are not given; those of a flag must be there."""
    there = dataset_names(sets)
    kept = [pair for pair in stage.repeats if pair not in known.repeats or pair[0].lower() in there]
    for name, factor in set(stage.repeats) - set(kept):
        print(f"  {stage.name}: without the curriculum's {name} x{factor:g}, since no data set has that name")
    return replace(stage, repeats=tuple(kept))


def _adjusted(stage: Stage, settings: dict[str, Any], crop: int | None) -> Stage:
    sampling = stage.sampling if crop is None else replace(stage.sampling, crop=(crop, crop))
    return replace(stage, sampling=sampling, **settings)


def describe(plan: TrainingPlan, options: Options | Resumption, memory: bool = False, fresh: bool = True) -> None:
    """Print the plan, on request with the memory that it needs; what is wrong with it shows here.

    Files of weights that a run began with are needed by a fresh one alone.
    """
    network = plan.build_network(fresh=fresh)
    count = sum(p.numel() for p in network.parameters())
    print(
        f"run {plan.name}: {plan.network} {plan.size} {plan.parts or ''}, {count / 1e6:.1f} M parameters, "
        f"numbers of {curricula.curriculum(plan.network, plan.size).source}"
    )
    start = plan.initial or f"fresh weights of seed {plan.seed}"
    for stage, sampler in zip(plan.stages, plan.samplers(), strict=True):
        share = len(clip_numbers(0, stage.batch, 0, options.workers))
        pieces = options.execution.pieces(share, stage.batch)
        frames, (height, width) = stage.sampling.frames, stage.sampling.crop
        print(
            f"  {stage.name}: {stage.steps:,} steps of {stage.batch} clips of {frames} frames at {height}x{width}, "
            f"{stage.steps * stage.batch:,} clips, from {start}\n"
            f"    {options.workers} workers with {share} clips each"
            + (f", in {pieces} pieces" if pieces > 1 else "")
            + f"; {stage.optimizer} {stage.learning_rate:g}, {_schedule(stage)}; {_losses(stage)}"
        )
        for dataset, videos, epochs in _epochs(stage, sampler):
            print(f"    {dataset}: {videos:,} videos, {epochs:.1f} clips of each")
        if memory:
            print(f"    {_memory(estimate(stage, network, share, options.execution, options.workers))}")
        start = f"stage {stage.name}"


def draw_sheet(plan: TrainingPlan, path: Path) -> None:
    """Write a picture of what the stages train on."""
    path = lasting_file(path, "--sheet").with_suffix(".png")
    check_writable(str(path.parent))
    shown = zip(plan.stages, plan.samplers(), strict=True)
    rows = [row for stage, sampler in shown for row in stage_rows(stage, sampler, plan.seed)]
    pictures.write_png(path, pictures.contact_sheet(rows, height=128))
    print(f"what is trained on: {path}")


def _memory(found: Memory) -> str:
    parts = ("weights", "gradients", "optimizer", "average", "activations")
    told = ", ".join(f"{part} {_bytes(getattr(found, part))}" for part in parts if getattr(found, part))
    return f"memory of a worker: about {_bytes(found.total)} ({told})"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def _schedule(stage: Stage) -> str:
    told = [f"warm-up {stage.warm_up}"] if stage.warm_up else []
    told += [f"poly {stage.power:g}"] if stage.power else []
    told += [f"a tenth at {', '.join(f'{at:.0%}' for at in stage.milestones)}"] if stage.milestones else []
    return ", ".join(told) or "constant"


def _losses(stage: Stage) -> str:
    told = [stage.loss.kind + (f" of the hardest {stage.loss.hardest:.0%}" if stage.loss.hardest < 1 else "")]
    told += [name for name in ("soft_jaccard", "dice") if getattr(stage.loss, name)]
    told += ["estimates spoilt"] if stage.corruption.happens else []
    return ", ".join(told)


def _epochs(stage: Stage, sampler: ClipSampler) -> list[tuple[str, int, float]]:
    """Each data set, its videos, and how many clips the stage draws of one."""
    shares = sampler.shares()
    clips = stage.steps * stage.batch
    return [(name, videos, clips * share / videos) for name, (videos, share) in shares.items()]


def _how(options: Options | Resumption) -> dict[str, Any]:
    """What the plan leaves open."""
    return {"workers": options.workers, "gpu": options.gpu, **asdict(options.execution)}


def _note(metrics: dict[str, Any]) -> str:
    probe = f" probe J {metrics['probe_J']:.3f}" if "probe_J" in metrics else ""
    return (
        f"{metrics['stage']} loss {metrics['loss']:.3f} J {metrics['J']:.3f}{probe} "
        f"{metrics['clips_per_second']:.3g} clips/s, {metrics['data_wait']:.0%} waiting for data"
    )


if __name__ == "__main__":
    resumes = any(argument.split("=")[0] == "--resume" for argument in sys.argv)
    console.run(lambda: resume(parse_resumption()) if resumes else main(*parse_flags()))
