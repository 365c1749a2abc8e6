"""Readers: time and peak memory of vosforge against each reader's plain matrix form, on the same keys and values.

The plain side holds the whole affinity of (T·H·W) x (H·W), as published code does: a softmax over it (STM), its top k
scattered into zeros (MiVOS), or its product with a Gaussian as large (KMN). Maps are those of 480x854 frames at
stride 16, with CK 128, CV 512, batch 1, random keys and values. Runs on the GPU where there is one.

* ms: the best of a few rounds, both sides in turn.
* MiB: the peak of one read above its inputs, the median of a few fresh processes and the most that one took: how
  much of the freed memory the C library keeps is a matter of chance. On a GPU one process says it all.
* difference: the largest one in the read. Where two affinities are all but equal, rounding decides which is among
  the top k or the best match, so `off` gives the share of query positions that differ by more than 1e-4.

    python benchmarks/readers.py
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vosforge.networks import DenseReader, KernelReader, TopKReader

HEIGHT, WIDTH, KEY, VALUE = 30, 54, 128, 512
FRAMES = (1, 5, 20)
TOP_K, SIGMA = 50, 7.0
ROUNDS, PROCESSES, TOLERANCE = 7, 3, 1e-4

Read = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Weigh = Callable[[torch.Tensor, int], torch.Tensor]


def plain_read(
    weigh: Weigh, memory_key: torch.Tensor, memory_value: torch.Tensor, query_key: torch.Tensor
) -> torch.Tensor:
    """The reader's matrix form: `weigh` turns affinities `(B, N, M)` into weights that sum to 1 over N."""
    affinity = memory_key.flatten(2).transpose(1, 2) @ query_key.flatten(2)
    affinity = affinity / math.sqrt(memory_key.shape[1])
    weights = weigh(affinity, query_key.shape[-1])
    return (memory_value.flatten(2) @ weights).unflatten(2, query_key.shape[-2:])


def dense(affinity: torch.Tensor, width: int) -> torch.Tensor:
    return affinity.softmax(dim=1)


def topk(affinity: torch.Tensor, width: int) -> torch.Tensor:
    best, positions = affinity.topk(TOP_K, dim=1)
    return affinity.zero_().scatter_(1, positions, best.softmax(dim=1))


def kernel(affinity: torch.Tensor, width: int) -> torch.Tensor:
    product = kernel_product(affinity, width)
    return product / product.sum(dim=1, keepdim=True)


def kernel_topk(affinity: torch.Tensor, width: int) -> torch.Tensor:
    best, positions = kernel_product(affinity, width).topk(TOP_K, dim=1)
    return affinity.zero_().scatter_(1, positions, best / best.sum(dim=1, keepdim=True))


def kernel_product(affinity: torch.Tensor, width: int) -> torch.Tensor:
    """Exponentials of `(B, N, M)` affinities times each memory cell's Gaussian about its best query cell."""
    factor = gaussian(affinity.argmax(dim=2, keepdim=True), affinity.shape[2], width)
    return torch.exp(affinity - affinity.amax(dim=1, keepdim=True)) * factor


def gaussian(centres: torch.Tensor, cells: int, width: int) -> torch.Tensor:
    """Of the distances of all cells from the centres: `(B, N, 1)` -> `(B, N, M)`."""
    row, column = place(torch.arange(cells, device=centres.device), width)
    centre_row, centre_column = place(centres, width)
    return torch.exp(-((row - centre_row) ** 2 + (column - centre_column) ** 2) / (2 * SIGMA**2))


