"""Networks: a training step and an inference step of every network, against stm's at the same size.

A training step is the forward pass over a clip, cross-entropy, backward pass and AdamW, in float32 with one clip a
batch; a network that trains one object at a time has one, the others two. An inference step is `Propagator.step` on
a frame with two objects, five frames in memory, memorising as the network does (every fifth frame counts). Weights
are random: speed does not depend on them, and differences between precisions are only a hint.

* ms: training the fastest of a few steps; inference the mean of five frames in a row, each the fastest of a few
  rounds where there are several. All networks in turn; beside it the ratio to stm's (above 1 is slower).
* MiB: the peak with weights, beyond what the process holds after its imports; on a GPU that of its tensors. On a
  CPU it includes freed blocks that the C library keeps, a matter of chance: some 200 MiB more or less.

Every network works in a fresh process of its own. Those of a size stand ready at once, so there must be room for the
weights and optimiser states of all of them.

Where there is a GPU, inference follows in float32, bfloat16 and float16 by autocast, with the largest difference of
a probability from float32's on the same clip.

    python benchmarks/networks.py [--networks stcn kmn] [--sizes nano]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from vosforge.networks import NETWORKS, MemoryNetwork, build
from vosforge.propagation import Propagator
from vosforge.training.losses import cross_entropy, quality_loss

BASELINE = "stm"
CLIP, OBJECTS, HELD, EVERY = 3, 2, 5, 5
PRECISIONS = ("fp32", "bf16", "fp16")


class Setting(NamedTuple):
    """What is measured at a size: `steps` of training, and inference over rounds of `EVERY` frames."""

    training: tuple[int, int]
    frame: tuple[int, int]
    steps: int
    rounds: int


SETTINGS = {
    "nano": Setting(training=(96, 96), frame=(240, 427), steps=5, rounds=2),
    "paper": Setting(training=(384, 384), frame=(480, 854), steps=2, rounds=1),
}


def picture(t: int, size: tuple[int, int], objects: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame t of a video of squares that drift over noise: `(3, H, W)` in [0, 1] and ids `(H, W)`."""
    frame = 0.4 * torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(size, dtype=torch.int64)
    side = min(size) // 4
    for k in range(1, objects + 1):
        top, left = k * side + t, size[1] // 4 * k + 2 * t
        frame[:, top : top + side, left : left + side] += 0.3 * k
        ids[top : top + side, left : left + side] = k
    return frame.to(device), ids.to(device)


def training(network: MemoryNetwork, setting: Setting, device: str) -> Iterator[None]:
    """A training step whenever the next value is asked for."""
    objects = 1 if network.parts.training_objects == "one" else OBJECTS
    pictures = [picture(t, setting.training, objects, device) for t in range(CLIP)]
    frames, ids = (torch.stack(column)[None] for column in zip(*pictures, strict=True))
    first = F.one_hot(ids[:, 0], objects + 1).permute(0, 3, 1, 2)[:, 1:].float()
    network.to(device).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    while True:
        logits, scores = network(frames, first)
        loss = cross_entropy(logits, ids[:, 1:])
        if scores is not None:
            loss = loss + quality_loss(scores, logits, ids[:, 1:], torch.ones_like(scores[:, 0], dtype=torch.bool))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield


def inference(network: MemoryNetwork, setting: Setting, precision: str, device: str) -> Iterator[torch.Tensor]:
    """The probabilities of the next frame whenever they are asked for; the first ones fill the memory.

    Masks are given at the frames that are to stay in memory. Beside them a network holds the previous frame or the
    latest fifth one, or none if it remembers given frames alone.
    """
    propagator = Propagator(network, memory_every=EVERY, budget=HELD, precision=precision, device=device)
    given = HELD if network.parts.memory_policy == "given" else HELD - 1
    shown = [picture(t, setting.frame, OBJECTS, device) for t in range(HELD)]
    t = 0
    while True:
        frame, ids = shown[t % HELD]
        yield propagator.step(frame, ids if t < given else None)
        t += 1


# After these, memory holds HELD frames under every policy.
WARM_UP = HELD + 1


def make(name: str, size: str) -> MemoryNetwork:
    torch.manual_seed(0)
    return build(name, size)


def milliseconds(step: Callable[[], object]) -> float:
    wait_for_gpu()
    begin = time.perf_counter()
    step()
    wait_for_gpu()
    return 1000 * (time.perf_counter() - begin)


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def typical(times: list[float]) -> float:
    """The mean over `EVERY` frames, each the fastest of its rounds; some networks memorise one of them alone."""
    return sum(min(times[i::EVERY]) for i in range(EVERY)) / EVERY


