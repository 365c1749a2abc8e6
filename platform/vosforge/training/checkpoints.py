"""Checkpoints: everything that a run needs to go on exactly where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vosforge import networks
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork

NETWORK_FILE = "network.safetensors"
_OPTIMIZER_FILE = "optimizer.pt"
_POSITION_FILE = "position.json"


@dataclass(frozen=True)
class Position:
    """Where a run is: the stage, and the steps of it that are done. Nothing else is random or remembered.

    Learning rates, clips and model randomness are pure functions of it.
    """

    stage: int = 0
    step: int = 0


def save_checkpoint(
    folder: Path, network: MemoryNetwork, state: dict[str, Any], position: Position, digest: str
) -> None:
    """Write weights, the state of optimisation and position into an empty folder."""
    networks.save(network, folder / NETWORK_FILE)
    torch.save(state, folder / _OPTIMIZER_FILE)
    (folder / _POSITION_FILE).write_text(json.dumps({**asdict(position), "plan": digest}))


def load_checkpoint(folder: Path, network: MemoryNetwork, digest: str) -> tuple[Position, dict[str, Any]]:
    """Restore the network's weights; return the position and the state of optimisation.

    Raises:
        UserError: when the checkpoint belongs to another plan or its files are missing.
    """
    path = folder / _POSITION_FILE
    if not path.is_file():
        raise UserError(f"{folder}: no checkpoint, {_POSITION_FILE} is missing")
    found = json.loads(path.read_text())
    if found["plan"] != digest:
        raise UserError(f"{folder}: the checkpoint is of another plan ({found['plan']}, expected {digest})")
    networks.load_weights(network, folder / NETWORK_FILE)
    state = torch.load(folder / _OPTIMIZER_FILE, weights_only=True, map_location="cpu")
    return Position(found["stage"], found["step"]), state
