"""Operations: what a clip takes each network at `paper` size, and how many a second this core does in a training step.

    python benchmarks/operations.py [--networks stm camn]
    OMP_NUM_THREADS=1 python benchmarks/operations.py --step stm

Counted are convolutions, matrix products and attention of the forward pass, with shapes alone
(`vosforge.training.memory.operations`); each kind of clip takes up to a minute. Backward takes twice as many. `--step`
computes steps of that network at `small` size on one thread, and says how many operations they came to in each second
that the process spent on its core.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

import torch
import tyro

from vosforge import console
from vosforge.errors import UserError
from vosforge.networks import build
from vosforge.training import curricula
from vosforge.training.batches import Batch
from vosforge.training.memory import operations
from vosforge.training.steps import Execution, Optimization

Network = Literal["stm", "stm-interactive", "emn", "qpm", "skn", "camn", "cfbi+", "mivos", "kmn", "stcn"]
PASSES = 3


def main(
    networks: tuple[Network, ...] = ("stm", "stm-interactive", "emn", "qpm", "skn", "camn"),
    step: Network | None = None,
    crop: int = 192,
    steps: int = 3,
) -> None:
    """Print operations of the papers' curricula, or the speed of a step.

    Args:
        networks: whose curricula.
        step: network whose step is computed instead.
        crop: of the step's clip in pixels, three frames of three objects.
        steps: computed after the first; the quickest counts.
    """
    if crop < 32 or steps < 1:
        raise UserError(f"--crop, --steps: expected at least 32 pixels and one step, found {crop} and {steps}")
    if step == "stm-interactive":
        raise UserError("--step: expected a network that learns from first masks, found stm-interactive")
    if step:
        print_step(step, crop, steps)
        return
    for name in networks:
        network, known = build(name, "paper"), {}
        for stage in curricula.curriculum(name, "paper").stages.values():
            shape = (stage.sampling.crop, stage.sampling.objects, stage.corruption.happens)
            if shape not in known:
                known[shape] = operations(stage, network, 1) / 1e12
            print(f"{name} {stage.name}: {known[shape]:.3f} teraflop a clip forward", flush=True)
        learnt = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        print(f"{name}: {learnt / 1e6:.1f} million learnt weights")


def print_step(name: str, crop: int, steps: int) -> None:
    """Compute steps of one clip, and print their speed."""
    torch.set_num_threads(1)
    (stage,) = curricula.stages(name, "small", ["videos"])
    stage = replace(stage, batch=1, sampling=replace(stage.sampling, crop=(crop, crop)))
    network = build(name, "small")
    gigaflop = PASSES * operations(stage, network, 1) / 1e9
    optimization = Optimization(stage, network.train(), Execution(), "cpu")
    masks = torch.zeros(1, stage.sampling.frames, crop, crop, dtype=torch.int64)
    objects = 1 if network.parts.training_objects == "one" else stage.sampling.objects
    for k in range(objects):
        masks[..., k * crop // 4 : (k + 1) * crop // 4, :] = k + 1
    first = torch.stack([masks[:, 0] == k + 1 for k in range(objects)], dim=1)
    batch = Batch(torch.rand(*masks.shape[:2], 3, crop, crop), masks, first.float(), first.flatten(2).any(dim=2))
    spent = []
    for number in range(1 + steps):
        started = time.process_time()
        optimization.step(network, batch, number, [[number]])
        spent.append(time.process_time() - started)
    best = min(spent[1:])
    side = torch.rand(1024, 1024)
    started = time.process_time()
    for _ in range(20):
        side @ side
    product = 20 * 2 * 1024**3 / (time.process_time() - started) / 1e9
    print(
        f"{name} small, a clip of {crop}x{crop}: {gigaflop:.1f} gigaflop a step, {best:.2f} s on the core: "
        f"{gigaflop / best:.1f} gigaflop/s; a plain matrix product: {product:.1f} gigaflop/s"
    )


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), resumes=False)
