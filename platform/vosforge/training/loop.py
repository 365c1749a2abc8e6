"""The training loop: one for all networks and stages, in a bare process or under Ray Train."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from vosforge.clip import Clip
from vosforge.data.sampling import ClipSampler
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.storage import is_local, local_path, write_aside
from vosforge.training.batches import Batch, make_batch, mean_jaccard, one_object
from vosforge.training.checkpoints import NETWORK_FILE, Position, load_checkpoint, save_checkpoint
from vosforge.training.clip_order import check_clips, clip_numbers
from vosforge.training.plan import TrainingPlan, begun_execution, claim_run, note_execution
from vosforge.training.previews import PREVIEW_CLIPS, is_due, preview
from vosforge.training.stages import Corruption, Stage
from vosforge.training.steps import Execution, Optimization, predict

# Probe clips are numbered far beyond any clip that training reaches.
_FIRST_PROBE_CLIP = 1 << 40
# Workers wait for each other when they ask; so rarely, it costs under a millisecond a step, and a notice of half a
# minute is heard in time where a step takes two seconds.
_STEPS_BETWEEN_NOTICES = 10
Feed = Callable[[int, int], Iterator[list[Clip]]]
Examine = Callable[[MemoryNetwork, int], dict[str, float]]
"""From a network and the run's step to metrics, on rank 0 at every checkpoint; the network is left as it is."""


class Reporter(Protocol):
    """Where the loop tells what it did."""

    def log(self, metrics: dict[str, Any]) -> None:
        """Metrics of a step, on rank 0."""

    def checkpoint(self, metrics: dict[str, Any], name: str, write: Callable[[Path], None]) -> None:
        """A checkpoint is due, on every rank: `write` fills an empty folder."""

    def leaving(self) -> bool:
        """Whether it was announced, since this was asked last, that a machine of the run will go.

        Asked on every rank after the same steps, and answered alike; a checkpoint follows.
        """


@dataclass(frozen=True)
class Worker:
    """One process of a training run: its rank among `world`, its device, and how it computes."""

    rank: int = 0
    world: int = 1
    device: str | torch.device = "cpu"
    execution: Execution = field(default_factory=Execution)


def train(
    plan: TrainingPlan,
    network: MemoryNetwork,
    feed: Feed,
    reporter: Reporter,
    worker: Worker | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    resume: Path | None = None,
    examine: Examine = lambda network, step: {},
) -> MemoryNetwork:
    """Train through all stages, or from a checkpoint to the end.

    Args:
        plan: what to train.
        network: as `plan.build_network` made it.
        feed: `feed(stage, first_step)` yields this worker's clips, step by step.
        reporter: hears of steps and checkpoints.
        worker: this process among the run's workers; alone by default.
        wrap: how the network is made parallel.
        resume: a checkpoint's folder.
        examine: what else is told of a checkpoint.

    Returns:
        The trained network.

    Raises:
        Diverged: at the first gradient that is not finite, naming the stage and step.
    """
    worker = worker or Worker()
    position, state = Position(), None
    if resume is not None:
        position, state = load_checkpoint(resume, network, plan.digest)
    layout = torch.channels_last if worker.execution.channels_last else torch.preserve_format
    network.to(worker.device, memory_format=layout)
    model = wrap(torch.compile(network) if worker.execution.compile else network)
    for index in range(position.stage, len(plan.stages)):
        optimization = Optimization(plan.stages[index], network, worker.execution, worker.device)
        first = position.step if index == position.stage else 0
        if first and state is not None:
            optimization.restore(state)
        _train_stage(plan, index, first, model, optimization, feed, reporter, worker, examine)
    return network


def _train_stage(
    plan: TrainingPlan,
    index: int,
    first: int,
    model: nn.Module,
    optimization: Optimization,
    feed: Feed,
    reporter: Reporter,
    worker: Worker,
    examine: Examine,
) -> None:
    network = optimization.network
    stage = plan.stages[index]
    before = sum(s.steps for s in plan.stages[:index])
    probe = _probe_batch(plan, index, worker) if worker.rank == 0 else None
    clips = feed(index, first)
    meter = _Meter(stage.batch)
    network.train()
    for step in range(first, stage.steps):
        started = time.perf_counter()
        due = next(clips)
        waited = time.perf_counter() - started
        check_clips(due, clip_numbers(step, stage.batch, worker.rank, worker.world))
        if network.parts.training_objects == "one":
            due = [one_object(clip, plan.seed, index) for clip in due]
        batch = make_batch(due).to(worker.device)
        seeds = [[plan.seed, index, int(clip.name)] for clip in due]
        loss, jaccard = optimization.step(model, batch, step, seeds)
        meter.add(waited, time.perf_counter() - started)
        metrics = {
            "stage": stage.name,
            "step": before + step + 1,
            "loss": loss,
            "J": jaccard,
            "learning_rate": stage.rate(step),
            **meter.rates(),
        }
        done = step + 1 == stage.steps
        if done and optimization.average is not None:
            network.load_state_dict(optimization.average.state_dict())
        told = {}
        reached = before + step + 1
        leaving = reached % _STEPS_BETWEEN_NOTICES == 0 and reporter.leaving()
        if reached % plan.checkpoint_every == 0 or done or leaving:
            if probe is not None:
                metrics["probe_J"], picture = _probe(optimization.result, probe, stage)
                told = {"preview": picture} if is_due(step + 1, stage.steps, plan.checkpoint_every) else {}
            if worker.rank == 0:
                metrics |= examine(optimization.result, reached)
            position = Position(index + 1, 0) if done else Position(index, step + 1)
            write = partial(
                save_checkpoint, network=network, state=optimization.state(), position=position, digest=plan.digest
            )
            reporter.checkpoint(metrics, f"step_{reached:08d}", write)
        if worker.rank == 0:
            reporter.log({**metrics, **told})


