"""Training: what feeding, Ray, more workers and checkpoints cost, and how fast every network steps.

    python benchmarks/training.py [--parts feed checkpoints networks] [--networks stm camn] [--steps 30]
    python benchmarks/training.py --device cuda --size small --batch 16

feed: clips a second of the bare loop, fed from shards that are decoded on a thread beside it, against the same step
over and over on one batch in memory; and the share of its time that the loop says it waited for data.

ray: steps a second of the loop on Ray Train with one worker against the bare loop, both between two of their steps, so
that starting up and checkpoints are left out; then two workers against one, at the same global batch.

checkpoints: seconds and bytes of saving and loading all that a run goes on from, against the weights alone.

networks: steps a second on a batch in memory at each network's own frames, crop and loss, against stm; the smaller
`--batch` makes them comparable. On a GPU then bf16, channels_last and compile, each against plain float32.

Everything runs on the machine itself, one after the other, on videos of boxes drawn over noise. The parts feed,
checkpoints and networks need neither Ray nor MLflow. Set OMP_NUM_THREADS=1 on a CPU: threads of a loop and its feed
would wait for each other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch

from vosforge.clip import Clip
from vosforge.data.shards import clip_table, finish, write_shard
from vosforge.networks import NETWORKS
from vosforge.training import curricula
from vosforge.training.batches import Batch, make_batch
from vosforge.training.checkpoints import NETWORK_FILE, Position, load_checkpoint, save_checkpoint
from vosforge.training.loop import LocalReporter, Worker, local_feed, train
from vosforge.training.plan import TrainingPlan
from vosforge.training.stages import Stage
from vosforge.training.steps import Execution, Optimization

PARTS = ("feed", "ray", "checkpoints", "networks")
BASELINE = "stm"
# Small enough to be measured on a CPU in reasonable time; at size paper they need a GPU.
SMALL_NETWORKS = ("stm", "stcn", "skn")
WARM_UP = 5
OPTIONS = {
    "fp32": Execution(),
    "bf16": Execution(precision="bf16"),
    "bf16, channels_last": Execution(precision="bf16", channels_last=True),
    "bf16, compile": Execution(precision="bf16", compile=True),
    "bf16, channels_last, compile": Execution(precision="bf16", channels_last=True, compile=True),
}


def drawn_video(number: int, frames: int = 12, size: tuple[int, int] = (240, 320)) -> Clip:
    """Two boxes that drift over smooth noise."""
    rng = np.random.default_rng(number)
    ground = cv2.resize(rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8), size[::-1])
    pictures, masks = np.repeat(ground[None], frames, axis=0), np.zeros((frames, *size), np.uint8)
    for t in range(frames):
        for k in (1, 2):
            box = slice(30 * k + 3 * t, 30 * k + 3 * t + 80), slice(60 * k + 4 * t, 60 * k + 4 * t + 90)
            pictures[t][box], masks[t][box] = (80 * k, 200, 40 * k), k
    return Clip(f"v{number}", pictures, masks)


def write_shards(folder: Path, videos: int = 24) -> str:
    """Shards of drawn videos."""
    folder.mkdir()
    write_shard([clip_table(drawn_video(n), "drawn") for n in range(videos)], [], folder / "part-00000.parquet")
    finish(str(folder), "videos", {"made": "by a benchmark"}, ["part-00000.parquet"])
    return str(folder)


def make_plan(name: str, shards: str, options: argparse.Namespace) -> TrainingPlan:
    """stm on one stage of `options.steps` steps after a warm-up, without checkpoints on the way."""
    (stage,) = curricula.stages(BASELINE, options.size, ["videos"])
    stage = replace(stage, steps=options.steps + WARM_UP + 1, batch=options.batch, repeats=())
    return TrainingPlan(
        name, BASELINE, options.size, [_cut(stage, options)], [shards], checkpoint_every=10**9, probe_clips=0
    )


def _cut(stage: Stage, options: argparse.Namespace) -> Stage:
    crop = stage.sampling.crop if options.crop is None else (options.crop, options.crop)
    return replace(stage, sampling=replace(stage.sampling, crop=crop))


class Arrivals:
    """Steps a second by when they were told."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.waits: list[float] = []

    def __call__(self, metrics: dict[str, Any]) -> None:
        self.times.append(time.perf_counter())
        self.waits.append(metrics["data_wait"])

    @property
    def rate(self) -> float:
        """Over all steps but the first few and the last, whose checkpoint takes its time."""
        steady = self.times[WARM_UP - 1 : -1]
        return (len(steady) - 1) / (steady[-1] - steady[0])


