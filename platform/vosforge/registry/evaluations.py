"""What was measured of a model version, video by video, kept with it so that later ones can be compared to it."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from vosforge.errors import UserError
from vosforge.evaluation.protocols import Scores
from vosforge.evaluation.report import summarise, without_nan
from vosforge.settings import AS_SAVED
from vosforge.storage import read_bytes

FOLDER = "evaluations"
# What jobs/evaluate.py scores beside models.
_BASELINES = ("copy first mask", "DIS flow")


@dataclass(frozen=True)
class Evaluation:
    """How one model did on one set.

    Attributes:
        on: name of the set.
        method: the model's name in the report.
        protocol: under which it was scored.
        scores: video -> object id -> "J" and "F" -> `{"mean", ...}`, NaN where no frame counts; means alone are kept.
        how: settings other than the model's own, by their names in `Settings`, and "short_side".
        truth: digest of the set's shards; None for other sets, and reports that do not tell.
        model: digest of the model, as `model_digest`; None where masks were scored, and for reports that do not tell.
    """

    on: str
    method: str
    protocol: str
    scores: dict[str, Scores]
    how: dict[str, Any] = field(default_factory=dict)
    truth: str | None = None
    model: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The averages over objects, under names that MLflow accepts."""
        found = summarise(self.scores)
        return {
            f"{_plain(self.on)}/{short}": found[key]
            for key, short in (("J", "J_mean"), ("F", "F_mean"), ("J&F", "JF_mean"))
        }


def read_report(report: str | Path, method: str | None = None, model: str | None = None) -> list[Evaluation]:
    """A model's part of a report that `jobs/evaluate.py --json` wrote, one evaluation a set.

    Args:
        report: path or URI.
        method: the model's name in it; by default the one of that digest, else the only one that is no baseline.
        model: digest of the model.

    Returns:
        Empty when the report does not tell which method is the model.

    Raises:
        UserError: when it is no such report, or has no such method, or says that the method is another model.
    """
    content = _read(report)
    digests = {name: told["sha256"] for name, told in content.get("models", {}).items()}
    names = sorted({name for methods in content["sets"].values() for name in methods})
    if method is None:
        method = _found(names, digests, model)
        if method is None:
            return []
    if method not in names:
        raise UserError(f"{report}: no method {method!r}; there are: {', '.join(names)}")
    known = digests.get(method)
    if model and known and model != known:
        raise UserError(
            f"{report}: its {method} is another model ({known[:12]}, this one is {model[:12]}); evaluate this one"
        )
    return [_evaluation(report, content, on, method, known) for on, all_ in content["sets"].items() if method in all_]


def chosen(evaluations: list[Evaluation], on: str | None) -> Evaluation | None:
    """The evaluation on a set; the only one where no set is named, None where there is none at all.

    Raises:
        UserError: when there is none on that set, or several and none is named.
    """
    names = ", ".join(evaluation.on for evaluation in evaluations)
    if on is None:
        if len(evaluations) > 1:
            raise UserError(f"--set: expected one of {names}; name the set to compare with the champion on")
        return evaluations[0] if evaluations else None
    for evaluation in evaluations:
        if evaluation.on == on:
            return evaluation
    raise UserError(f"--set {on}: expected a set that the model was evaluated on, found {names or 'none'}")


def keep(client: MlflowClient, run: str, evaluations: list[Evaluation]) -> None:
    """Log evaluations as artefacts of a run; a newer one of the same set takes the place of the old one."""
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
        for evaluation in evaluations:
            path = Path(folder) / _file_name(evaluation.on)
            means = replace(evaluation, scores=_scores(evaluation.scores))
            path.write_text(json.dumps(without_nan(asdict(means)), indent=1))
            client.log_artifact(run, str(path), FOLDER)


def kept(client: MlflowClient, run: str) -> list[Evaluation]:
    """The evaluations that `keep` logged to a run."""
    found = []
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
        for file in client.list_artifacts(run, FOLDER):
            content = json.loads(Path(client.download_artifacts(run, file.path, folder)).read_text())
            found.append(Evaluation(**{**content, "scores": _scores(content["scores"])}))
    return found


def _file_name(on: str) -> str:
    """Of letters that every store of artefacts takes, and another for each set."""
    plain = _plain(on)
    return f"{plain}.json" if plain == on else f"{plain}-{hashlib.sha256(on.encode()).hexdigest()[:8]}.json"


def _plain(on: str) -> str:
    """The set's name with letters that MLflow takes in names of metrics and files."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", on)


def _read(report: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(report))
    except ValueError as error:
        raise UserError(f"{report}: expected JSON of jobs/evaluate.py, found something else ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("sets"), dict) or "protocol" not in content:
        raise UserError(f"{report}: expected a report of jobs/evaluate.py --json, found other JSON")
    return content


def _found(names: list[str], digests: dict[str, str | None], model: str | None) -> str | None:
    same = [name for name in names if model and digests.get(name) == model]
    own = same or [name for name in names if name not in _BASELINES]
    return own[0] if len(own) == 1 else None


def _evaluation(report: str | Path, content: dict[str, Any], on: str, method: str, model: str | None) -> Evaluation:
    result = content["sets"][on][method]
    try:
        scores = _scores(result["scores"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{report}: {method} on {on}: expected scores of every video, found none; evaluate under another --protocol"
        ) from error
    usual = json.loads(json.dumps(asdict(AS_SAVED)))
    said = {**content.get("settings", {}), "short_side": content.get("short_side")}
    how = {name: value for name, value in said.items() if value != usual.get(name)}
    truth = content.get("truths", {}).get(on, {}).get("digest")
    return Evaluation(on, method, content["protocol"], scores, how, truth, model)


def _scores(content: dict[str, Any]) -> dict[str, Scores]:
    """Means alone, with NaN for what JSON calls null and ids as numbers."""
    return {
        video: {
            int(k): {measure: {"mean": _number(told[measure]["mean"])} for measure in "JF"} for k, told in of.items()
        }
        for video, of in content.items()
    }


def _number(value: float | None) -> float:
    return nan if value is None else float(value)
