"""One optimiser step: forward, loss, backward, in as many pieces as memory asks for."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork, Prediction
from vosforge.training import losses
from vosforge.training.batches import Batch, mean_jaccard
from vosforge.training.corruption import corrupted
from vosforge.training.scribbles import Rounds
from vosforge.training.stages import Corruption, Loss, Stage

TrainingPrecision = Literal["fp32", "bf16", "fp16"]
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(UserError):
    """The gradient is no longer finite; every worker sees it at the same step."""


@dataclass(frozen=True)
class Execution:
    """How steps are computed; what is learnt depends on it by rounding alone, or where batch norm or dropout sees other
    clips together."""

    precision: TrainingPrecision = "fp32"
    """fp32, or bf16 or fp16 by autocast; fp16 scales its gradients."""
    clips_at_once: int | None = None
    """Most clips of a worker in one forward; its share of the batch is taken in pieces, whose gradients are added."""
    shares: int = 1
    """Equal parts of the global batch that are computed apart even where fewer workers share it: batch norm and dropout
    then give what so many workers would. A resumed run keeps those that it was begun with."""
    channels_last: bool = False
    """Keep weights in that memory format, which convolutions pass on to their maps; faster on some GPUs."""
    compile: bool = False
    """Compile the network with torch.compile; the first step of a shape then takes minutes."""

    def __post_init__(self) -> None:
        if self.clips_at_once is not None and self.clips_at_once < 1:
            raise UserError(f"clips_at_once must be at least 1, found {self.clips_at_once}")
        if self.shares < 1:
            raise UserError(f"shares must be at least 1, found {self.shares}")

    def pieces(self, share: int, batch: int | None = None) -> int:
        """Into how many equal pieces a worker's share of the batch is cut.

        Args:
            share: clips.
            batch: all workers' clips, of which `shares` parts are computed apart; None cuts by `clips_at_once` alone.
        """
        part = (batch or 0) // self.shares
        if part and batch % self.shares == 0 and share % part == 0 and share > part:
            return share // part * self.pieces(part)
        most = self.clips_at_once or share
        return next(n for n in range(1, share + 1) if share % n == 0 and share // n <= most)


class Optimization:
    """A stage's optimiser, gradient scaler and running average: what changes with every step beside the weights.

    Args:
        stage: whose numbers hold.
        network: all of whose parameters that are not frozen are learnt.
        execution: how steps are computed.
        device: of the network.
    """

    def __init__(self, stage: Stage, network: MemoryNetwork, execution: Execution, device: torch.device | str):
        self.stage, self.network, self.execution = stage, network, execution
        self.device = torch.device(device)
        self.optimizer = make_optimizer(stage, network)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=execution.precision == "fp16")
        self.average = copy.deepcopy(network).requires_grad_(False) if stage.ema else None

    def state(self) -> dict[str, Any]:
        """Tensors and numbers that a resumed stage needs."""
        average = self.average.state_dict() if self.average is not None else {}
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "average": average}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    @property
    def result(self) -> MemoryNetwork:
        """The network that the stage hands on: the running average where there is one."""
        return self.network if self.average is None else self.average

    def step(self, model: nn.Module, batch: Batch, step: int, seeds: list[list[int]]) -> tuple[float, float]:
        """One optimiser step.

        Args:
            model: the network as it is run, in parallel or compiled.
            batch: this worker's share.
            step: of the stage.
            seeds: of what is random in each of its clips.

        Returns:
            The loss, and the mean J of the step's own predictions.

        Raises:
            Diverged: when the gradient, which all workers share, is not finite; weights are then unchanged.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.rate(step)
        pieces = self.execution.pieces(len(batch.frames), self.stage.batch)
        self.optimizer.zero_grad(set_to_none=True)
        told = []
        statistics = _Statistics(self.network) if pieces > 1 else None
        for n, piece in enumerate(batch.pieces(pieces)):
            size = len(piece.frames)
            if statistics is not None and n:
                statistics.go_back()
            # What the network draws is keyed by the piece's first clip: the same after a restart, on any worker.
            torch.manual_seed(_folded(seeds[n * size]))
            sync = contextlib.nullcontext() if n + 1 == pieces else getattr(model, "no_sync", contextlib.nullcontext)()
            with sync:
                loss, jaccard = self._backward(model, piece, step, seeds[n * size : (n + 1) * size], pieces)
            told.append((loss, jaccard))
            if statistics is not None and not n:
                statistics.keep()
        if statistics is not None:
            statistics.go_on()
        self._update(step, float(np.mean([loss for loss, _ in told])))
        return tuple(float(column) for column in np.mean(told, axis=0))

    def _backward(
        self, model: nn.Module, batch: Batch, step: int, seeds: list[list[int]], pieces: int
    ) -> tuple[float, float]:
        precision = self.execution.precision
        autocast = torch.autocast(self.device.type, _HALF.get(precision), enabled=precision != "fp32")
        with autocast:
            logits, scores = (None if x is None else x.float() for x in predict(model, batch, self.stage, seeds))
            truth = batch.masks.repeat(1, self.stage.rounds, 1, 1) if self.stage.rounds else batch.masks[:, 1:]
            progress = step / max(self.stage.steps - 1, 1)
            loss = objective(self.stage.loss, logits, scores, truth, batch.valid, progress)
        self.scaler.scale(loss / pieces).backward()
        last = logits.detach()[:, -batch.frames.shape[1] :]
        return float(loss.detach()), mean_jaccard(last, batch)

    def _update(self, step: int, loss: float) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.stage.clip_norm or math.inf)
        # With fp16 a gradient may overflow its scale: the scaler then leaves the step out and lowers the scale.
        if not torch.isfinite(norm) and (not self.scaler.is_enabled() or self.scaler.get_scale() < 1):
            raise Diverged(
                f"stage {self.stage.name}, step {step}: the gradient is {float(norm)} (loss {loss:.3g}); "
                f"lower the learning rate (now {self.stage.rate(step):.2g}) or set a clip norm"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            _follow(self.average, self.network, min(self.stage.ema, (1 + step) / (10 + step)))


class _Statistics:
    """Batch norm's running statistics in a step of several pieces: those of the first piece count, as of rank 0.

    Workers gather statistics side by side and rank 0's stay; pieces that one worker takes one after the other do too.
    """

    def __init__(self, network: nn.Module):
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.first = self.before

    def keep(self) -> None:
        """The first piece is done."""
        self.first = [buffer.clone() for buffer in self.buffers]

    def go_back(self) -> None:
        """Another piece begins where the first did."""
        self._set(self.before)

    def go_on(self) -> None:
        """All pieces are done."""
        self._set(self.first)

    @torch.no_grad()
    def _set(self, values: list[torch.Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)


def _folded(seed: list[int]) -> int:
    """A clip's seed as one number for torch."""
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)


def predict(model: nn.Module, batch: Batch, stage: Stage, seeds: list[list[int]]) -> Prediction:
    """What a stage's clips are answered: from first masks, or in rounds of scribbles.

    Args:
        model: the network as it is run.
        batch: clips.
        stage: whose `rounds` and `corruption` hold.
        seeds: of what is random in each clip.
    """
    if stage.rounds:
        draw = Rounds(batch.masks, batch.valid.shape[1], seeds)
        return model(batch.frames, batch.first_masks, batch.valid, draw=draw, rounds=stage.rounds)
    spoil = _spoiler(stage.corruption, batch.valid, seeds)
    return model(batch.frames, batch.first_masks, batch.valid, spoil=spoil)


def objective(
    loss: Loss,
    logits: torch.Tensor,
    scores: torch.Tensor | None,
    truth: torch.Tensor,
    valid: torch.Tensor,
    progress: float,
) -> torch.Tensor:
    """What a stage minimises.

    Args:
        loss: which terms, with which weights.
        logits: `(B, T, K + 1, H, W)`.
        scores: assessed quality `(B, T, K)`, or None.
        truth: `(B, T, H, W)` int64 ids.
        valid: `(B, K)` bool, which objects there are.
        progress: of the stage in [0, 1].
    """
    if loss.kind == "bce":
        total = losses.binary_cross_entropy(logits, truth, valid)
    else:
        total = losses.cross_entropy(logits, truth, loss.share(progress))
    for weight, term in ((loss.soft_jaccard, losses.soft_jaccard), (loss.dice, losses.dice)):
        if weight:
            total = total + weight * term(logits, truth, valid)
    if scores is not None and loss.quality:
        total = total + loss.quality * losses.quality_loss(scores, logits, truth, valid)
    return total


def make_optimizer(stage: Stage, network: MemoryNetwork) -> torch.optim.Optimizer:
    """The stage's optimiser over all parameters that are not frozen."""
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": partial(torch.optim.SGD, momentum=stage.momentum),
    }
    parameters = [p for p in network.parameters() if p.requires_grad]
    return kinds[stage.optimizer](parameters, lr=stage.learning_rate, weight_decay=stage.weight_decay)


def _spoiler(
    corruption: Corruption, valid: torch.Tensor, seeds: list[list[int]]
) -> Callable[[torch.Tensor, int], torch.Tensor] | None:
    """What spoils estimates; a clip's draws follow from its seed and the frame alone."""
    if not corruption.happens:
        return None

    def spoil(masks: torch.Tensor, t: int) -> torch.Tensor:
        spoilt = [
            corrupted(own, there, corruption, np.random.default_rng([*seed, t]))
            for own, there, seed in zip(masks, valid, seeds, strict=True)
        ]
        return torch.stack(spoilt)

    return spoil


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network; buffers are taken as they are."""
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(now.detach(), 1 - decay)
    for mean, now in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(now)
