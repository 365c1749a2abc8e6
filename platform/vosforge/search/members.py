"""The choice of an ensemble's members."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vosforge.errors import UserError

METRIC = "JF_mean"
RESULTS_FILE = "trials.json"


@dataclass(frozen=True)
class Candidate:
    """A finished trial: its name, its score on the validation set, its choices and its network's file."""

    name: str
    score: float
    config: dict[str, Any]
    network: Path


def best_members(sweeps: list[Path], members: int) -> list[Candidate]:
    """The trials of finished sweeps with the best validation scores, best first.

    Raises:
        UserError: when a folder holds no finished sweep, no trial succeeded, or `members` is below 1.
    """
    if members < 1:
        raise UserError(f"an ensemble needs at least one member, found --members {members}")
    candidates = []
    for folder in sweeps:
        path = Path(folder) / RESULTS_FILE
        if not path.is_file():
            raise UserError(f"{folder}: no finished sweep, {RESULTS_FILE} is missing; run a program of tuning/ first")
        for trial in json.loads(path.read_text()):
            if not trial["error"]:
                candidates.append(Candidate(trial["trial"], trial[METRIC], trial["config"], Path(trial["network"])))
    if not candidates:
        raise UserError(f"{', '.join(map(str, sweeps))}: no trial succeeded")
    return sorted(candidates, key=lambda trial: -trial.score)[:members]
