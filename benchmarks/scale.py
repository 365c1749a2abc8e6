"""Scale: what large sets and the papers' curricula cost on clusters, computed from rates that one machine measured.

    python benchmarks/scale.py
    python benchmarks/scale.py --gpu.tflops 312 --gpu.utilisation 0.4 --nodes.gpus 8 --nodes.cores 96
    python benchmarks/scale.py --networks stm --gpu.steps-per-second 2.4

Plain arithmetic: nothing is measured here. Rates of a core are those of docs/scale.md, from benchmarks/rendering.py,
pseudo_video.py and feeding.py, and each has a flag; operations are those that benchmarks/operations.py counts. No GPU
was at hand: its speed is a peak times a share of it, both assumed. `--gpu.steps-per-second` takes in their place what
benchmarks/training.py --device cuda measured: steps of a network's whole batch on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import tyro

from vosforge.training import curricula
from vosforge.training.stages import Stage

SIZES = (8, 64, 512)
CORES = (32, 128, 1024)
# Teraflop of a clip's forward pass at `paper` size, with as many objects as the stage takes; benchmarks/operations.py.
FORWARD = {
    "stm": {"images": 0.490, "bl30k": 0.490, "videos": 0.490},
    "emn": {"images": 0.276, "bl30k": 0.461, "videos": 0.461},
    "qpm": {"images": 0.407, "bl30k": 0.856, "videos": 0.856},
    "skn": {"images": 0.805, "bl30k": 0.805, "videos": 0.805},
    "camn": {"images": 1.367, "bl30k": 1.367, "videos": 1.367},
}
# Backward takes two more products of the same size.
PASSES = 3
# Millions of learnt weights, and moments that the curriculum's optimiser keeps of each.
WEIGHTS = {"stm": (38.9, 2), "emn": (47.0, 2), "qpm": (104.0, 2), "skn": (87.6, 2), "camn": (77.7, 1)}
# Clips a second that one core decodes and augments; benchmarks/feeding.py.
DECODED = {
    "stm": {"images": 23.4, "bl30k": 16.8, "videos": 22.4},
    "emn": {"images": 41.8, "bl30k": 16.6, "videos": 17.3},
    "qpm": {"images": 38.1, "bl30k": 21.5, "videos": 24.7},
    "skn": {"images": 47.6, "bl30k": 22.8, "videos": 24.4},
    "camn": {"images": 7.5, "bl30k": 18.3, "videos": 18.2},
}
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

    rendered: float = 26.6
    """Rendered frames a second, 512x768, preset bl30k, as rows of a shard."""
    rendered_kb: float = 158.0
    """KB of a rendered frame and its mask."""
    pseudo: float = 27.1
    """Pseudo-video clips a second: 3 frames of 384x384, as rows of a shard."""
    pseudo_kb: float = 222.0
    """KB of such a clip."""
    ingested: float = 72.8
    """Frames of 480x854 a second, from files to rows of a shard."""
    ingested_kb: float = 121.0
    """KB of such a frame and its mask."""
    index_kb: float = 4.5
    """KB of a video of 160 frames in the index."""
    video_kb: float = 3.0
    """KB of memory of a video once the index is loaded, beside its frames."""
    frame_kb: float = 0.22
    """KB of memory of each of its frames."""
    indexed: float = 4760.0
    """Videos loaded a second."""
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
    data_gbits: float = 12.5
    """A second, of a data node's network."""
    requests: float = 5500.0
    """GET requests a second that one prefix of the storage answers."""
    request_ms: float = 30.0
    """Of one small request."""


@dataclass(frozen=True)
class Build:
    """A set of shards to be made: `rate` frames (or clips, each a video) a second and core, `kb` each."""

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

    def index_gb(self, rates: Rates) -> float:
        """Of the index."""
        return self.videos * self.frames / 160 * rates.index_kb / 1e6

    def held_gb(self, rates: Rates) -> float:
        """Memory of each process that has loaded it."""
        return self.videos * (rates.video_kb + self.frames * rates.frame_kb) / 1e6

    def loaded_seconds(self, rates: Rates) -> float:
        """Until a process has loaded it."""
        return self.videos / rates.indexed

    def finishing_minutes(self, nodes: Nodes) -> float:
        """Of the driver, which asks for each file's own index, reads it and deletes it, one after the other."""
        return 3 * self.files * nodes.request_ms / 1e3 / 60


