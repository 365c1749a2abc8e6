"""A training plan: everything that determines a run's weights, as one value."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from vosforge import networks
from vosforge.data.sampling import ClipSampler
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.storage import (
    absolute,
    canonical,
    claim,
    download_file,
    exists,
    join,
    read_bytes,
    sha256,
    write_bytes,
)
from vosforge.training.clip_order import stage_sampler
from vosforge.training.stages import Stage
from vosforge.training.steps import Execution

PLAN_FILE = "plan.json"
EXECUTION_FILE = "execution.json"
# Parts of networks that may name a file of weights.
_FILE_PARTS = ("pretrained", "memory_pretrained")


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, on what, from where.

    Attributes:
        name: of the run; with the storage it identifies the run when it is resumed.
        network, size, parts: as in `vosforge.networks.build`.
        stages: in order.
        data: URIs of shard sets; each stage uses those of its kinds.
        seed: every random choice follows from it.
        initial: network file to start from; None starts from fresh weights.
        checkpoint_every: steps between checkpoints.
        probe_clips: clips on which J is probed at each checkpoint.
    """

    name: str
    network: str
    size: str
    stages: list[Stage]
    data: list[str]
    parts: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    initial: str | None = None
    checkpoint_every: int = 100
    probe_clips: int = 16

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name) or set(self.name) <= {"."}:
            raise UserError(f"run name {self.name!r}: expected letters, digits, '.', '-' and '_' alone")
        if self.checkpoint_every < 1:
            raise UserError(f"checkpoint_every must be at least 1, found {self.checkpoint_every}")
        if not 0 <= self.seed < 1 << 31:
            raise UserError(f"seed must be from 0 to {(1 << 31) - 1}, found {self.seed}")
        # Workers run in other directories.
        object.__setattr__(self, "data", [absolute(uri) for uri in self.data])
        object.__setattr__(self, "initial", absolute(self.initial) if self.initial else None)
        files = {name: absolute(self.parts[name]) for name in _FILE_PARTS if isinstance(self.parts.get(name), str)}
        object.__setattr__(self, "parts", {**self.parts, **files})

    @property
    def digest(self) -> str:
        """Short hex digest of the whole plan but its name."""
        content = {**asdict(self), "name": ""}
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]

    @property
    def content_digest(self) -> str:
        """Short hex digest of all that the weights follow from: the plan, and the contents of what it names by path."""
        content = canonical({"plan": self.digest, **self.contents()})
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def samplers(self) -> list[ClipSampler]:
        """One clip sampler a stage.

        Raises:
            UserError: when a stage has no data of its kinds.
        """
        sets = [ShardSet(uri) for uri in self.data]
        return [stage_sampler(stage, sets, self.seed) for stage in self.stages]

    @property
    def files(self) -> dict[str, str]:
        """Files of weights that the plan names, by the field that names them."""
        named = {"initial": self.initial, **{name: self.parts.get(name) for name in _FILE_PARTS}}
        return {name: path for name, path in named.items() if isinstance(path, str)}

    def contents(self) -> dict[str, Any]:
        """Digests of what the plan names by path: shard sets, and files of weights, None for those not there."""
        return {
            "data_digests": [ShardSet(uri).digest for uri in self.data],
            "file_digests": {name: sha256(path) if exists(path) else None for name, path in self.files.items()},
        }

    def build_network(self, fresh: bool = True) -> MemoryNetwork:
        """The network to start from: fresh weights that follow from the seed, or those of `initial`.

        Args:
            fresh: False builds one whose weights a checkpoint will replace; files of weights need not be there.

        Raises:
            UserError: when `initial` is missing, or of another network or size.
        """
        torch.manual_seed(self.seed)
        if not fresh:
            untrained = {name: False for name in _FILE_PARTS if self.parts.get(name)}
            network = networks.build(self.network, self.size, **{**self.parts, **untrained})
            network.description["parts"].update({name: self.parts[name] for name in untrained})
            return network
        network = networks.build(self.network, self.size, **self.parts)
        if self.initial is not None:
            self._start_from_initial(network)
        return network

    def _start_from_initial(self, network: MemoryNetwork) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = download_file(self.initial, Path(folder) / "initial.safetensors")
            found = networks.describe(path)
            try:
                networks.load_weights(network, path)
            except UserError as error:
                told = str(error).replace(str(path), self.initial)
                raise UserError(
                    f"initial network {found['name']} {found['size']} cannot start {self.network} {self.size}: {told}"
                ) from None


