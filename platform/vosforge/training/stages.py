"""One stage of a curriculum: what is learnt from, for how long, and with which loss, schedule and optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from vosforge.data.sampling import SamplingRecipe
from vosforge.errors import UserError

LossKind = Literal["cross-entropy", "bce"]
OptimizerKind = Literal["adam", "adamw", "sgd"]
ALL_KINDS = ("images", "pseudo_video", "bl30k", "videos")
"""Kinds that shard sets have."""


@dataclass(frozen=True)
class Loss:
    """What is minimised; the terms are added."""

    kind: LossKind = "cross-entropy"
    """Of pixels: cross-entropy over background and all objects, or bce of each object against the rest."""
    hardest: float = 1.0
    """Share of hardest pixels that the cross-entropy averages over in the end; 1 takes all (bootstrapping)."""
    hardest_between: tuple[float, float] = (0.0, 1.0)
    """Progress of the stage between which that share falls linearly from 1."""
    soft_jaccard: float = 0.0
    """Weight of one minus the soft overlap over union."""
    dice: float = 0.0
    """Weight of one minus the soft dice coefficient."""
    quality: float = 1.0
    """Weight of the squared error of assessed quality, in networks that assess."""

    def __post_init__(self) -> None:
        low, high = self.hardest_between
        if self.kind not in get_args(LossKind):
            raise UserError(f"loss kind: expected {' or '.join(get_args(LossKind))}, found {self.kind!r}")
        if not 0 < self.hardest <= 1 or not 0 <= low <= high <= 1:
            raise UserError(
                f"loss: expected hardest in (0, 1] and hardest_between as progress from 0 to 1, "
                f"found {self.hardest} and {low}, {high}"
            )
        if self.kind == "bce" and self.hardest < 1:
            raise UserError(f"loss: bce averages over all pixels; hardest={self.hardest:g} goes with cross-entropy")
        for name in ("soft_jaccard", "dice", "quality"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"loss: the weight of {name} must be at least 0, found {getattr(self, name)}")

    def share(self, progress: float) -> float:
        """Share of hardest pixels at a progress in [0, 1]."""
        low, high = self.hardest_between
        fallen = 1.0 if progress >= high else max(0.0, progress - low) / (high - low)
        return 1 - (1 - self.hardest) * fallen


@dataclass(frozen=True)
class Corruption:
    """How estimated masks are spoilt; by default not at all."""

    swap: float = 0.0
    """Probability that regions are swapped: a square of two objects, or, where there is one object alone, its
    foreground and background in two rectangles."""
    morph: float = 0.0
    """Probability that each object is dilated or eroded."""
    side: tuple[float, float] = (0.2, 0.6)
    """Of squares and rectangles, uniform in this range of the square root of an object's area."""
    radius: tuple[float, float] = (0.02, 0.08)
    """Of dilation and erosion, uniform in this range of the square root of an object's area; at least a pixel."""

    def __post_init__(self) -> None:
        for name in ("swap", "morph"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"corruption: {name} must be a probability, found {getattr(self, name)}")
        for name in ("side", "radius"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"corruption: {name} must be a range above 0, found {low} to {high}")

    @property
    def happens(self) -> bool:
        """Whether anything is ever spoilt."""
        return self.swap > 0 or self.morph > 0


@dataclass(frozen=True)
class Stage:
    """One step of a curriculum."""

    name: str
    """images, bl30k or videos."""
    kinds: tuple[str, ...]
    """Kinds of shard sets that it learns from; at least one set of them is needed."""
    steps: int
    """Optimiser steps."""
    batch: int
    """Global batch in clips, over all workers."""
    sampling: SamplingRecipe
    """How clips are cut."""
    learning_rate: float
    """At the start of the stage, after the warm-up."""
    power: float = 0.0
    """Of the polynomial decay to zero; 0 keeps the rate constant."""
    milestones: tuple[float, ...] = ()
    """Progress at which the rate falls to a tenth."""
    warm_up: int = 0
    """Steps of linear increase of the rate."""
    optimizer: OptimizerKind = "adam"
    """adam, adamw, or sgd with momentum."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 0.0
    """Of the optimiser."""
    clip_norm: float | None = None
    """Largest gradient norm; None does not clip."""
    ema: float = 0.0
    """Decay of the running average of weights that is kept as the network; 0 keeps the weights themselves."""
    loss: Loss = field(default_factory=Loss)
    """What is minimised."""
    corruption: Corruption = field(default_factory=Corruption)
    """How estimated masks are spoilt before they are memorised (SKN)."""
    rounds: int = 0
    """Rounds of scribbles in which clips are segmented, for networks that take them; 0 trains from first masks."""
    repeats: tuple[tuple[str, float], ...] = ()
    """Data sets whose videos are drawn more often, each with how many times, as DAVIS 5."""
    also: tuple[str, ...] = ()
    """Further kinds that are mixed in where they are given, so that earlier stages are not forgotten."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 < self.learning_rate < math.inf:
            raise UserError(
                f"stage {self.name}: steps, batch and learning rate must be positive, "
                f"found {self.steps}, {self.batch} and {self.learning_rate}"
            )
        for name in ("power", "warm_up", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"stage {self.name}: {name} must be at least 0, found {getattr(self, name)}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"stage {self.name}: clip_norm must be above 0, found {self.clip_norm}")
        if not all(0 <= factor < math.inf for _, factor in self.repeats):
            raise UserError(f"stage {self.name}: repeats must be at least 0, found {self.repeats}")
        unknown = [kind for kind in self.also if kind not in ALL_KINDS]
        if unknown:
            raise UserError(f"stage {self.name}: also: expected some of {', '.join(ALL_KINDS)}, found {unknown[0]!r}")
        if self.rounds and self.corruption.happens:
            raise UserError(f"stage {self.name}: rounds of scribbles have no estimates to spoil; leave corruption out")
        if self.optimizer not in get_args(OptimizerKind):
            valid = ", ".join(get_args(OptimizerKind))
            raise UserError(f"stage {self.name}: unknown optimizer {self.optimizer!r}; valid: {valid}")
        if self.rounds < 0:
            raise UserError(f"stage {self.name}: rounds must be at least 0, found {self.rounds}")
        if not 0 <= self.ema < 1 or not all(0 < at < 1 for at in self.milestones):
            raise UserError(
                f"stage {self.name}: expected ema in [0, 1) and milestones as progress between 0 and 1, "
                f"found {self.ema} and {self.milestones}"
            )

    def rate(self, step: int) -> float:
        """Learning rate at a step, a pure function of it: nothing to save, nothing to restore."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        progress = step / self.steps
        fallen = 0.1 ** sum(progress >= at for at in self.milestones)
        return self.learning_rate * fallen * (1 - progress) ** self.power