def _probe_batch(plan: TrainingPlan, index: int, worker: Worker) -> Batch | None:
    if plan.probe_clips < 1:
        return None
    sampler = plan.samplers()[index]
    clips = [sampler.clip(_FIRST_PROBE_CLIP + i) for i in range(plan.probe_clips)]
    return make_batch(clips).to(worker.device)


@torch.inference_mode()
def _probe(network: MemoryNetwork, probe: Batch, stage: Stage) -> tuple[float, bytes | None]:
    """Mean J on the probe clips, and a picture of what became of the first few; not a number from broken weights."""
    learning = network.training
    network.eval()
    seeds = [[_FIRST_PROBE_CLIP, b] for b in range(len(probe.frames))]
    try:
        logits = predict(network, probe, replace(stage, corruption=Corruption()), seeds).logits
    except UserError:
        # Estimates that are no numbers; rank 0 alone sees it here, all will at the next step.
        return math.nan, None
    finally:
        network.train(learning)
    last = logits[:, -probe.frames.shape[1] :]
    return mean_jaccard(last, probe), _preview(last[:PREVIEW_CLIPS], probe)


def _preview(logits: torch.Tensor, probe: Batch) -> bytes:
    """A picture of the last frames of the first few clips, as many as there are logits of."""
    count = len(logits)
    frames = (255 * probe.frames[:count, -1]).round().permute(0, 2, 3, 1)
    shown = (frames, probe.masks[:count, -1], logits[:, -1].argmax(dim=1))
    clips = zip(logits.split(1), probe.pieces(len(probe.frames)), strict=False)
    return preview(*(x.byte().cpu().numpy() for x in shown), [mean_jaccard(own, clip) for own, clip in clips])


class _Meter:
    """Speed over the last steps: clips a second, and the share of time spent waiting for data."""

    def __init__(self, batch: int, window: int = 20):
        self.batch, self.window = batch, window
        self._times: list[tuple[float, float]] = []

    def add(self, waited: float, total: float) -> None:
        self._times = [*self._times[-self.window + 1 :], (waited, total)]

    def rates(self) -> dict[str, float]:
        waited, total = (sum(column) for column in zip(*self._times, strict=True))
        return {"clips_per_second": self.batch * len(self._times) / total, "data_wait": waited / total}


def local_feed(plan: TrainingPlan, samplers: list[ClipSampler], ahead: int = 4, threads: int = 1) -> Feed:
    """A feed in this process: clips are decoded on threads, a few steps ahead."""

    def feed(stage: int, first: int) -> Iterator[list[Clip]]:
        sampler, settings = samplers[stage], plan.stages[stage]

        def load(step: int) -> list[Clip]:
            return [sampler.clip(i) for i in clip_numbers(step, settings.batch, 0, 1)]

        with ThreadPoolExecutor(threads) as pool:
            due = [pool.submit(load, step) for step in range(first, min(first + ahead, settings.steps))]
            for step in range(first, settings.steps):
                if step + ahead < settings.steps:
                    due.append(pool.submit(load, step + ahead))
                yield due.pop(0).result()

    return feed


class LocalReporter:
    """Keeps the last checkpoint in a run's folder and hands metrics on."""

    def __init__(self, folder: Path, on_progress: Callable[[dict[str, Any]], None]):
        self.folder, self.log = folder, on_progress

    def checkpoint(self, metrics: dict[str, Any], name: str, write: Callable[[Path], None]) -> None:
        """Write aside, move into place, drop the older one."""
        target = self.folder / name
        with write_aside(target) as aside:
            aside.mkdir(parents=True)
            write(aside)
        for old in checkpoints(self.folder):
            if old != target:
                shutil.rmtree(old)

    def leaving(self) -> bool:
        """Never: nobody announces that this machine goes."""
        return False


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a bare run, oldest first."""
    return sorted(folder.glob("step_*"))


def fit_locally(
    plan: TrainingPlan,
    storage: str,
    on_progress: Callable[[dict[str, Any]], None],
    execution: Execution | None = None,
) -> Path:
    """Train in this process, without Ray; a run that was stopped goes on from its last checkpoint.

    Args:
        plan: what to train.
        storage: local folder of runs.
        on_progress: hears every step's metrics.
        execution: how steps are computed.

    Returns:
        The trained network's file.
    """
    if not is_local(storage):
        raise UserError(f"{storage}: training in this process keeps checkpoints in a local folder; leave --local out")
    claim_run(storage, plan, "local")
    folder = local_path(storage) / plan.name
    target = folder / NETWORK_FILE
    if target.exists():
        return target
    execution = begun_execution(storage, plan.name, execution or Execution(), 1)
    note_execution(storage, plan.name, {"execution": asdict(execution)})
    # What a killed process was writing.
    for aside in folder.glob(".step_*.aside"):
        shutil.rmtree(aside, ignore_errors=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = checkpoints(folder)
    train(
        plan,
        plan.build_network(fresh=not found),
        local_feed(plan, plan.samplers()),
        LocalReporter(folder, on_progress),
        Worker(device=device, execution=execution),
        resume=found[-1] if found else None,
    )
    with write_aside(target) as aside:
        shutil.copyfile(checkpoints(folder)[-1] / NETWORK_FILE, aside)
    return target