def bare_loop(plan: TrainingPlan, folder: Path, device: str) -> Arrivals:
    """The plan in this process, fed from shards."""
    told = Arrivals()
    reporter = LocalReporter(folder / plan.name, told)
    train(plan, plan.build_network(), local_feed(plan, plan.samplers()), reporter, Worker(device=device))
    return told


def in_memory(
    stage: Stage, network: str, size: str, batch: Batch, steps: int, device: str, execution: Execution
) -> float:
    """Steps a second on one batch, by their median."""
    torch.manual_seed(0)
    plan = TrainingPlan("memory", network, size, [stage], [])
    built = plan.build_network().train()
    layout = torch.channels_last if execution.channels_last else torch.preserve_format
    built.to(device, memory_format=layout)
    optimization = Optimization(stage, built, execution, device)
    model = torch.compile(built) if execution.compile else built
    batch, seeds, taken = batch.to(torch.device(device)), [[i] for i in range(len(batch.frames))], []
    for step in range(WARM_UP + steps):
        begun = time.perf_counter()
        optimization.step(model, batch, step, seeds)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return 1 / statistics.median(taken[WARM_UP:])


def measure_feed(shards: str, folder: Path, options: argparse.Namespace) -> None:
    """Fed from shards against one batch in memory."""
    plan = make_plan("fed", shards, options)
    (stage,), (sampler,) = plan.stages, plan.samplers()
    batch = make_batch([sampler.clip(i) for i in range(options.batch)])
    memory = in_memory(stage, BASELINE, options.size, batch, options.steps, options.device, Execution())
    fed = bare_loop(plan, folder, options.device)
    print(f"feed, one batch in memory: {memory * options.batch:.1f} clips/s")
    print(
        f"feed, from shards: {fed.rate * options.batch:.1f} clips/s, {fed.rate / memory:.2f} of it; "
        f"{fed.waits[-1]:.1%} of the time waiting for data"
    )


def measure_ray(shards: str, folder: Path, options: argparse.Namespace) -> None:
    """Ray's loop against the bare one, and two workers against one."""
    import ray

    from vosforge import cluster
    from vosforge.training.on_ray import fit

    bare = bare_loop(make_plan("bare", shards, options), folder, options.device).rate
    print(f"ray, bare loop: {bare:.2f} steps/s")
    cluster.connect()
    found = {}
    for workers in (1, 2):
        if options.device == "cuda" and workers > torch.cuda.device_count():
            print(f"ray, {workers} workers: left out, there are {torch.cuda.device_count()} GPUs")
            continue
        told, plan = Arrivals(), make_plan(f"ray-{workers}", shards, options)
        fit(plan, str(folder), told, workers, options.device == "cuda", threads=1 if options.device == "cpu" else None)
        found[workers] = told.rate
        against = f"{told.rate / bare:.2f} of the bare loop" if workers == 1 else f"{told.rate / found[1]:.2f} of one"
        print(f"ray, workers {workers}: {told.rate:.2f} steps/s, {against}")
    ray.shutdown()