def builds(rates: Rates) -> list[Build]:
    """BL30K's size, and a million videos of three kinds."""
    return [
        Build("BL30K, rendered", 29_989, 160, rates.rendered, rates.rendered_kb, 16),
        Build("a million like BL30K's", 1_000_000, 160, rates.rendered, rates.rendered_kb, 16),
        Build("a million pseudo-videos of 3 frames", 1_000_000, 1, rates.pseudo, rates.pseudo_kb, 2048),
        Build("a million real videos of 100 frames", 1_000_000, 100, rates.ingested, rates.ingested_kb, 32),
    ]


def operations(name: str, stage: Stage) -> float:
    """Teraflop of a stage's training step, of the whole batch."""
    return PASSES * FORWARD[name][stage.name] * stage.batch


def gpu_hours(name: str, gpu: Gpu) -> float:
    """Of a network's whole curriculum, were all GPUs kept busy."""
    stages = curricula.curriculum(name, "paper").stages.values()
    if gpu.steps_per_second:
        return sum(stage.steps for stage in stages) / gpu.steps_per_second / 3600
    work = sum(stage.steps * operations(name, stage) for stage in stages)
    return work / (gpu.tflops * gpu.utilisation) / 3600


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
        days: of one training.
        decoders: cores that decode for each GPU.
        read: GB/s that all trainings read.
        requests: a second, of all trainings.
        gbits: Gbit/s through the network of a node: what is read, and gradients where a training spans nodes.
        demands: demand over what is there, by name.
    """

    workers: int
    together: int
    days: float
    decoders: float
    read: float
    requests: float
    gbits: float
    demands: dict[str, float]

    @property
    def limit(self) -> str:
        """What gives out first beside the batch; GPUs where all else suffices."""
        name = max(self.demands, key=self.demands.__getitem__)
        return f"{name} {self.demands[name]:.1f}x" if self.demands[name] > 1 else "GPUs"


def training(name: str, gpus: int, gpu: Gpu, nodes: Nodes) -> Training:
    """How a cluster trains a network, as many times side by side as it has GPUs for."""
    stages = list(curricula.curriculum(name, "paper").stages.values())
    workers = most_workers([stage.batch for stage in stages], gpus)
    used, hours = gpus // workers * workers, gpu_hours(name, gpu) / workers
    work = sum(stage.steps * operations(name, stage) for stage in stages)
    # Gradients within a node take ways of their own.
    sent = gradients_mb(name, workers) if workers > nodes.gpus else 0.0
    decoders = read = requests = network = overlapped = 0.0
    for stage in stages:
        # A stage's part of the time is that of its operations, also where the whole was measured.
        seconds = hours * 3600 * operations(name, stage) / work
        clips, (kb, gets) = stage.batch / workers / seconds, READ[stage.name]
        decoders = max(decoders, clips / DECODED[name][stage.name])
        read = max(read, clips * kb / 1e6 * used)
        requests = max(requests, clips * gets * used)
        network = max(network, (clips * kb / 1e3 * min(used, nodes.gpus) + sent / seconds) * 8 / 1e3)
        # They go out while backward, two thirds of a step, is under way.
        overlapped = max(overlapped, sent * 8 / 1e3 / nodes.gbits / (seconds * 2 / 3))
    demands = {
        "gradients": overlapped,
        "network": network / nodes.gbits,
        # Each worker has a core of its own.
        "decoding": decoders / (nodes.cores / nodes.gpus - 1),
        "S3 requests": requests / nodes.requests,
    }
    return Training(workers, gpus // workers, hours / 24, decoders, read, requests, network, demands)


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
    networks: tuple[str, ...] = tuple(FORWARD),
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
    print_builds(rates, nodes)
    print_work(networks, gpu)
    minutes = checkpoint_minutes(checkpoint_seconds, hours_between_losses)
    print(
        f"\na checkpoint costs {checkpoint_seconds:g} s, a node is lost every {hours_between_losses:g} hours: ", end=""
    )
    print(f"one checkpoint in {minutes:.0f} minutes loses least")
    print_gpus(networks, gpu)
    print_public()
    print_clusters(networks, gpu, nodes)


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
                *(b.name, f"{b.index_gb(rates):.2f}", f"{b.loaded_seconds(rates):,.0f}", f"{b.held_gb(rates):.1f}"),
                *(f"{b.files * rates.manifest_kb / 1e3:.1f}", f"{b.finishing_minutes(nodes):.1f}"),
            ]
            for b in found
        ),
    )


def print_work(networks: Iterable[str], gpu: Gpu) -> None:
    rows = []
    for name in networks:
        stages = curricula.curriculum(name, "paper").stages.values()
        work = sum(stage.steps * operations(name, stage) for stage in stages)
        cores = sum(stage.steps * stage.batch / DECODED[name][stage.name] for stage in stages) / 3600
        read = sum(stage.steps * stage.batch * READ[stage.name][0] for stage in stages) / 1e9
        hours = gpu_hours(name, gpu)
        rows.append(
            [
                *(name, f"{sum(stage.steps for stage in stages):,}"),
                f"{sum(stage.steps * stage.batch for stage in stages) / 1e6:.1f} M",
                *(f"{max(operations(name, s) / s.batch for s in stages):.2f}", f"{work / 1e6:.1f}"),
                *(f"{hours:,.0f}", f"{cores:,.0f}", f"{read:.2f}"),
                *(
                    f"{checkpoint_mb(name):,.0f}",
                    f"{gradients_mb(name, most_workers((s.batch for s in stages), 512)):.0f}",
                ),
                f"{sum(logged_rows(stage, 2000) for stage in stages):,}",
            ]
        )
    table(
        "curriculum | steps | clips | Tflop a clip | Eflop | GPU-hours | core-hours of decoding | TB read "
        "| MB a checkpoint | MB of gradients a step | MLflow rows",
        rows,
    )


def print_gpus(networks: Iterable[str], gpu: Gpu) -> None:
    names = list(networks)
    table(
        f"GPU-hours at {gpu.utilisation:.0%} of | Tflop/s | {' | '.join(names)}",
        (
            [kind, peak, *(f"{gpu_hours(name, Gpu(peak, gpu.utilisation)):,.0f}" for name in names)]
            for kind, peak in PEAKS.items()
        ),
    )


def print_public() -> None:
    table(
        "told | clips | Tflop a clip | GPU-hours | peak Tflop/s | share of it",
        (
            [told, f"{clips:.1f} M", tflop, f"{hours:,.0f}", peak, f"{implied(clips, tflop, hours, peak):.0%}"]
            for told, clips, tflop, hours, peak in PUBLIC
        ),
    )


def print_clusters(networks: Iterable[str], gpu: Gpu, nodes: Nodes) -> None:
    rows = []
    for name in networks:
        for gpus in SIZES:
            t = training(name, gpus, gpu, nodes)
            rows.append(
                [
                    *(name, gpus, t.workers, t.together, f"{t.days:.1f}", f"{t.decoders:.1f}"),
                    *(f"{t.gbits:.1f}", f"{t.read:.2f}", f"{t.requests:,.0f}"),
                    f"{system_rows(t.together, gpus, nodes):,.0f}",
                    *("batch" if t.workers < gpus else "-", t.limit),
                ]
            )
    table(
        "network | GPUs | workers of one | trainings | days | cores a GPU | Gbit/s a node | GB/s read | GET/s "
        "| MLflow rows/s | first limit | then",
        rows,
    )


if __name__ == "__main__":
    tyro.cli(main)
