"""Scale: what large sets and the papers' curricula cost on clusters, computed from rates that one machine measured.

    python benchmarks/scale.py
    python benchmarks/scale.py --gpu.tflops 312 --gpu.utilisation 0.4 --nodes.gpus 8 --nodes.cores 96
    python benchmarks/scale.py --networks stm --gpu.steps-per-second 2.4

Plain arithmetic: nothing is measured here. Rates of a core are those that benchmarks/feeding.py measured (docs/scale.md
has the commands); those of `Rates` have flags. Operations are those that benchmarks/operations.py counts. No GPU
was at hand: its speed is a peak times a share of it, both assumed. `--gpu.steps-per-second` takes in their place what
benchmarks/training.py --device cuda measured of one network: steps of its whole batch on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import tyro

from vosforge import console
from vosforge.errors import UserError
from vosforge.training import curricula
from vosforge.training.stages import Stage

Network = Literal["stm", "stm-interactive", "emn", "qpm", "skn", "camn"]
# Stages that a paper tells of; the others are ours, with its numbers or, in STM's and SKN's bl30k, with MiVOS's steps.
PAPERS = {**dict.fromkeys(get_args(Network), ("images", "videos")), "qpm": ("images", "bl30k", "videos")}
PAPERS["camn"] = ("videos",)
SIZES = (8, 64, 512)
CORES = (32, 128, 1024)
# Teraflop of a clip's forward pass at `paper` size, with as many objects as the stage takes; benchmarks/operations.py.
FORWARD = {
    "stm": {"images": 0.490, "bl30k": 0.490, "videos": 0.490},
    "stm-interactive": {"images": 1.579, "bl30k": 1.579, "videos": 1.579},
    "emn": {"images": 0.276, "bl30k": 0.461, "videos": 0.461},
    "qpm": {"images": 0.407, "bl30k": 0.856, "videos": 0.856},
    "skn": {"images": 0.805, "bl30k": 0.805, "videos": 0.805},
    "camn": {"images": 1.367, "bl30k": 1.367, "videos": 1.367},
}
# Backward takes two more products of the same size.
PASSES = 3
# Millions of learnt weights, and moments that the curriculum's optimiser keeps of each.
WEIGHTS = {"stm": (38.9, 2), "emn": (47.0, 2), "qpm": (104.0, 2), "skn": (87.6, 2), "camn": (77.7, 1)}
WEIGHTS["stm-interactive"] = WEIGHTS["stm"]
# Clips a second that one core decodes and augments; benchmarks/feeding.py.
DECODED = {
    "stm": {"images": 23.4, "bl30k": 16.8, "videos": 22.4},
    "emn": {"images": 41.8, "bl30k": 16.6, "videos": 17.3},
    "qpm": {"images": 38.1, "bl30k": 21.5, "videos": 24.7},
    "skn": {"images": 47.6, "bl30k": 22.8, "videos": 24.4},
    "camn": {"images": 7.5, "bl30k": 18.3, "videos": 18.2},
}
# Its clips are stm's; scribbles are drawn later, by the process that trains, and are not counted.
DECODED["stm-interactive"] = DECODED["stm"]
# KB and requests for a clip, means over the networks, and one request more since a set has more files than stay open.
READ = {"images": (114.0, 3.0), "bl30k": (573.0, 5.1), "videos": (413.0, 3.9)}
# Peak teraflop a second, as their makers tell; of tensor cores without sparsity.
PEAKS = {"V100, fp32": 15.7, "A10G, bf16": 70.0, "A100, TF32": 156.0, "A100, bf16": 312.0, "H100, bf16": 989.0}
# What others tell of like networks: millions of clips, teraflop a clip, GPU-hours, and the GPU's peak in float32.
PUBLIC = (
    ("STM's re-training", 1.48, 1.47, 72.0, 13.4),
    ("EMN, steps ours", 6.0, 1.05, 336.0, 11.3),
)


@dataclass(frozen=True)
class Rates:
    """What one core of the measuring machine does."""

    rendered: float = 20.3
    """Rendered frames a second, 512x768, preset bl30k, as rows of a shard."""
    rendered_kb: float = 158.0
    """KB of a rendered frame and its mask."""
    pseudo: float = 24.9
    """Pseudo-video clips a second: 3 frames of 384x384, as rows of a shard."""
    pseudo_kb: float = 199.0
    """KB of such a clip."""
    ingested: float = 78.0
    """Frames of 480x854 a second, from files to rows of a shard."""
    ingested_kb: float = 121.0
    """KB of such a frame and its mask."""
    index_kb: tuple[float, float] = (0.02, 0.03)
    """KB in the index of a video, and of each of its frames beside."""
    held_kb: tuple[float, float] = (5.7, 0.19)
    """KB of memory of a video once the index is loaded, and of each of its frames."""
    loaded_ms: tuple[float, float] = (0.016, 0.0004)
    """Milliseconds in which a video is loaded, and each of its frames."""
    manifest_kb: float = 0.17
    """KB of a file in the manifest."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: assumed, for none was measured."""

    tflops: float = 70.0
    """Peak: 70 is an A10G in bf16; V100 15.7 in fp32, A100 156 in TF32 and 312 in bf16, H100 989 in bf16."""
    utilisation: float = 0.3
    """Share of the peak that training reaches."""
    steps_per_second: float | None = None
    """Measured steps of the whole batch on one GPU, in place of the two above."""


