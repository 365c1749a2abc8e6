"""Train a network through stages of its curriculum, on Ray or in this process.

    python jobs/train.py --network stm --size nano --stages images bl30k --data shards/pseudo shards/bl30k
    python jobs/train.py --network emn --size nano --stages images --data shards/pseudo --parts reader=topk --local
    ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/train.py ... --storage s3://bucket/runs

The same command again continues a run that was stopped, from its last checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import cluster
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.networks import preset
from vosforge.networks.parts import parse
from vosforge.storage import check_space, check_writable, is_local, local_path
from vosforge.tracking import Run, default_store
from vosforge.training import curricula
from vosforge.training.loop import fit_locally
from vosforge.training.plan import TrainingPlan

_CHECKPOINT_SPACE = 1_000_000_000


@dataclass
class Options:
    """Train a network through stages of its curriculum."""

    network: str
    """stm, emn, qpm, skn, camn, cfbi+, mivos, kmn or stcn."""
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
    """Optimiser steps of every stage; the curriculum's when left out."""
    batch: int | None = None
    """Global batch in clips, shared by the workers."""
    learning_rate: float | None = None
    """Of every stage."""
    crop: int | None = None
    """Height and width of training clips in pixels."""
    initial: str | None = None
    """Network file to start from."""
    seed: int = 0
    """Weights, clips and their order follow from it."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    workers: int = 1
    """Processes that share the batch."""
    gpu: bool = False
    """One GPU for each worker."""
    feeders: int = 1
    """Processes that decode clips, for each worker."""
    threads: int | None = None
    """Torch's threads in each worker."""
    local: bool = False
    """Train in this process, without Ray."""
    dry_run: bool = False
    """Print the plan and stop."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def main(options: Options) -> None:
    """Train as the options say, or print what would be done."""
    console.verbosity(options.verbose)
    storage = cluster.lasting(options.storage, "--storage")
    plan = make_plan(options)
    describe(plan)
    if options.dry_run:
        return
    check_writable(storage)
    check_space(storage, _CHECKPOINT_SPACE)
    with Run(plan.name, _store(storage), storage) as run, console.Progress(plan.total_steps, plan.name, "steps") as bar:
        run.params(_parameters(plan))

        def on_progress(metrics: dict[str, Any]) -> None:
            run.metrics(metrics["step"], metrics)
            bar.update(metrics["step"], _note(metrics))

        if options.local:
            target = str(fit_locally(plan, storage, on_progress))
        else:
            from vosforge.training.on_ray import fit

            cluster.connect(options.verbose)
            workers = options.workers, options.gpu
            target = fit(plan, storage, on_progress, *workers, feeders=options.feeders, threads=options.threads)
    print(f"trained network: {target}")


def make_plan(options: Options) -> TrainingPlan:
    """The curriculum's stages with what the options change."""
    chosen = {"steps": options.steps, "batch": options.batch, "learning_rate": options.learning_rate}
    settings = {key: value for key, value in chosen.items() if value is not None}
    stages = curricula.stages(options.network, options.size, options.stages)
    return TrainingPlan(
        name=options.name or f"{options.network}-{options.size}",
        network=options.network,
        size=options.size,
        stages=[_adjusted(stage, settings, options.crop) for stage in stages],
        data=options.data,
        parts=parse(options.parts, type(preset(options.network, options.size))),
        seed=options.seed,
        initial=options.initial,
        checkpoint_every=options.checkpoint_every,
    )


def _store(storage: str) -> str:
    """Runs are tracked beside their checkpoints, unless the environment names a store."""
    return default_store(local_path(storage)) if is_local(storage) else default_store()


def _adjusted(stage: curricula.Stage, settings: dict[str, Any], crop: int | None) -> curricula.Stage:
    if any(value <= 0 for value in settings.values()) or (crop is not None and crop < 16):
        raise UserError(
            f"--steps, --batch and --learning-rate must be positive and --crop at least 16, found {settings}"
        )
    sampling = stage.sampling if crop is None else replace(stage.sampling, crop=(crop, crop))
    return replace(stage, sampling=sampling, **settings)


def describe(plan: TrainingPlan) -> None:
    """Print the plan; what is wrong with it shows here."""
    plan.build_network()
    print(f"run {plan.name}: {plan.network} {plan.size} {plan.parts or ''} from {plan.initial or 'fresh weights'}")
    for stage, sampler in zip(plan.stages, plan.samplers(), strict=True):
        clips = stage.steps * stage.batch
        print(
            f"  {stage.name}: {stage.steps} steps of {stage.batch} clips ({stage.sampling.frames} frames, "
            f"{stage.sampling.crop[0]}x{stage.sampling.crop[1]}), {clips / len(sampler.videos):.1f} clips a video, "
            f"{stage.optimizer} {stage.learning_rate:g}"
        )


def _parameters(plan: TrainingPlan) -> dict[str, Any]:
    parameters = {"network": plan.network, "size": plan.size, "seed": plan.seed, "plan": plan.digest, **plan.parts}
    for stage in plan.stages:
        parameters |= {f"{stage.name}.{key}": value for key, value in asdict(stage).items() if key != "name"}
    return parameters | {f"data.{i}": f"{uri} {ShardSet(uri).digest}" for i, uri in enumerate(plan.data)}


def _note(metrics: dict[str, Any]) -> str:
    probe = f" probe J {metrics['probe_J']:.3f}" if "probe_J" in metrics else ""
    return (
        f"{metrics['stage']} loss {metrics['loss']:.3f} J {metrics['J']:.3f}{probe} "
        f"{metrics['clips_per_second']:.0f} clips/s, {metrics['data_wait']:.0%} waiting for data"
    )


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)))