def place(cells: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (cells // width).float(), (cells % width).float()


READERS: dict[str, dict[str, Read]] = {
    "dense": {"plain": partial(plain_read, dense), "ours": DenseReader()},
    f"top {TOP_K}": {"plain": partial(plain_read, topk), "ours": TopKReader(TOP_K)},
    f"kernel {SIGMA:g}": {"plain": partial(plain_read, kernel), "ours": KernelReader(SIGMA)},
    f"kernel {SIGMA:g}, top {TOP_K}": {
        "plain": partial(plain_read, kernel_topk),
        "ours": KernelReader(SIGMA, top_k=TOP_K),
    },
}


def inputs(frames: int, device: str, size: tuple[int, int] = (HEIGHT, WIDTH)) -> list[torch.Tensor]:
    """Memory key, memory value and query key, the same ones in every process."""
    generator = torch.Generator().manual_seed(frames)
    shapes = (1, KEY, frames, *size), (1, VALUE, frames, *size), (1, KEY, *size)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def timed(read: Read, tensors: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Milliseconds of one read, and the read."""
    wait_for_gpu()
    begin = time.perf_counter()
    answer = read(*tensors)
    wait_for_gpu()
    return 1000 * (time.perf_counter() - begin), answer


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(name: str, frames: int, device: str) -> tuple[float, float, float, float]:
    """Milliseconds of the fastest round, plain and ours; the reads' largest difference, and the share that is off."""
    tensors = inputs(frames, device)
    best = dict.fromkeys(("plain", "ours"), math.inf)
    reads = {}
    for _ in range(ROUNDS):
        for side in best:
            reads.pop(side, None)
            milliseconds, reads[side] = timed(READERS[name][side], tensors)
            best[side] = min(best[side], milliseconds)
    apart = (reads["plain"] - reads["ours"]).abs().amax(dim=1)
    return best["plain"], best["ours"], float(apart.max()), float((apart > TOLERANCE).float().mean())


def high_water(device: str) -> float:
    """MiB that this process has held at most; on a GPU, of its tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def peak(name: str, side: str, frames: int, device: str) -> float:
    """MiB that one read takes beyond its inputs; right only in a process that has read nothing larger before."""
    read = READERS[name][side]
    read(*inputs(1, device, (8, 8)))
    tensors = inputs(frames, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = high_water(device)
    read(*tensors)
    return high_water(device) - before


def peak_apart(name: str, side: str, frames: int, device: str) -> tuple[float, float]:
    """`peak` in fresh processes: the median and the most."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", name, side, str(frames)]
    rounds = 1 if device == "cuda" else PROCESSES
    answers = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout for _ in range(rounds)]
    return statistics.median(map(float, answers)), max(map(float, answers))


def hardware(device: str) -> str:
    """What computes: GPU or CPU, PyTorch, threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()} ({name})"
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peak", nargs=3, metavar=("READER", "SIDE", "T"), help="print the peak MiB of one read")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.peak:
        name, side, frames = arguments.peak
        print(peak(name, side, int(frames), device))
        return
    print(hardware(device))
    print(f"maps of {HEIGHT}x{WIDTH}, CK {KEY}, CV {VALUE}, batch 1; best of {ROUNDS} rounds")
    cases = [(frames, name) for frames in FRAMES for name in READERS]
    peaks = {}
    # All peaks before any time: a fresh process inherits the high-water mark of the one that starts it.
    for frames, name in cases:
        peaks[frames, name] = [peak_apart(name, side, frames, device) for side in ("plain", "ours")]
        print(f"measured the peaks at T = {frames}: {name}", file=sys.stderr, flush=True)
    print(f"{'':20} | {'plain':>7} {'ours':>7} {'':>6} | {'plain':>7} {'most':>7} {'ours':>7} {'most':>7} |")
    units = f"{'ms':>7} {'ms':>7} {'ratio':>6} | {'MiB':>7} {'MiB':>7} {'MiB':>7} {'MiB':>7}"
    print(f"{' T  reader':20} | {units} | {'difference':>10} {'off':>6}")
    for frames, name in cases:
        plain, ours, difference, off = compare(name, frames, device)
        times = f"{plain:7.1f} {ours:7.1f} {plain / ours:5.2f}x"
        memory = " ".join(f"{mebibytes:7.1f}" for side in peaks[frames, name] for mebibytes in side)
        print(f"{frames:2}  {name:16} | {times} | {memory} | {difference:10.1e} {off:6.2%}", flush=True)


if __name__ == "__main__":
    main()
