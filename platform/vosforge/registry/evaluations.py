"""What was measured of a model version, video by video, kept with it so that later ones can be compared to it."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan, nan
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
        UserError: when it is no such report, or has no such method, or says that the method is another model, or has
            scores outside [0, 1].
    """
    content = _read(report)
    digests = {name: told.get("sha256") for name, told in content.get("models", {}).items()}
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


def compare_kept(known: Sequence[Evaluation], brought: Sequence[Evaluation]) -> tuple[list[Evaluation], list[str]]:
    """Hold evaluations of a version against those that are kept with it.

    Returns:
        Those that say something new, and the names of sets on which they contradict what is kept. The same scores
        again are nothing new, but digests that are missing so far are.
    """
    before, new, contradicted = {evaluation.on: evaluation for evaluation in known}, [], []
    for evaluation in brought:
        old = before.get(evaluation.on)
        if old is None:
            new.append(evaluation)
        elif _contradicts(evaluation, old):
            new.append(evaluation)
            contradicted.append(evaluation.on)
        elif (evaluation.truth and not old.truth) or (evaluation.model and not old.model):
            new.append(replace(evaluation, truth=evaluation.truth or old.truth, model=evaluation.model or old.model))
    return new, contradicted


def keep(client: MlflowClient, run: str, evaluations: Sequence[Evaluation]) -> None:
    """Log evaluations to a run as artefacts, and their averages as metrics; a newer one of a set replaces the old."""
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
        for evaluation in evaluations:
            # First, as it is by the file that evaluations are known to be kept.
            for name, value in evaluation.metrics.items():
                if not isnan(value):
                    client.log_metric(run, name, value)
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


def keep_report(client: MlflowClient, run: str, report: Path) -> None:
    """Log a report's file as an artefact of a run, beside one of the same name that has another content."""
    content, name = report.read_bytes(), report.name
    there = {file.path for file in client.list_artifacts(run)}
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
        if name in there and Path(client.download_artifacts(run, name, folder)).read_bytes() != content:
            name = f"{report.stem}-{hashlib.sha256(content).hexdigest()[:8]}{report.suffix}"
        if name not in there:
            copy = Path(folder) / "new" / name
            copy.parent.mkdir()
            copy.write_bytes(content)
            client.log_artifact(run, str(copy))


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{report}: expected JSON of jobs/evaluate.py, found something else ({error})") from error
    if not _is_report(content):
        raise UserError(f"{report}: expected a report of jobs/evaluate.py --json, found other JSON")
    return content


def _is_report(content: Any) -> bool:
    """Whether JSON is built like a report, down to what a model says of each set."""
    if not isinstance(content, dict) or "sets" not in content or not isinstance(content.get("protocol"), str):
        return False
    parts = {name: content.get(name, {}) for name in ("sets", "models", "truths", "settings")}
    if not all(isinstance(part, dict) for part in parts.values()):
        return False
    told = [*parts["models"].values(), *parts["truths"].values()]
    if not all(isinstance(entry, dict) for entry in (*told, *parts["sets"].values())):
        return False
    return all(isinstance(entry.get(name), str | None) for entry in told for name in ("sha256", "digest"))


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
    _check_range(f"{report}: {method} on {on}", scores)
    usual = json.loads(json.dumps(asdict(AS_SAVED)))
    said = {**content.get("settings", {}), "short_side": content.get("short_side")}
    how = {name: value for name, value in said.items() if value != usual.get(name)}
    truth = content.get("truths", {}).get(on, {}).get("digest")
    return Evaluation(on, method, content["protocol"], scores, how, truth, model)


def _check_range(called: str, scores: dict[str, Scores]) -> None:
    for video, objects in scores.items():
        for k, told in objects.items():
            for measure, value in told.items():
                # NaN is neither below nor above.
                if value["mean"] < 0 or value["mean"] > 1:
                    raise UserError(
                        f"{called}, video {video}, object {k}, {measure}: expected 0 to 1, found {value['mean']:g}; "
                        "evaluate again with jobs/evaluate.py"
                    )


def _contradicts(new: Evaluation, old: Evaluation) -> bool:
    pairs = ((new.truth, old.truth), (new.model, old.model))
    return _as_kept(new) != _as_kept(old) or any(here and there and here != there for here, there in pairs)


def _as_kept(evaluation: Evaluation) -> str:
    """What was measured and how, in the letters in which it is kept."""
    told = {"protocol": evaluation.protocol, "how": evaluation.how, "scores": _scores(evaluation.scores)}
    return json.dumps(without_nan(told), sort_keys=True)


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