def compare_precisions(name: str, size: str, device: str) -> dict[str, tuple[float, float]]:
    """For each precision the mean milliseconds, and the largest difference of a probability from float32's."""
    setting = SETTINGS[size]
    steps = {p: inference(make(name, size), setting, p, device) for p in PRECISIONS}
    times: dict[str, list[float]] = {p: [] for p in PRECISIONS}
    answers: dict[str, torch.Tensor] = {}
    apart = dict.fromkeys(PRECISIONS, torch.zeros((), device=device))
    for _ in range(WARM_UP + EVERY * setting.rounds):
        for p, s in steps.items():
            times[p].append(milliseconds(lambda p=p, s=s: answers.update({p: next(s)})))
            # Unlike Python's max it keeps a NaN.
            apart[p] = torch.maximum(apart[p], (answers[p] - answers["fp32"]).abs().max())
    return {p: (typical(times[p][WARM_UP:]), float(apart[p])) for p in PRECISIONS}


def high_water(device: str) -> float:
    """MiB that this process has held at most; on a GPU, of its tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def serve(kind: str, name: str, size: str, device: str) -> None:
    """Do a step for every line that comes in, and print its milliseconds and the peak MiB so far."""
    before = high_water(device)
    network, setting = make(name, size), SETTINGS[size]
    steps = training(network, setting, device) if kind == "training" else inference(network, setting, kind, device)
    for _ in sys.stdin:
        print(milliseconds(lambda: next(steps)), high_water(device) - before, flush=True)


def measure(kind: str, names: list[str], size: str) -> dict[str, tuple[float, float]]:
    """Milliseconds of a step and peak MiB of each network; `kind` is "training" or the precision of inference."""
    program = [sys.executable, str(Path(__file__).resolve()), "--serve", kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    warm_up = 1 if kind == "training" else WARM_UP
    count = SETTINGS[size].steps if kind == "training" else EVERY * SETTINGS[size].rounds
    times: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(subprocess.Popen([*program, name, size], **pipes)) for name in names}
        for i in range(warm_up + count):
            progress(f"{size}, {kind}: step {i + 1} of {warm_up + count} of every network")
            for name, worker in workers.items():
                worker.stdin.write("\n")
                worker.stdin.flush()
                answer = worker.stdout.readline().split()
                if not answer:
                    raise SystemExit(f"{size} {name}, {kind}: its process ended; what it says stands above")
                spent, peaks[name] = map(float, answer)
                times[name].append(spent)
    summary = min if kind == "training" else typical
    return {name: (summary(times[name][warm_up:]), peaks[name]) for name in names}


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def hardware(device: str) -> str:
    """What computes: GPU or CPU, PyTorch, threads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()} ({name})"
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def print_networks(names: list[str], size: str) -> None:
    setting = SETTINGS[size]
    columns = [measure(kind, names, size) for kind in ("training", "fp32")]
    at = [f"{kind} {h}x{w}" for kind, (h, w) in (("training", setting.training), ("inference", setting.frame))]
    head = f"{'ms':>8} {'to ' + BASELINE:>7} {'MiB':>7}"
    print(f"{size:15} {'':>10} | {at[0]:24} | {at[1]:24}")
    print(f"{'network':15} {'parameters':>10} | {head} | {head}")
    for name in names:
        count = sum(p.numel() for p in make(name, size).parameters())
        cells = [f"{c[name][0]:8.1f} {c[name][0] / c[BASELINE][0]:6.2f}x {c[name][1]:7.0f}" for c in columns]
        print(f"{name:15} {count:10,} | {' | '.join(cells)}", flush=True)


def print_precisions(names: list[str], size: str, device: str) -> None:
    peaks = {p: measure(p, names, size) for p in PRECISIONS}
    print(f"{size + ', inference':15} {'':9} | {'ms':>8} {'to fp32':>7} | {'MiB':>7} | {'difference':>10}")
    for name in names:
        found = compare_precisions(name, size, device)
        for p, (spent, apart) in found.items():
            times = f"{spent:8.1f} {spent / found['fp32'][0]:6.2f}x"
            print(f"{name:15} {p:9} | {times} | {peaks[p][name][1]:7.0f} | {apart:10.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="beside the baseline")
    parser.add_argument("--sizes", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--serve", nargs=3, metavar=("KIND", "NETWORK", "SIZE"), help="do a step for every line read")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.serve:
        serve(*arguments.serve, device)
        return
    print(hardware(device), flush=True)
    names = [BASELINE, *(name for name in arguments.networks if name != BASELINE)]
    for size in arguments.sizes:
        print_networks(names, size)
    if device == "cuda":
        # Last, for here this process computes: a process on a CPU inherits the high-water mark of its parent.
        for size in arguments.sizes:
            print_precisions(names, size, device)


if __name__ == "__main__":
    main()
