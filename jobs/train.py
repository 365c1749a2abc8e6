"""Train a network through stages of its curriculum, on Ray or in this process.

    python jobs/train.py --network stm --size nano --stages images bl30k --data shards/pseudo shards/bl30k
    python jobs/train.py --network stm --size nano --stages images --data shards/pseudo --local
    ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/train.py ... --storage s3://bucket/runs

The same command again continues a run that was stopped, from its last checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import cluster
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.storage import check_space, check_writable
from vosforge.tracking import Run, default_store
from vosforge.training import curricula
from vosforge.training.loop import fit_locally
from vosforge.training.plan import TrainingPlan

_CHECKPOINT_SPACE = 1_000_000_000


def main(
    network: str,
    stages: list[str],
    data: list[str],
    size: str = "paper",
    name: str | None = None,
    storage: str = "runs",
    reader: str | None = None,
    steps: int | None = None,
    batch: int | None = None,
    learning_rate: float | None = None,
    crop: int | None = None,
    initial: str | None = None,
    seed: int = 0,
    checkpoint_every: int = 100,
    workers: int = 1,
    gpu: bool = False,
    feeders: int = 1,
    threads: int | None = None,
    local: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
) -> None:
    """Train a network through stages of its curriculum.

    Args:
        network: stm.
        stages: Some of images, bl30k and videos, in order.
        data: Folders or s3:// URIs of shards; each stage takes those of its kind.
        size: nano, small or paper.
        name: Of the run; network-size when left out.
        storage: Folder or s3:// URI of runs.
        reader: Memory read, dense or topk; the preset's when left out.
        steps: Optimiser steps of every stage; the curriculum's when left out.
        batch: Global batch in clips, shared by the workers.
        learning_rate: Of every stage.
        crop: Height and width of training clips in pixels.
        initial: Network file to start from.
        seed: Weights, clips and their order follow from it.
        checkpoint_every: Steps between checkpoints.
        workers: Processes that share the batch.
        gpu: One GPU for each worker.
        feeders: Processes that decode clips, for each worker.
        threads: Torch's threads in each worker.
        local: Train in this process, without Ray.
        dry_run: Print the plan and stop.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    storage = cluster.lasting(storage, "--storage")
    chosen = {"steps": steps, "batch": batch, "learning_rate": learning_rate}
    settings = {key: value for key, value in chosen.items() if value is not None}
    plan = TrainingPlan(
        name=name or f"{network}-{size}",
        network=network,
        size=size,
        stages=[_adjusted(stage, settings, crop) for stage in curricula.stages(network, size, stages)],
        data=data,
        parts={"reader": reader} if reader else {},
        seed=seed,
        initial=initial,
        checkpoint_every=checkpoint_every,
    )
    _describe(plan)
    if dry_run:
        return
    check_writable(storage)
    check_space(storage, _CHECKPOINT_SPACE)
    with Run(plan.name, default_store(), storage) as run, console.Progress(plan.total_steps, plan.name, "steps") as bar:
        run.params(_parameters(plan))

        def on_progress(metrics: dict[str, Any]) -> None:
            run.metrics(metrics["step"], metrics)
            bar.update(metrics["step"], _note(metrics))

        if local:
            target = str(fit_locally(plan, storage, on_progress))
        else:
            from vosforge.training.on_ray import fit

            cluster.connect(verbose)
            target = fit(plan, storage, on_progress, workers, gpu, feeders=feeders, threads=threads)
    print(f"trained network: {target}")


def _adjusted(stage: curricula.Stage, settings: dict[str, Any], crop: int | None) -> curricula.Stage:
    if any(value <= 0 for value in settings.values()) or (crop is not None and crop < 16):
        raise UserError(
            f"--steps, --batch and --learning-rate must be positive and --crop at least 16, found {settings}"
        )
    sampling = stage.sampling if crop is None else replace(stage.sampling, crop=(crop, crop))
    return replace(stage, sampling=sampling, **settings)


def _describe(plan: TrainingPlan) -> None:
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
    console.run(lambda: tyro.cli(main))