def claim_run(storage: str, plan: TrainingPlan, harness: str) -> None:
    """Write the plan into the run's directory, or refuse a directory that holds another run.

    Another run is one of another plan, of other data under the same names, or kept by the other harness: Ray Train
    would silently continue it under the new configuration.

    Args:
        storage: of runs.
        plan: of the run.
        harness: "ray" or "local", who keeps the checkpoints.

    Raises:
        UserError: naming the run and the differing fields.
    """
    where = join(storage, plan.name, PLAN_FILE)
    content = {**asdict(plan), **plan.contents(), "harness": harness}
    known = _read_json(where).get("file_digests") if _is_there(where) else None
    for name, digest in content["file_digests"].items():
        # A run that was begun has its weights; the file that they started from may be gone.
        if digest is None and isinstance(known, dict):
            content["file_digests"][name] = known.get(name)
    claim(where, content, f"run {plan.name} in {storage}")


def note_execution(storage: str, name: str, settings: dict[str, Any]) -> None:
    """Write down how a run is computed, for those who resume it; nothing where it is known already.

    Args:
        storage: of runs.
        name: of the run.
        settings: JSON-serialisable.
    """
    where = join(storage, name, EXECUTION_FILE)
    content = json.dumps(settings, indent=1).encode()
    if not _is_there(where) or read_bytes(where) != content:
        write_bytes(where, content)


def noted_execution(uri: str) -> dict[str, Any]:
    """What `note_execution` wrote into a run's directory last; empty when there is nothing."""
    where = join(uri, EXECUTION_FILE)
    return _read_json(where) if _is_there(where) else {}


def begun_execution(storage: str, name: str, execution: Execution, workers: int) -> Execution:
    """How a run is to be computed: as asked, in the shares that it was begun with, else in as many as workers."""
    noted = noted_execution(join(storage, name)).get("execution") or {}
    return replace(execution, shares=noted.get("shares") or max(execution.shares, workers))


def _is_there(where: str) -> bool:
    try:
        return exists(where)
    except OSError as error:
        raise UserError(f"{where}: the storage cannot be read ({error}); check its rights") from error


def _read_json(where: str) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(where))
    except ValueError as error:
        raise UserError(f"{where}: expected JSON, found something else ({error})") from error
    except OSError as error:
        raise UserError(f"{where}: the storage cannot be read ({error}); check its rights") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def read_plan(uri: str) -> tuple[TrainingPlan, str]:
    """The plan of a run that was begun, and who keeps its checkpoints.

    Args:
        uri: the run's directory, local or `s3://`.

    Returns:
        The plan, and "ray" or "local".

    Raises:
        UserError: when there is no run, its plan cannot be read, or the folder was given another name.
    """
    # Only resuming by name needs it; the loop runs where it is not installed.
    from pydantic import TypeAdapter

    where = join(uri, PLAN_FILE)
    if not _is_there(where):
        raise UserError(f"{uri}: no run, {PLAN_FILE} is missing")
    content = _read_json(where)
    try:
        own = {field.name: content[field.name] for field in fields(TrainingPlan)}
        plan, harness = TypeAdapter(TrainingPlan).validate_python(own), content["harness"]
    except (ValueError, KeyError, TypeError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{where}: expected the plan of a run of this version, found another ({told})") from error
    if plan.name != uri.rstrip("/").rpartition("/")[2]:
        raise UserError(f"{uri}: the folder holds run {plan.name}; give it that name again, and it can go on")
    return plan, harness
