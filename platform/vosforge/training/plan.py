"""A training plan: everything that determines a run's weights, as one value."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from vosforge import networks
from vosforge.data.sampling import ClipSampler
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.storage import absolute, canonical, claim, exists, is_local, join, local_path, read_bytes, sha256
from vosforge.training.clip_order import stage_sampler
from vosforge.training.stages import Stage

PLAN_FILE = "plan.json"


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
        # Workers run in other directories.
        object.__setattr__(self, "data", [absolute(uri) for uri in self.data])
        object.__setattr__(self, "initial", absolute(self.initial) if self.initial else None)

    @property
    def digest(self) -> str:
        """Short hex digest of the whole plan but its name."""
        content = {**asdict(self), "name": ""}
        return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]

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

    def contents(self) -> dict[str, Any]:
        """Digests of what the plan names by path: every shard set, and the initial network."""
        return {
            "data_digests": [ShardSet(uri).digest for uri in self.data],
            "initial_digest": sha256(self.initial) if self.initial and exists(self.initial) else None,
        }

    def build_network(self) -> MemoryNetwork:
        """The network to start from: fresh weights that follow from the seed, or those of `initial`."""
        torch.manual_seed(self.seed)
        network = networks.build(self.network, self.size, **self.parts)
        if self.initial is not None:
            if not is_local(self.initial):
                raise UserError(f"initial network {self.initial}: expected a local file; download it first")
            networks.load_weights(network, local_path(self.initial))
        return network


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
    content = {**asdict(plan), **plan.contents(), "harness": harness}
    claim(join(storage, plan.name, PLAN_FILE), content, f"run {plan.name} in {storage}")


def read_plan(uri: str) -> tuple[TrainingPlan, str]:
    """The plan of a run that was begun, and who keeps its checkpoints.

    Args:
        uri: the run's directory, local or `s3://`.

    Returns:
        The plan, and "ray" or "local".

    Raises:
        UserError: when there is no run, or its plan cannot be read.
    """
    # Only resuming by name needs it; the loop runs where it is not installed.
    from pydantic import TypeAdapter

    where = join(uri, PLAN_FILE)
    if not exists(where):
        raise UserError(f"{uri}: no run, {PLAN_FILE} is missing")
    try:
        content = json.loads(read_bytes(where))
        own = {field.name: content[field.name] for field in fields(TrainingPlan)}
        return TypeAdapter(TrainingPlan).validate_python(own), content["harness"]
    except (ValueError, KeyError, TypeError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{where}: expected the plan of a run of this version, found another ({told})") from error
