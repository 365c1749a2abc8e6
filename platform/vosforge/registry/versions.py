"""Model versions in MLflow: register one, compare it to the champion, load it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vosforge.errors import UserError
from vosforge.propagation import Model
from vosforge.registry import lineage as lineages
from vosforge.registry import packing
from vosforge.registry.champions import CHALLENGER, CHAMPION, champion_of, check_alias, crown, note, note_replaced
from vosforge.registry.evaluations import Evaluation, chosen, compare_kept, keep, keep_report, kept
from vosforge.registry.promotion import Decision, decide
from vosforge.registry.uris import name_and_version
from vosforge.storage import local_copy
from vosforge.tracking import first_line, redacted
from vosforge.tracking.clients import connect, experiment


@dataclass(frozen=True)
class Candidacy:
    """What a version brings to become champion.

    Attributes:
        evaluations: of it, one a set; they are kept with the version.
        on: the set on which it is compared with the champion; None where there is one evaluation.
        force: why it becomes champion whatever is measured, and may replace evaluations that are kept with it; None
            lets the comparison decide, and keeps what is there.
    """

    evaluations: Sequence[Evaluation] = ()
    on: str | None = None
    force: str | None = None


NOTHING = Candidacy()


def register(
    folder: str | Path,
    name: str,
    store: str,
    artefacts: str | Path,
    alias: str | None = None,
    metrics: dict[str, float] | None = None,
    files: list[Path] | None = None,
    tags: dict[str, str] | None = None,
    experiment_name: str = "vosforge",
    candidacy: Candidacy = NOTHING,
    lineage: dict[str, Any] | None = None,
) -> str:
    """Log a model to MLflow as a new version of a registered model, with the alias "challenger".

    Args:
        folder: a network's file, or what `save_model` wrote.
        name: of the registered model.
        store: tracking URI.
        artefacts: local folder for artefacts of a local store.
        alias: moved to the new version; "champion" only as `decide` allows.
        metrics: logged with it; names must suit MLflow ("JF_mean", not "J&F").
        files: reports kept beside it.
        tags: of the version.
        experiment_name: of the experiment.
        candidacy: the version's evaluations, and how it becomes champion.
        lineage: what it was made of, as `lineage.find` gives it; by default what the files beside it tell.

    Returns:
        The version's URI, `models:/<name>/<version>`.

    Raises:
        UserError: when the folder holds no model, the alias cannot be, the store does not answer, or a comparison with
            the champion is asked for and cannot be made; nothing is registered then. Also when the comparison speaks
            against the version, which then is registered, and "challenger".
    """
    check_alias(alias)
    Model.load(folder)
    lineage = lineage or lineages.of_model(Path(folder))
    client = connect(store)
    with _answering(store, f"{name} could not be registered"):
        identifier = experiment(client, experiment_name, artefacts)
        decision = _decide(client, name, candidacy) if alias == CHAMPION else None
        run = _log(folder, name, store, identifier, metrics or {}, files or [], lineage, candidacy.evaluations)
        told = {**lineages.tags(lineage), **_evaluation_tags(candidacy.evaluations), **(tags or {})}
        # The version exists only with all of this.
        made = mlflow.register_model(run, name, tags=told)
        version = str(made.version)
        client.set_registered_model_alias(name, CHALLENGER, version)
        if alias and decision is None:
            client.set_registered_model_alias(name, alias, version)
        if decision is not None:
            _settle(client, name, version, decision)
    return f"models:/{name}/{version}"


def promote(
    uri: str, store: str, alias: str | None, candidacy: Candidacy, report: Path | None = None
) -> Decision | None:
    """Give a registered version evaluations, and an alias; "champion" only as `decide` allows.

    Args:
        uri: `models:/<name>/<version>` or `models:/<name>@<alias>`.
        store: tracking URI.
        alias: moved to the version; None moves none.
        candidacy: evaluations to keep with it, beside those that it has, and how it becomes champion.
        report: kept beside it.

    Returns:
        What was decided; None where nothing was to be.

    Raises:
        UserError: when there is no such version, it has another evaluation on one of these sets and nothing is forced,
            or as `register`.
    """
    check_alias(alias)
    client = connect(store)
    name, version = name_and_version(uri, store)
    with _answering(store, f"{uri} could not be changed"):
        found = client.get_model_version(name, version)
        if candidacy.evaluations:
            _add(client, name, version, found.run_id, candidacy)
        if report is not None:
            keep_report(client, found.run_id, report)
        if alias == CHAMPION:
            decision = _decide(client, name, candidacy, version)
            _settle(client, name, version, decision)
            return decision
        if alias:
            client.set_registered_model_alias(name, alias, version)
    return None


def load_model(uri: str, store: str | None = None) -> Model:
    """A model from a file, a folder, or MLflow.

    Args:
        uri: a `.safetensors` file or a folder of `save_model`, here or on `s3://`, or `models:/name@alias`,
            `models:/name/version`, `runs:/...`.
        store: tracking URI for MLflow's.

    Raises:
        UserError: when there is no such model.
    """
    if not uri.startswith(("models:/", "runs:/")):
        with local_copy(uri) as path:
            return Model.load(path)
    if store:
        connect(store)
        mlflow.set_tracking_uri(store)
    try:
        with _quiet():
            return mlflow.pyfunc.load_model(uri).unwrap_python_model().model
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri}: not found in MLflow at {redacted(mlflow.get_tracking_uri())} ({first_line(error)}); "
            "set MLFLOW_TRACKING_URI to the store that has it"
        ) from error


def _add(client: MlflowClient, name: str, version: str, run: str, candidacy: Candidacy) -> None:
    """Keep further evaluations with a version; such as contradict those that it has only where that is forced."""
    known = kept(client, run)
    new, contradicted = compare_kept(known, candidacy.evaluations)
    if contradicted:
        if candidacy.force is None:
            uri = f"models:/{name}/{version}"
            raise UserError(
                f"{uri}: another evaluation on {', '.join(contradicted)} is kept with it; to replace that: "
                f"jobs/register.py --model {uri} --name {name} --report FILE --force REASON"
            )
        note_replaced(client, name, version, contradicted, candidacy.force)
    keep(client, run, new)
    for key, value in _evaluation_tags([*known, *new]).items():
        client.set_model_version_tag(name, version, key, value)


def _decide(client: MlflowClient, name: str, candidacy: Candidacy, version: str | None = None) -> Decision:
    """Compare a version, or one that is not registered yet, with the champion."""
    champion = champion_of(client, name)
    if champion is None:
        return decide(None, None, None, candidacy.force)
    if champion == version:
        return Decision(True, f"version {version} is champion already", champion)
    brought = candidacy.evaluations if version is None else kept(client, client.get_model_version(name, version).run_id)
    ours = chosen(list(brought), candidacy.on)
    before = kept(client, client.get_model_version(name, champion).run_id)
    theirs = next((e for e in before if ours and e.on == ours.on), None)
    return decide(champion, ours, theirs, candidacy.force)


def _settle(client: MlflowClient, name: str, version: str, decision: Decision) -> None:
    """Do as was decided; where it was decided against the version, say so."""
    if decision.allowed:
        crown(client, name, version, decision)
        return
    note(client, name, version, decision)
    raise UserError(
        f"models:/{name}/{version} is registered, but version {decision.champion} stays champion: {decision.reason}; "
        f"to overrule: jobs/register.py --model models:/{name}/{version} --name {name} --alias champion --force REASON"
    )


def _log(
    folder: str | Path,
    name: str,
    store: str,
    identifier: str,
    metrics: dict[str, float],
    files: list[Path],
    lineage: dict[str, Any],
    evaluations: Sequence[Evaluation],
) -> str:
    """Log everything that a version consists of to a run; the model's URI."""
    mlflow.set_tracking_uri(store)
    with mlflow.start_run(experiment_id=identifier, run_name=f"register {name}") as run:
        mlflow.log_metrics(metrics)
        for file in files:
            mlflow.log_artifact(str(file))
        mlflow.log_text(redacted(json.dumps(lineage, indent=1)), lineages.LINEAGE_FILE)
        keep(MlflowClient(store), run.info.run_id, evaluations)
        return packing.log(Path(folder), name).model_uri


def _evaluation_tags(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    return {"vosforge.evaluated_on": " ".join(dict.fromkeys(e.on for e in evaluations))} if evaluations else {}


@contextlib.contextmanager
def _answering(store: str, failed: str) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow at {redacted(store)}: {failed}: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow's bars and hints off the terminal; its errors still raise."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    previous = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if previous is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = previous