@dataclass(frozen=True)
class Nodes:
    """The cluster's nodes and its storage; the defaults are g5.12xlarge and c6i.8xlarge of cluster.yaml."""

    gpus: int = 4
    """Of a training node."""
    cores: int = 48
    """Of a training node."""
    gbits: float = 40.0
    """A second, of a training node's network."""
    data_cores: int = 32
    """Of a data node."""
    requests: float = 5500.0
    """GET requests a second that one prefix of the storage answers."""
    request_ms: float = 30.0
    """Of one small request."""


@dataclass(frozen=True)
class Build:
    """A set of shards to be made: `rate` frames a second and core, `kb` each, `per_file` videos a file."""

    name: str
    videos: int
    frames: int
    rate: float
    kb: float
    per_file: int

    @property
    def core_hours(self) -> float:
        return self.videos * self.frames / self.rate / 3600

    @property
    def gigabytes(self) -> float:
        return self.videos * self.frames * self.kb / 1e6

    @property
    def files(self) -> int:
        return -(-self.videos // self.per_file)

    def hours(self, cores: int) -> float:
        """On so many cores, each of which makes whole files."""
        return math.ceil(self.files / cores) * self.per_file * self.frames / self.rate / 3600

    def gbits(self, cores: int) -> float:
        """Gbit/s that a node of so many cores writes."""
        return cores * self.rate * self.kb * 8 / 1e6

    def indexed(self, parts: tuple[float, float]) -> float:
        """What all videos come to in the index, from a part of each video and one of each of its frames."""
        return self.videos * (parts[0] + self.frames * parts[1])

    def finishing_minutes(self, nodes: Nodes) -> float:
        """Of the driver, which asks for each file's own index, reads it and deletes it, one after the other."""
        return 3 * self.files * nodes.request_ms / 1e3 / 60


def builds(rates: Rates) -> list[Build]:
    """BL30K's size, and a million videos of three kinds."""
    return [
        Build("BL30K, rendered", 29_989, 160, rates.rendered, rates.rendered_kb, 16),
        Build("a million like BL30K's", 1_000_000, 160, rates.rendered, rates.rendered_kb, 16),
        Build("a million pseudo-videos of 3 frames", 1_000_000, 3, 3 * rates.pseudo, rates.pseudo_kb / 3, 2048),
        Build("a million real videos of 100 frames", 1_000_000, 100, rates.ingested, rates.ingested_kb, 32),
    ]


def operations(name: str, stage: Stage) -> float:
    """Teraflop of a stage's training step, of the whole batch."""
    return PASSES * FORWARD[name][stage.name] * stage.batch


def planned(name: str, in_paper: bool = False) -> list[Stage]:
    """A network's stages at `paper` size; all, or those that its paper tells of."""
    stages = curricula.curriculum(name, "paper").stages.values()
    return [stage for stage in stages if not in_paper or stage.name in PAPERS[name]]


def work(name: str, stages: Iterable[Stage]) -> float:
    """Teraflop of stages."""
    return sum(stage.steps * operations(name, stage) for stage in stages)


def gpu_hours(name: str, stages: Iterable[Stage], gpu: Gpu) -> float:
    """Of some of a network's stages, were all GPUs kept busy."""
    if gpu.steps_per_second is None:
        return work(name, stages) / (gpu.tflops * gpu.utilisation) / 3600
    # A stage's part of the time is that of its operations.
    every = planned(name)
    hours = sum(stage.steps for stage in every) / gpu.steps_per_second / 3600
    return hours * work(name, stages) / work(name, every)


def most_workers(batches: Iterable[int], gpus: int) -> int:
    """The most workers, one GPU each, that share every stage's batch equally."""
    shared = math.gcd(*batches)
    return max(n for n in range(1, shared + 1) if shared % n == 0 and n <= gpus)


def gradients_mb(name: str, workers: int) -> float:
    """MB of float32 gradients that each worker sends in a step, in a ring."""
    return WEIGHTS[name][0] * 4 * 2 * (workers - 1) / workers


@dataclass(frozen=True)
class Training:
    """One network's curriculum on so many GPUs; of what changes from stage to stage, the most.

    Attributes:
        workers, together: GPUs of one training, and trainings side by side.
        idle: GPUs that are left over.
        days, paper_days: of one training through all stages, and through those of the paper.
        decoders: cores that decode for each GPU.
        read: GB/s that all trainings read.
        requests: a second, of all trainings.
        gbits: Gbit/s through the network of a node: what is read, and gradients where a training spans nodes.
        demands: demand over what is there, by what is short and the stage where it is.
    """

    workers: int
    together: int
    idle: int
    days: float
    paper_days: float
    decoders: float
    read: float
    requests: float
    gbits: float
    demands: dict[tuple[str, str], float]

    @property
    def limit(self) -> str:
        """What gives out first beside the batch, and in which stage; GPUs where all else suffices."""
        most = max(self.demands, key=self.demands.__getitem__)
        return f"{most[0]} {self.demands[most]:.1f}x ({most[1]})" if self.demands[most] > 1 else "GPUs"


def training(name: str, gpus: int, gpu: Gpu, nodes: Nodes) -> Training:
    """How a cluster trains a network, as many times side by side as it has GPUs for."""
    stages = planned(name)
    workers = most_workers([stage.batch for stage in stages], gpus)
    together = gpus // workers
    used = workers * together
    # Gradients within a node take ways of their own.
    sent = gradients_mb(name, workers) if workers > nodes.gpus else 0.0
    rates, demands = [], {}
    for stage in stages:
        seconds = gpu_hours(name, [stage], gpu) / workers * 3600 / stage.steps
        clips, (kb, gets) = stage.batch / workers / seconds, READ[stage.name]
        busy, asked = clips / DECODED[name][stage.name], clips * gets * used
        through = (clips * kb / 1e3 * min(used, nodes.gpus) + sent / seconds) * 8 / 1e3
        rates.append((busy, clips * kb / 1e6 * used, asked, through))
        # They go out while backward, two thirds of a step, is under way.
        demands["gradients", stage.name] = sent * 8 / 1e3 / nodes.gbits / (seconds * 2 / 3)
        demands["network", stage.name] = through / nodes.gbits
        # Each worker has a core of its own.
        demands["decoding", stage.name] = busy / (nodes.cores / nodes.gpus - 1)
        demands["S3 requests", stage.name] = asked / nodes.requests
    days, paper = (gpu_hours(name, planned(name, own), gpu) / workers / 24 for own in (False, True))
    return Training(workers, together, gpus - used, days, paper, *map(max, zip(*rates, strict=True)), demands)


def implied(millions: float, teraflop: float, hours: float, peak: float) -> float:
    """The share of a GPU's peak that so many clips in so many GPU-hours come to."""
    return millions * 1e6 * teraflop / (hours * 3600 * peak)


def logged_rows(stage: Stage, checkpoint_every: int, curves: int = 6, points: int = 2000) -> int:
    """Rows of a stage's curves in MLflow, in its own run and in the parent's."""
    evenly = stage.steps // max(1, stage.steps // points)
    return 2 * curves * (evenly + stage.steps // checkpoint_every)


def system_rows(trainings: int, gpus: int, nodes: Nodes) -> float:
    """Rows a second in MLflow that tell how busy the nodes are: of 16 at most, every 15 seconds, by each training."""
    return trainings * min(16, -(-gpus // nodes.gpus)) * (3 + 4 * nodes.gpus) / 15


def checkpoint_mb(name: str) -> float:
    """MB of weights and moments in float32."""
    millions, moments = WEIGHTS[name]
    return millions * 4 * (1 + moments)


def checkpoint_minutes(seconds: float, hours_between_losses: float) -> float:
    """Minutes between checkpoints that lose least, where one costs so many seconds (Young's rule)."""
    return math.sqrt(2 * seconds * hours_between_losses * 3600) / 60


def main(
    networks: tuple[Network, ...] = get_args(Network),
    rates: Rates = Rates(),
    gpu: Gpu = Gpu(),
    nodes: Nodes = Nodes(),
    checkpoint_seconds: float = 2.0,
    hours_between_losses: float = 4.0,
) -> None:
    """Print what data, curricula and clusters cost.

    Args:
        networks: whose curricula.
        rates: of one core.
        gpu: its speed.
        nodes: of the cluster, and its storage.
        checkpoint_seconds: that training stands still for a checkpoint.
        hours_between_losses: of one of a training's nodes.
    """
    alone = {"checkpoint_seconds": checkpoint_seconds, "hours_between_losses": hours_between_losses}
    for group, settings in (("", alone), ("rates.", vars(rates)), ("gpu.", vars(gpu)), ("nodes.", vars(nodes))):
        require_positive(group, settings)
    if nodes.cores <= nodes.gpus:
        raise UserError(f"--nodes.cores: expected more than the node's {nodes.gpus} GPUs, found {nodes.cores}")
    if len(networks) != 1 and (gpu.steps_per_second is not None or not networks):
        raise UserError(f"--networks: expected one, or more without --gpu.steps-per-second, found {len(networks)}")
    print_builds(rates, nodes)
    print_work(networks, gpu)
    print_gpus(networks, gpu)
    table(
        "told | clips | Tflop a clip | GPU-hours | peak Tflop/s | share of it",
        (
            [told, f"{clips:.1f} M", tflop, f"{hours:,.0f}", peak, f"{implied(clips, tflop, hours, peak):.0%}"]
            for told, clips, tflop, hours, peak in PUBLIC
        ),
    )
    print_clusters(networks, gpu, nodes)
    minutes = checkpoint_minutes(checkpoint_seconds, hours_between_losses)
    print(
        f"\na checkpoint costs {checkpoint_seconds:g} s, a node is lost every {hours_between_losses:g} hours: "
        f"one checkpoint in {minutes:.0f} minutes loses least"
    )


def require_positive(group: str, settings: dict[str, Any]) -> None:
    """Refuse what is no number above 0, naming its flag."""
    for name, value in settings.items():
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not 0 < number < math.inf:
                raise UserError(f"--{group}{name.replace('_', '-')}: expected a number above 0, found {number:g}")


def table(head: str, rows: Iterable[Iterable[object]]) -> None:
    """Print rows below a Markdown head."""
    print(f"\n| {head} |\n|---|{'---:|' * head.count('|')}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")


def print_builds(rates: Rates, nodes: Nodes) -> None:
    found = builds(rates)
    on = " | ".join(f"hours on {cores:,} cores" for cores in CORES)
    table(
        f"to build | frames | core-hours | GB | files of GB | {on} | Gbit/s written by a node",
        (
            [
                *(b.name, f"{b.videos * b.frames / 1e6:,.1f} M", f"{b.core_hours:,.0f}", f"{b.gigabytes:,.0f}"),
                f"{b.files:,} of {b.gigabytes / b.files:.2f}",
                *(f"{b.hours(cores):,.2f}" for cores in CORES),
                f"{b.gbits(nodes.data_cores):.2f}",
            ]
            for b in found
        ),
    )
    table(
        "index of | GB | loaded in s | GB held by each process | manifest MB | driver's last minutes on S3",
        (
            [
                *(b.name, f"{b.indexed(rates.index_kb) / 1e6:.2f}", f"{b.indexed(rates.loaded_ms) / 1e3:,.0f}"),
                f"{b.indexed(rates.held_kb) / 1e6:.1f}",
                *(f"{b.files * rates.manifest_kb / 1e3:.1f}", f"{b.finishing_minutes(nodes):.1f}"),
            ]
            for b in found
        ),
    )


def print_work(networks: Iterable[str], gpu: Gpu) -> None:
    table(
        "curriculum | stage | steps | clips | Tflop a clip | Eflop | GPU-hours | core-hours of decoding | TB read "
        "| MLflow rows",
        (
            [
                *(name, stage.name if stage.name in PAPERS[name] else f"({stage.name})", f"{stage.steps:,}"),
                *(f"{stage.steps * stage.batch / 1e6:.1f} M", f"{operations(name, stage) / stage.batch:.2f}"),
                *(f"{work(name, [stage]) / 1e6:.1f}", f"{gpu_hours(name, [stage], gpu):,.0f}"),
                f"{stage.steps * stage.batch / DECODED[name][stage.name] / 3600:,.0f}",
                *(f"{stage.steps * stage.batch * READ[stage.name][0] / 1e9:.2f}", f"{logged_rows(stage, 2000):,}"),
            ]
            for name in networks
            for stage in planned(name)
        ),
    )


def print_gpus(networks: Iterable[str], gpu: Gpu) -> None:
    kinds = {f"{kind} ({peak:g})": Gpu(peak, gpu.utilisation) for kind, peak in PEAKS.items()}
    speed = f"{gpu.utilisation:.0%}"
    if gpu.steps_per_second is not None:
        kinds, speed = {"the measured GPU": gpu}, f"{gpu.steps_per_second:g} steps/s"
    rows = []
    for name in networks:
        paper, every = planned(name, in_paper=True), planned(name)
        hours = [f"{gpu_hours(name, paper, k):,.0f} / {gpu_hours(name, every, k):,.0f}" for k in kinds.values()]
        sent = gradients_mb(name, most_workers((stage.batch for stage in every), 512))
        eflop = f"{work(name, paper) / 1e6:.1f} / {work(name, every) / 1e6:.1f}"
        rows.append([name, eflop, *hours, f"{checkpoint_mb(name):,.0f}", f"{sent:.0f}"])
    table(f"GPU-hours at {speed} | Eflop | {' | '.join(kinds)} | MB a checkpoint | MB of gradients a step", rows)


def print_clusters(networks: Iterable[str], gpu: Gpu, nodes: Nodes) -> None:
    rows = []
    for name in networks:
        for gpus in SIZES:
            t = training(name, gpus, gpu, nodes)
            row = [name, gpus, t.workers, t.together, t.idle, f"{t.paper_days:.1f} / {t.days:.1f}"]
            row += [f"{t.decoders:.1f}", f"{t.gbits:.1f}", f"{t.read:.2f}", f"{t.requests:,.0f}"]
            row += [f"{system_rows(t.together, gpus, nodes):,.0f}", "batch" if t.workers < gpus else "-", t.limit]
            rows.append(row)
    table(
        "network | GPUs | workers of one | trainings | idle | days | cores a GPU | Gbit/s a node | GB/s read | GET/s "
        "| MLflow rows/s | first limit | then",
        rows,
    )


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), resumes=False)
