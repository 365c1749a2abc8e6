"""Networks by name: build one from its parts, keep one in a file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

import vosforge
from vosforge.errors import UserError
from vosforge.networks import camn, cfbi, emn, kmn, mivos, qpm, skn, stcn, stm
from vosforge.networks.base import MemoryNetwork
from vosforge.networks.collaborative import CollaborativeNetwork, CollaborativeParts
from vosforge.networks.parts import Parts, choose, restore
from vosforge.networks.space_time import SpaceTimeNetwork
from vosforge.storage import write_aside

NETWORKS: dict[str, dict[str, Parts]] = {
    "stm": stm.SIZES,
    "stm-interactive": stm.INTERACTIVE_SIZES,
    "emn": emn.SIZES,
    "qpm": qpm.SIZES,
    "skn": skn.SIZES,
    "camn": camn.SIZES,
    "cfbi+": cfbi.SIZES,
    "mivos": mivos.SIZES,
    "kmn": kmn.SIZES,
    "stcn": stcn.SIZES,
}
SIZES = ("nano", "small", "paper")
# For networks whose weights come from a file: their backbones need no others first.
UNTRAINED = {"pretrained": False, "memory_pretrained": False}


def build(name: str, size: str = "paper", **parts: Any) -> MemoryNetwork:
    """A network with fresh weights.

    Args:
        name: the network, a key of `NETWORKS`.
        size: "nano" (under 2 M parameters, for CPUs), "small" or "paper".
        parts: any field of `Parts`, instead of the network's own.

    Raises:
        UserError: for an unknown name, size or part, listing the valid ones, and for parts that cannot go together,
            with the reason.
    """
    return compose(name, size, choose(preset(name, size), **parts))


def compose(name: str, size: str, parts: Parts) -> MemoryNetwork:
    """A network of these very parts, described by the name and size that they come from."""
    network = CollaborativeNetwork(parts) if isinstance(parts, CollaborativeParts) else SpaceTimeNetwork(parts)
    # In JSON's own types, so that a network built and the same one loaded describe themselves alike.
    network.description = json.loads(json.dumps({"name": name, "size": size, "parts": asdict(parts)}))
    return network


def preset(name: str, size: str = "paper") -> Parts:
    """The parts of a network as its paper has them, at a size.

    Raises:
        UserError: for an unknown name or size, listing the valid ones.
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise UserError(f"unknown network {name!r}; valid: {', '.join(NETWORKS)}")
    if not isinstance(size, str) or size not in NETWORKS[name]:
        raise UserError(f"unknown size {size!r} of network {name}; valid: {', '.join(NETWORKS[name])}")
    return NETWORKS[name][size]


def save(network: MemoryNetwork, path: str | Path) -> None:
    """Write weights and configuration into one safetensors file, from which `load` rebuilds the network."""
    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    metadata = {"vosforge": vosforge.__version__, "network": json.dumps(network.description)}
    with write_aside(path) as aside:
        safetensors.torch.save_file(weights, aside, metadata=metadata)


def load(path: str | Path, **parts: Any) -> MemoryNetwork:
    """The network that `save` wrote, in evaluation mode and in its precision.

    Args:
        path: a local safetensors file.
        parts: parts to choose anew, e.g. `reader="topk"`; those with weights must fit the file.

    Raises:
        UserError: when the file is missing, is no vosforge network, or its weights do not fit the parts.
    """
    description = describe(path)
    name, size = description["name"], description["size"]
    saved = restore(preset(name, size), {**description["parts"], **UNTRAINED})
    network = compose(name, size, choose(saved, **parts))
    state = _weights(path)
    network = network.to(next((w.dtype for w in state.values() if w.is_floating_point()), torch.float32))
    _fill(network, state, path)
    return network.eval()


def describe(path: str | Path) -> dict[str, Any]:
    """`{"name", "size", "parts"}` of a saved network, without loading its weights.

    Raises:
        UserError: when the file is missing or is no vosforge network.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if "network" not in metadata:
        raise UserError(f"{path}: a safetensors file, but without vosforge's network description")
    try:
        description = json.loads(metadata["network"])
        return {key: description[key] for key in ("name", "size", "parts")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a description of name, size and parts, found another one") from error


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file, or a `UserError` when it is missing or something else."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such network file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: expected a safetensors file, found something else ({error})") from error


def load_weights(network: MemoryNetwork, path: str | Path) -> None:
    """Put a file's weights into a network of the same shape.

    Raises:
        UserError: when there is no such file, or naming the first missing, unexpected and misshapen weights.
    """
    _fill(network, _weights(path), path)


def _weights(path: str | Path) -> dict[str, torch.Tensor]:
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary


def _fill(network: MemoryNetwork, state: dict[str, torch.Tensor], path: str | Path) -> None:
    """Put a file's weights into the network, all of them."""
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or unexpected or shapes:
        raise UserError(
            f"{path}: weights do not fit this network: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    network.load_state_dict(state)
