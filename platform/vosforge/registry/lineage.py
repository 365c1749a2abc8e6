"""What a model was made of: data -> run -> sweep -> ensemble, read from what each of them left beside its networks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vosforge import networks
from vosforge.errors import UserError
from vosforge.propagation.model import DESCRIPTION, model_digest
from vosforge.storage import absolute, download_file, exists, join, list_sizes, local_copy, read_bytes, sha256
from vosforge.tracking import redacted
from vosforge.tracking.clients import network_of
from vosforge.tracking.code_version import versions

LINEAGE_FILE = "lineage.json"
_NETWORK, _PLAN, _POSITION = "network.safetensors", "plan.json", "position.json"
_SWEEP, _TRIALS, _ENSEMBLE = "sweep.json", "trials.json", "ensemble.json"
# Networks that others started from, and so on; a longer chain is a mistake.
_LONGEST_CHAIN = 8


@dataclass(frozen=True)
class Source:
    """A model to register.

    Attributes:
        model: local file of a network, or folder of an ensemble.
        lineage: JSON-serialisable: `kind`, `sha256`, `members` with the run, sweep and data of each.
    """

    model: Path
    lineage: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the model, as `model_digest`."""
        return self.lineage["sha256"]


def find(source: str, store: str, folder: Path) -> Source:
    """The model of a run, sweep, checkpoint or ensemble, and what it was made of.

    Args:
        source: folder, local or `s3://`, of a run, a sweep, a checkpoint or a model; a network file; or the id of an
            MLflow run of training, a sweep or an ensemble.
        store: tracking URI, for ids.
        folder: empty, takes what has to be downloaded.

    Raises:
        UserError: when there is no model.
    """
    uri = absolute(network_of(source, store))
    run = {"mlflow_run": source} if uri != absolute(source) else {}
    if exists(join(uri, DESCRIPTION)):
        files = [download_file(join(uri, name), folder / name) for name in list_sizes(uri)]
        return Source(files[0].parent, {**of_model(files[0].parent, uri), **run})
    file = uri if uri.endswith(".safetensors") else _network_in(uri)
    if file is None or not exists(file):
        raise UserError(
            f"{source}: no model; expected a network's file, the folder of a finished run, a sweep, a checkpoint or an "
            "ensemble, or the id of an MLflow run"
        )
    model = download_file(file, folder / _NETWORK)
    return Source(model, {**_network(file, uri, model), **run})


def of_model(path: Path, uri: str | None = None) -> dict[str, Any]:
    """What a model was made of: a network's file, or a folder that `save_model` wrote.

    Args:
        path: of the model, here.
        uri: where it was copied from, if it was.

    Raises:
        UserError: when it is neither, or a file beside it is broken.
    """
    uri = uri or absolute(path)
    return _ensemble(path, uri) if path.is_dir() else _network(uri, uri, path)


def trace(uri: str, local: Path, depth: int = 0) -> dict[str, Any]:
    """What one network was made of, as far as the files around it tell.

    Args:
        uri: of its file.
        local: the file, or a copy of it.
        depth: how many networks started from this one.

    Returns:
        `{"network", "sha256", "description"}`, and where there is one `checkpoint`, `run` with its `data` and `initial`
        network, and `sweep`.

    Raises:
        UserError: when a file beside it is broken.
    """
    digest = sha256(local)
    told: dict[str, Any] = {"network": uri, "sha256": digest, "description": networks.describe(local)}
    folder = uri.rpartition("/")[0]
    if exists(join(folder, _SWEEP)):
        best = _trial_of(folder, digest)
        return {**told, **_sweep(folder), **({} if best is None else _made_by(best, depth))}
    if exists(join(folder, _POSITION)):
        told["checkpoint"] = {"uri": folder, **{key: _json(folder, _POSITION).get(key) for key in ("stage", "step")}}
        folder = folder.rpartition("/")[0]
    return {**told, **_run(folder, depth)}


def tags(lineage: dict[str, Any]) -> dict[str, str]:
    """A lineage's tags of a model version."""
    members = list(_all(lineage["members"]))
    data = [entry["digest"] for member in members for entry in member.get("run", {}).get("data", ())]
    data += [digest for member in members for digest in member.get("sweep", {}).get("data_digests", ())]
    described = [member.get("description") for member in lineage["members"]]
    found = {
        "kind": lineage["kind"],
        "sha256": lineage["sha256"],
        "source": lineage["source"],
        "networks": _unique(f"{told['name']}-{told['size']}" for told in described if told),
        "data": _unique(data),
        "runs": _unique(member["run"]["uri"] for member in members if "run" in member),
        "sweeps": _unique(member["sweep"]["uri"] for member in members if "sweep" in member),
        "ensemble": lineage["source"] if lineage["kind"] == "ensemble" else "",
        "mlflow_run": lineage.get("mlflow_run", ""),
        "code": " ".join(f"{key}={value}" for key, value in lineage["code"].items()),
    }
    return {f"vosforge.{key}": redacted(value) for key, value in found.items() if value}


