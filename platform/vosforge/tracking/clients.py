"""Clients of MLflow's tracking stores."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from vosforge.errors import UserError
from vosforge.storage import is_local, join
from vosforge.tracking.stores import first_line, redacted

# Without it MLflow's page opens an experiment as one of language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_RETRIES = "3"
_RUN_ID = re.compile("[0-9a-f]{32}")


def connect(store: str) -> MlflowClient:
    """A client of the store, which gives a server that is away up after seconds; MLflow's default is minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(store)


def experiment(client: MlflowClient, name: str, artefacts: str | Path) -> str:
    """Id of the experiment of that name, made when there is none.

    Args:
        client: of the store.
        name: of the experiment.
        artefacts: folder or `s3://` URI for artefacts, used when the store is a local file; a server decides itself.

    Raises:
        UserError: when the store does not answer.
    """
    try:
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        location = None
        if client.tracking_uri.startswith("sqlite:"):
            local = is_local(artefacts)
            location = (Path(artefacts).resolve() / "mlartifacts").as_uri() if local else join(artefacts, "mlartifacts")
        return client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow at {redacted(client.tracking_uri)} does not answer: {first_line(error)}") from error


def network_of(source: str, store: str) -> str:
    """Where the network, sweep or ensemble of an MLflow run is; anything that is no run's id is returned as it is.

    Args:
        source: id of a run, 32 hex digits, or a path.
        store: tracking URI.

    Raises:
        UserError: when the store has no such run, or the run has no network.
    """
    if not _RUN_ID.fullmatch(source):
        return source
    try:
        tags = connect(store).get_run(source).data.tags
    except (MlflowException, OSError) as error:
        raise UserError(f"run {source}: not found in MLflow at {redacted(store)} ({first_line(error)})") from error
    found = tags.get("vosforge.sweep") or tags.get("vosforge.network") or tags.get("vosforge.model")
    if found is None:
        raise UserError(f"run {source}: it has no network yet; name a finished run of training, a sweep or an ensemble")
    return found
