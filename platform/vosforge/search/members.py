"""Candidates for an ensemble: what sweeps found, and networks trained otherwise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vosforge import networks
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.search.space import DEFAULT_EVERY, MEMORY_EVERY
from vosforge.storage import sha256
from vosforge.training.plan import PLAN_FILE

RESULTS_FILE, SWEEP_FILE = "trials.json", "sweep.json"
NETWORK_FILE = "network.safetensors"


@dataclass(frozen=True)
class Candidate:
    """A network that may become a member.

    Attributes:
        name: of its trial or run.
        network: its file.
        memory_every: every how many frames one stays in its memory.
        parts: what it is made of, network and size included.
        digest: of the file's content.
    """

    name: str
    network: Path
    memory_every: int
    parts: dict[str, Any]
    digest: str

    def differs(self, other: Candidate) -> bool:
        """Whether the two have at least one part that is not the same."""
        return self.parts != other.parts


@dataclass(frozen=True)
class Sources:
    """Where candidates come from.

    Attributes:
        candidates: in the order of the sources, each network once.
        validation: URI of the shards that scored the sweeps' trials; None where no source is a sweep.
        protocol, short_side: how they were scored.
        trained_on: digests of the shards that sweeps' trials and runs trained on.
    """

    candidates: list[Candidate]
    validation: str | None
    protocol: str | None
    short_side: int | None
    trained_on: frozenset[str]


def gather(sources: list[str]) -> Sources:
    """Read the candidates of sweeps' folders, runs' folders and network files.

    Raises:
        UserError: for a source that is none of them, a sweep without a trial that succeeded, sweeps that were scored
            on different videos, or validation shards that changed since.
    """
    found: dict[str, Candidate] = {}
    sweeps, trained_on = [], set()
    for source in map(Path, sources):
        if (source / SWEEP_FILE).is_file():
            sweeps.append((source, json.loads((source / SWEEP_FILE).read_text())))
            members = _of_sweep(source)
            trained_on |= set(sweeps[-1][1]["data_digests"])
        else:
            path = source / NETWORK_FILE if source.is_dir() else source
            if not path.is_file():
                raise UserError(f"{source}: expected a finished sweep's folder, a run's folder or a network file")
            # Of a checkpoint, the folder of its run is one up.
            run = path.parent.parent if path.parent.name.startswith("step_") else path.parent
            members = [_of_run(path, run)]
            trained_on |= _data_of_run(run)
        for member in members:
            found.setdefault(f"{member.digest} {member.memory_every}", member)
    if not found:
        raise UserError("an ensemble needs at least one sweep, run or network file")
    _check_validation(sweeps)
    scored = sweeps[0][1] if sweeps else {"validation": {"uri": None}, "protocol": None, "short_side": None}
    validation = scored["validation"]["uri"]
    return Sources(list(found.values()), validation, scored["protocol"], scored["short_side"], frozenset(trained_on))


def _of_sweep(folder: Path) -> list[Candidate]:
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no finished sweep, {RESULTS_FILE} is missing; run its program of tuning/ to its end"
        )
    trials = [trial for trial in json.loads(path.read_text()) if trial["state"] != "failed"]
    if not trials:
        raise UserError(f"{folder}: no trial succeeded")
    return [
        _candidate(trial["trial"], Path(trial["network"]), trial["config"].get(MEMORY_EVERY, DEFAULT_EVERY))
        for trial in trials
    ]


def _of_run(path: Path, run: Path) -> Candidate:
    """A network by itself; where its run is a trial of a sweep that has ended, with what the trial was."""
    results = run.parent / RESULTS_FILE
    for trial in json.loads(results.read_text()) if results.is_file() else []:
        if trial["network"] and Path(trial["network"]).resolve() == path.resolve():
            return _candidate(trial["trial"], path, trial["config"].get(MEMORY_EVERY, DEFAULT_EVERY))
    return _candidate(run.name if path.name == NETWORK_FILE else path.stem, path, DEFAULT_EVERY)


def _data_of_run(folder: Path) -> set[str]:
    """Digests of the shards that a run trained on; none where the folder is no run's."""
    path = folder / PLAN_FILE
    return set(json.loads(path.read_text())["data_digests"]) if path.is_file() else set()


def _candidate(name: str, path: Path, memory_every: int) -> Candidate:
    description = networks.describe(path)
    parts = {**description["parts"], "network": description["name"], "size": description["size"]}
    return Candidate(name, path, memory_every, parts, sha256(path))


def _check_validation(sweeps: list[tuple[Path, dict[str, Any]]]) -> None:
    """Refuse sweeps whose trials were chosen by other videos than those that are there."""
    for folder, sweep in sweeps:
        uri, digest = sweep["validation"]["uri"], sweep["validation"]["digest"]
        if ShardSet(uri).digest != digest:
            raise UserError(
                f"{folder}: its trials were scored on {uri}, whose shards changed since; run the sweep again under "
                "another --name"
            )
        if digest != sweeps[0][1]["validation"]["digest"]:
            raise UserError(
                f"{folder} was scored on {uri}, {sweeps[0][0]} on {sweeps[0][1]['validation']['uri']}: what one chose "
                "by would be reported on for the other; take sweeps with one --validation"
            )