def _network_in(folder: str) -> str | None:
    """The network file of a run's, a sweep's or a checkpoint's folder."""
    if exists(join(folder, _NETWORK)):
        return join(folder, _NETWORK)
    if not exists(join(folder, _TRIALS)):
        return None
    # Best first.
    return next((trial["network"] for trial in _trials(folder) if trial.get("network")), None)


def _network(file: str, source: str, local: Path) -> dict[str, Any]:
    members = [trace(file, local)]
    return {"kind": "network", "sha256": model_digest(local), "source": source, "members": members, "code": versions()}


def _ensemble(folder: Path, uri: str) -> dict[str, Any]:
    whole = model_digest(folder)
    description = _json(str(folder), DESCRIPTION)
    sources = _members_of(folder)
    members = []
    for i, name in enumerate(description["members"]):
        file, source = folder / name, sources[i] if i < len(sources) else {}
        origin = source.get("network")
        # Without the network it was copied from a member is known by its content alone.
        told = trace(origin if _holds(origin, sha256(file)) else join(uri, name), file)
        members.append({**told, **{key: source[key] for key in ("name", "count") if key in source}})
    kind = "ensemble" if len(members) > 1 else "network"
    return {"kind": kind, "sha256": whole, "source": uri, "members": members, "code": versions()}


def _members_of(folder: Path) -> list[dict[str, Any]]:
    """What tuning/ensemble.py wrote about the members it kept; empty for a folder that it did not make."""
    if not (folder / _ENSEMBLE).is_file():
        return []
    report = _json(str(folder), _ENSEMBLE)
    return next((way["members"] for way in report.get("ways", ()) if way.get("way") == report.get("kept")), [])


def _run(folder: str, depth: int) -> dict[str, Any]:
    """The run in a folder, and the sweep that it is a trial of."""
    if not exists(join(folder, _PLAN)):
        return {}
    plan = _json(folder, _PLAN)
    digests = plan.get("data_digests") or [None] * len(plan.get("data", ()))
    data = [{"uri": uri, "digest": digest} for uri, digest in zip(plan.get("data", ()), digests, strict=False)]
    run = {"uri": folder, **{key: plan.get(key) for key in ("name", "network", "size", "parts", "seed")}, "data": data}
    run["stages"] = [stage.get("name") for stage in plan.get("stages", ())]
    initial = plan.get("initial")
    if initial:
        digest = (plan.get("file_digests") or {}).get("initial")
        run["initial"] = {"network": initial, "sha256": digest}
        if depth < _LONGEST_CHAIN and _holds(initial, digest):
            with local_copy(initial) as file:
                run["initial"] = trace(initial, file, depth + 1)
    above = folder.rpartition("/")[0]
    return {"run": run, **(_sweep(above) if exists(join(above, _SWEEP)) else {})}


def _sweep(folder: str) -> dict[str, Any]:
    content = _json(folder, _SWEEP)
    return {"sweep": {"uri": folder, **{key: content.get(key) for key in ("data_digests", "validation", "metric")}}}


def _trial_of(folder: str, digest: str) -> dict[str, Any] | None:
    """The trial whose network a sweep's folder holds a copy of."""
    for trial in _trials(folder) if exists(join(folder, _TRIALS)) else ():
        if _holds(trial.get("network"), digest):
            return trial
    return None


def _holds(file: str | None, digest: str | None) -> bool:
    """Whether there is a file of that content; one that cannot be reached tells nothing."""
    try:
        return bool(file) and exists(file) and sha256(file) == digest
    except (UserError, OSError):
        return False


def _made_by(trial: dict[str, Any], depth: int) -> dict[str, Any]:
    folder = trial["network"].rpartition("/")[0]
    return {"trial": {key: trial.get(key) for key in ("trial", "config", "step")}, **_run(folder, depth)}


def _trials(folder: str) -> list[dict[str, Any]]:
    return [trial for trial in _read(folder, _TRIALS, list) if isinstance(trial, dict)]


def _json(folder: str, name: str) -> dict[str, Any]:
    return _read(folder, name, dict)


def _read(folder: str, name: str, kind: type) -> Any:
    where = join(folder, name)
    try:
        content = json.loads(read_bytes(where))
    except ValueError as error:
        raise UserError(f"{where}: expected JSON, found something else ({error})") from error
    if not isinstance(content, kind):
        raise UserError(f"{where}: expected a JSON {kind.__name__}, found a {type(content).__name__}")
    return content


def _all(members: list[dict[str, Any]]) -> Any:
    """Members, and the networks that they started from."""
    for member in members:
        yield member
        initial = member.get("run", {}).get("initial")
        if initial:
            yield from _all([initial])


def _unique(values: Any) -> str:
    return " ".join(dict.fromkeys(value for value in values if value))