def measure_checkpoints(folder: Path, options: argparse.Namespace) -> None:
    """Saving and loading a run's state against its weights alone."""
    (stage,) = curricula.stages(BASELINE, options.size, ["videos"])
    plan = TrainingPlan("saved", BASELINE, options.size, [stage], [])
    network = plan.build_network().to(options.device)
    optimization = Optimization(stage, network, Execution(), options.device)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimization.optimizer.step()
    weights = folder / "weights.safetensors"
    bare = seconds(lambda: safetensors.torch.save_file(network.state_dict(), weights))
    bare_load = seconds(lambda: network.load_state_dict(safetensors.torch.load_file(weights)))
    target = folder / "checkpoint"
    target.mkdir()
    saved = seconds(lambda: save_checkpoint(target, network, optimization.state(), Position(0, 1), plan.digest))

    def load() -> None:
        _, state = load_checkpoint(target, network, plan.digest)
        optimization.restore(state)

    loaded = seconds(load)
    size, alone = sum(path.stat().st_size for path in target.iterdir()), weights.stat().st_size
    print(f"checkpoints, weights alone: {alone / 1e6:.1f} MB, saved in {bare:.3f} s, loaded in {bare_load:.3f} s")
    print(
        f"checkpoints, whole ({NETWORK_FILE} and the state of {stage.optimizer}): {size / 1e6:.1f} MB, "
        f"{size / alone:.1f} of that; saved in {saved:.3f} s, {saved / bare:.1f} of that; "
        f"loaded in {loaded:.3f} s, {loaded / bare_load:.1f} of that"
    )


def seconds(action: Callable[[], object], rounds: int = 5) -> float:
    """The median of a few times."""
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def measure_networks(options: argparse.Namespace) -> None:
    """Every network's step against stm's; on a GPU then each way to compute it against plain float32."""
    for size in dict.fromkeys(("nano", "small") if options.sizes is None else options.sizes):
        names = options.networks or (list(NETWORKS) if size == "nano" else list(SMALL_NETWORKS))
        rates: dict[str, float] = {}
        for name in dict.fromkeys((BASELINE, *names)):
            (stage,) = curricula.stages(name, size, ["videos"])
            stage = _cut(replace(stage, batch=options.batch), options)
            batch = memory_batch(stage, name, size)
            steps = options.steps if size == "nano" else max(2, options.steps // 5)
            ways = OPTIONS if options.device == "cuda" else {"fp32": OPTIONS["fp32"]}
            for way, execution in ways.items():
                rate = in_memory(stage, name, size, batch, steps, options.device, execution)
                rates.setdefault(name, rate)
                against = f"{rate / rates[BASELINE]:.2f} of {BASELINE}" if way == "fp32" else ""
                told = against or f"{rate / rates[name]:.2f} of fp32"
                print(
                    f"networks, {name} {size}, {way}: {rate:.3g} steps/s of {options.batch} clips, {told}", flush=True
                )


def memory_batch(stage: Stage, name: str, size: str) -> Batch:
    """Clips of two drawn objects, or one where the network trains one at a time."""
    (height, width), clips = stage.sampling.crop, []
    for i in range(stage.batch):
        video = drawn_video(i, stage.sampling.frames, (max(height, 240), max(width, 320)))
        masks = video.masks[:, :height, :width]
        alone = NETWORKS[name][size].training_objects == "one"
        clips.append(Clip(str(i), video.frames[:, :height, :width], (masks == 1).astype(np.uint8) if alone else masks))
    return make_batch(clips)


def main() -> None:
    """Measure the chosen parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--size", default="nano", help="of the parts feed, ray and checkpoints")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="of the part networks")
    parser.add_argument("--sizes", nargs="+", choices=("nano", "small", "paper"), help="of the part networks")
    parser.add_argument("--steps", type=int, default=30, help="measured, after a warm-up")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, help="side of a clip in pixels; the curriculum's when left out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = write_shards(folder / "shards") if {"feed", "ray"} & {*options.parts} else ""
        if "feed" in options.parts:
            measure_feed(shards, folder, options)
        if "ray" in options.parts:
            measure_ray(shards, folder, options)
        if "checkpoints" in options.parts:
            measure_checkpoints(folder, options)
        if "networks" in options.parts:
            measure_networks(options)


if __name__ == "__main__":
    main()
