"""Checkpoints: everything that a run needs to go on exactly where it stopped."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vosforge import networks
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.storage import download_file, exists, join, list_names, list_sizes, read_bytes, upload_file, write_bytes

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


class Damaged(UserError):
    """A checkpoint that cannot be read; every worker sees it."""


def save_checkpoint(
    folder: Path, network: MemoryNetwork, state: dict[str, Any], position: Position, digest: str
) -> None:
    """Write weights, the state of optimisation and position into an empty folder, and through to the disk.

    The position is written last and knows the other files' sizes, so that a folder of which a part is missing is told
    from a whole one wherever it is copied.
    """
    networks.save(network, folder / NETWORK_FILE)
    torch.save(state, folder / _OPTIMIZER_FILE)
    sizes = {name: (folder / name).stat().st_size for name in (NETWORK_FILE, _OPTIMIZER_FILE)}
    (folder / _POSITION_FILE).write_text(json.dumps({**asdict(position), "plan": digest, "bytes": sizes}))
    for path in folder.iterdir():
        _to_disk(path)


def _to_disk(path: Path) -> None:
    """A machine that loses power after the folder was given its name must not leave files without their contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def space_needed(network: MemoryNetwork) -> int:
    """Bytes that a run's storage should have free: three checkpoints, each with all that an optimiser may keep."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    # Beside the weights themselves Adam's two moments, and a running average.
    return 3 * 4 * weights


def adopt(checkpoint: str, run: str, digest: str) -> str:
    """Give a run a checkpoint of another plan to go on from, whose stages up to there are as its own.

    Args:
        checkpoint: URI of a folder that `save_checkpoint` filled, named by its step.
        run: URI of the run's folder; no checkpoint of its own is there yet.
        digest: of the run's plan.

    Returns:
        URI of the copy.

    Raises:
        Damaged: when the checkpoint's position is missing or cannot be read.
    """
    position = _read_position(checkpoint)
    target = join(run, checkpoint.rpartition("/")[2])
    with tempfile.TemporaryDirectory() as folder:
        for name in position["bytes"]:
            upload_file(download_file(join(checkpoint, name), Path(folder) / name), join(target, name))
    # Without its position a checkpoint counts for nothing.
    write_bytes(join(target, _POSITION_FILE), json.dumps({**position, "plan": digest}).encode())
    return target


def latest_whole(uri: str) -> str | None:
    """URI of a run's latest checkpoint whose files are all there in full; None when there is none."""
    for name in reversed([name for name in list_names(uri) if name.startswith("step_")]):
        folder = join(uri, name)
        found = list_sizes(folder)
        if _POSITION_FILE not in found:
            continue
        try:
            expected = json.loads(read_bytes(join(folder, _POSITION_FILE)))["bytes"]
        except (ValueError, KeyError, TypeError):
            continue
        if all(found.get(file) == size for file, size in expected.items()):
            return folder
    return None


def load_checkpoint(folder: Path, network: MemoryNetwork, digest: str) -> tuple[Position, dict[str, Any]]:
    """Restore the network's weights; return the position and the state of optimisation.

    Raises:
        UserError: when the checkpoint belongs to another plan.
        Damaged: when one of its files is missing or cut off, naming it.
    """
    found = _read_position(folder)
    if found["plan"] != digest:
        raise UserError(f"{folder}: the checkpoint is of another plan ({found['plan']}, expected {digest})")
    for name, size in found["bytes"].items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there != size:
            raise Damaged(_damage(folder / name, f"expected {size} bytes, found {there}"))
    networks.load_weights(network, folder / NETWORK_FILE)
    try:
        state = torch.load(folder / _OPTIMIZER_FILE, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise Damaged(_damage(folder / _OPTIMIZER_FILE, told)) from error
    return Position(found["stage"], found["step"]), state


def _read_position(folder: str | Path) -> dict[str, Any]:
    path = join(folder, _POSITION_FILE)
    if not exists(path):
        raise Damaged(f"{folder}: no checkpoint, {_POSITION_FILE} is missing")
    try:
        found = json.loads(read_bytes(path))
        return {key: found[key] for key in ("stage", "step", "plan", "bytes")}
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(_damage(path, f"expected a position, found {type(error).__name__}")) from error


def _damage(path: str | Path, told: str) -> str:
    return (
        f"{path}: the checkpoint is damaged ({told}); delete {str(path).rpartition('/')[0]} to go on from an earlier "
        "one, or from the start where there is none"
    )
