"""Model versions in MLflow: register one, give it an alias, load it."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

import vosforge
from vosforge.data.image_files import encode_frame, encode_mask
from vosforge.errors import UserError
from vosforge.propagation import Model
from vosforge.storage import local_path
from vosforge.tracking import connect, experiment, first_line

_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "frame"), ColSpec(DataType.string, "mask")]),
    outputs=Schema([ColSpec(DataType.string, "mask")]),
)
# What `Model` needs to run; training and tracking libraries stay out of a deployed model.
_REQUIREMENTS = ("mlflow", "numpy", "opencv-python", "pandas", "pillow", "pyarrow", "safetensors", "timm", "torch")


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
) -> str:
    """Log a model to MLflow as a new version of a registered model.

    Args:
        folder: what `save_model` wrote.
        name: of the registered model.
        store: tracking URI.
        artefacts: local folder for artefacts of a local store.
        alias: moved to the new version, e.g. "champion".
        metrics: logged with it; names must suit MLflow ("JF_mean", not "J&F").
        files: reports kept beside it.
        tags: of the version.
        experiment_name: of the experiment.

    Returns:
        The version's URI, `models:/<name>/<version>`.

    Raises:
        UserError: when the folder holds no model or the store does not answer.
    """
    Model.load(folder)
    client = connect(store)
    identifier = experiment(client, experiment_name, artefacts)
    mlflow.set_tracking_uri(store)
    try:
        with mlflow.start_run(experiment_id=identifier, run_name=f"register {name}"), _quiet():
            mlflow.log_metrics(metrics or {})
            for file in files or []:
                mlflow.log_artifact(str(file))
            info = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={"model": str(Path(folder).absolute())},
                code_paths=[str(Path(vosforge.__file__).parent)],
                pip_requirements=_requirements(),
                signature=_SIGNATURE,
                input_example=_example(),
                registered_model_name=name,
            )
        version = str(info.registered_model_version)
        for key, value in (tags or {}).items():
            client.set_model_version_tag(name, version, key, value)
        if alias:
            client.set_registered_model_alias(name, alias, version)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow at {store}: {name} could not be registered: {first_line(error)}") from error
    return f"models:/{name}/{version}"


def load_model(uri: str, store: str | None = None) -> Model:
    """A model from a file, a folder, or MLflow.

    Args:
        uri: a `.safetensors` file, a folder of `save_model`, or `models:/name@alias`, `models:/name/version`,
            `runs:/...`.
        store: tracking URI for MLflow's.

    Raises:
        UserError: when there is no such model.
    """
    if not uri.startswith(("models:/", "runs:/")):
        return Model.load(local_path(uri))
    if store:
        connect(store)
        mlflow.set_tracking_uri(store)
    try:
        with _quiet():
            return mlflow.pyfunc.load_model(uri).unwrap_python_model().model
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri}: not found in MLflow at {mlflow.get_tracking_uri()} ({first_line(error)}); "
            "set MLFLOW_TRACKING_URI to the store that has it"
        ) from error


def version_uri(uri: str, store: str) -> str:
    """`models:/<name>/<version>` of a `models:/<name>@<alias>`, which may move later.

    Raises:
        UserError: when there is no such alias.
    """
    name, alias = uri.removeprefix("models:/").split("@")
    try:
        return f"models:/{name}/{connect(store).get_model_version_by_alias(name, alias).version}"
    except MlflowException as error:
        raise UserError(f"{uri}: not found in MLflow at {store} ({first_line(error)})") from error


def _requirements() -> list[str]:
    """Third-party packages at the versions that run here; vosforge itself travels as code."""
    found = []
    for package in _REQUIREMENTS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package}=={importlib.metadata.version(package).split('+')[0]}")
    return found


def _example() -> dict[str, list[str]]:
    """Two small frames with one object."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    encoded = base64.b64encode(encode_frame(frame)).decode()
    return {"frame": [encoded, encoded], "mask": [base64.b64encode(encode_mask(mask)).decode(), ""]}


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
