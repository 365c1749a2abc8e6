"""J and F of a network at the rungs of a sweep, where trials are compared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from vosforge.errors import UserError
from vosforge.evaluation.running import Truth, evaluate
from vosforge.networks import MemoryNetwork
from vosforge.propagation import Model, segment_clip
from vosforge.search.splits import split
from vosforge.storage import join, list_names, read_bytes, write_bytes

METRIC = "JF_mean"
METRICS = (METRIC, "J_mean", "F_mean")
RUNGS = "rungs"
"""Folder of a run's scores."""


@dataclass(frozen=True)
class Examination:
    """Scores a network on the part of the validation set that selection may see, and writes the scores down.

    It runs in the training worker, which has the device, while its training waits.

    Attributes:
        validation: URI of the set.
        scores: URI of a folder for them.
        rungs: steps at which it scores.
        memory_every: every how many frames one stays in memory.
        protocol: as in `vosforge.evaluation.score`.
        short_side: pixels to which frames are reduced; None keeps their size.
    """

    validation: str
    scores: str
    rungs: tuple[int, ...]
    memory_every: int = 5
    protocol: str = "davis2017"
    short_side: int | None = None

    def __call__(self, network: MemoryNetwork, step: int) -> dict[str, float]:
        """`{"JF_mean", "J_mean", "F_mean"}` at a rung, NaN for a network that gives no masks; elsewhere nothing."""
        if step not in self.rungs:
            return {}
        learning = network.training
        try:
            scores = self._score(network)
        except UserError as error:
            # Weights that are no numbers; the next step of training says which.
            scores = {**dict.fromkeys(METRICS, nan), "reason": str(error)}
        finally:
            network.train(learning)
        note_scores(self.scores, {"step": step, **scores})
        return {name: scores[name] for name in METRICS}

    def _score(self, network: MemoryNetwork) -> dict[str, Any]:
        truth = Truth(self.validation)
        model, device = Model([network], self.memory_every), str(next(network.parameters()).device)
        clips = (truth.clip(i) for i in split(truth).select)
        found = evaluate(
            {"network": lambda clip: segment_clip(model.start(device), clip, self.short_side)}, clips, self.protocol
        )["network"]
        return {METRIC: found["J&F"], "J_mean": found["J"], "F_mean": found["F"]}


def note_scores(folder: str, scores: dict[str, Any]) -> None:
    """Write down `{"step", "JF_mean", "J_mean", "F_mean"}` of a rung."""
    write_bytes(join(folder, f"step_{scores['step']:08d}.json"), json.dumps(scores).encode())


def rungs_of(scores: str, after: int = -1) -> list[dict[str, Any]]:
    """What examinations wrote into a folder of steps after one, `[{"step", "JF_mean", "J_mean", "F_mean"}]`."""
    names = [name for name in list_names(scores) if name.startswith("step_") and name > f"step_{after:08d}.json"]
    return [json.loads(read_bytes(join(scores, name))) for name in names]


def check_scores(scores: dict[str, Any], where: str) -> None:
    """Refuse scores that are no numbers.

    Raises:
        UserError: with the reason, where it is known.
    """
    if isnan(scores[METRIC]):
        reason = scores.get("reason") or "no object of the validation set has a frame that counts"
        raise UserError(f"{where}, step {scores['step']}: J&F is no number: {reason}")
