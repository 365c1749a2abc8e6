"""Candidates for an ensemble: what sweeps found, and networks trained otherwise."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vosforge import networks
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.search.space import DEFAULT_EVERY, MEMORY_EVERY
from vosforge.storage import absolute, download_file, exists, join, read_bytes, sha256
from vosforge.training.plan import PLAN_FILE

RESULTS_FILE, SWEEP_FILE = "trials.json", "sweep.json"
NETWORK_FILE = "network.safetensors"


@dataclass(frozen=True)
class Candidate:
    """A network that may become a member.

    Attributes:
        name: of its trial or run.
        network: its file, here.
        source: URI that it has, or was copied from.
        memory_every: every how many frames one stays in its memory.
        parts: what it is made of, network and size included.
        digest: of the file's content.
    """

    name: str
    network: Path
    source: str
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


def gather(sources: list[str], copies: Path) -> Sources:
    """Read the candidates of sweeps' folders, runs' folders and network files, local or `s3://`.

    Args:
        sources: their URIs.
        copies: folder for networks that are not here.

    Raises:
        UserError: for a source that is none of them, a sweep without a trial that succeeded, sweeps that were scored
            on different videos, or validation shards that changed since.
    """
    found: dict[str, Candidate] = {}
    sweeps, trained_on = [], set()
    for source in map(absolute, sources):
        if exists(join(source, SWEEP_FILE)):
            sweeps.append((source, _json(join(source, SWEEP_FILE))))
            members = _of_sweep(source, copies)
            trained_on |= set(sweeps[-1][1]["data_digests"])
        else:
            uri = source if source.endswith(".safetensors") else join(source, NETWORK_FILE)
            if not exists(uri):
                raise UserError(f"{source}: expected a finished sweep's folder, a run's folder or a network file")
            # Of a checkpoint, the folder of its run is one up.
            folder = uri.rpartition("/")[0]
            run = folder.rpartition("/")[0] if folder.rpartition("/")[2].startswith("step_") else folder
            members = [_of_run(uri, run, copies)]
            trained_on |= _data_of_run(run)
        for member in members:
            found.setdefault(f"{member.digest} {member.memory_every}", member)
    if not found:
        raise UserError("an ensemble needs at least one sweep, run or network file")
    _check_validation(sweeps)
    scored = sweeps[0][1] if sweeps else {"validation": {"uri": None}, "protocol": None, "short_side": None}
    validation = scored["validation"]["uri"]
    return Sources(list(found.values()), validation, scored["protocol"], scored["short_side"], frozenset(trained_on))


def _of_sweep(folder: str, copies: Path) -> list[Candidate]:
    results = join(folder, RESULTS_FILE)
    if not exists(results):
        raise UserError(
            f"{folder}: no finished sweep, {RESULTS_FILE} is missing; run its program of tuning/ to its end"
        )
    trials = [trial for trial in _json(results) if trial["state"] != "failed"]
    if not trials:
        raise UserError(f"{folder}: no trial succeeded")
    return [_of_trial(trial, trial["network"], copies) for trial in trials]


def _of_trial(trial: dict[str, Any], uri: str, copies: Path) -> Candidate:
    return _candidate(trial["trial"], uri, trial["config"].get(MEMORY_EVERY, DEFAULT_EVERY), copies)


def _of_run(uri: str, run: str, copies: Path) -> Candidate:
    """A network by itself; where its run is a trial of a sweep that has ended, with what the trial was."""
    results = join(run.rpartition("/")[0], RESULTS_FILE)
    for trial in _json(results) if exists(results) else []:
        if trial["network"] and absolute(trial["network"]) == uri:
            return _of_trial(trial, uri, copies)
    name = run if uri.endswith(f"/{NETWORK_FILE}") else uri.removesuffix(".safetensors")
    return _candidate(name.rpartition("/")[2], uri, DEFAULT_EVERY, copies)


def _data_of_run(folder: str) -> set[str]:
    """Digests of the shards that a run trained on; none where the folder is no run's."""
    path = join(folder, PLAN_FILE)
    return set(_json(path)["data_digests"]) if exists(path) else set()


def _json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def _candidate(name: str, uri: str, memory_every: int, copies: Path) -> Candidate:
    path = download_file(uri, copies / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.safetensors")
    description = networks.describe(path)
    parts = {**description["parts"], "network": description["name"], "size": description["size"]}
    return Candidate(name, path, uri, memory_every, parts, sha256(path))


def _check_validation(sweeps: list[tuple[str, dict[str, Any]]]) -> None:
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
