"""What URIs of the registry stand for: a version, and the model that it was registered as."""

from __future__ import annotations

import re

from mlflow.exceptions import MlflowException

from vosforge.errors import UserError
from vosforge.propagation.model import model_digest
from vosforge.storage import local_copy
from vosforge.tracking import first_line, redacted
from vosforge.tracking.clients import connect

_DIGEST_TAG = "vosforge.sha256"


def version_uri(uri: str, store: str) -> str:
    """`models:/<name>/<version>` of a `models:/<name>@<alias>`, which may move later.

    Raises:
        UserError: when there is no such alias, or it is no such URI.
    """
    parts = re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri)
    if not parts:
        raise UserError(f"{uri}: expected models:/NAME@ALIAS with one @")
    name, alias = parts.groups()
    try:
        return f"models:/{name}/{connect(store).get_model_version_by_alias(name, alias).version}"
    except MlflowException as error:
        raise UserError(f"{uri}: not found in MLflow at {redacted(store)} ({first_line(error)})") from error


def digest_of(uri: str, store: str) -> str | None:
    """Digest of a model, as `model_digest`; of a registered version as it was when it was registered.

    Args:
        uri: as in `load_model`.
        store: tracking URI for MLflow's.

    Returns:
        None for versions that were not registered by vosforge.

    Raises:
        UserError: when there is no such model.
    """
    if uri.startswith("runs:/"):
        return None
    if not uri.startswith("models:/"):
        with local_copy(uri) as path:
            return model_digest(path)
    name, version = name_and_version(uri, store)
    try:
        return connect(store).get_model_version(name, version).tags.get(_DIGEST_TAG)
    except MlflowException as error:
        raise UserError(f"{uri}: not found in MLflow at {redacted(store)} ({first_line(error)})") from error


def name_and_version(uri: str, store: str) -> tuple[str, str]:
    """Name and version's number of `models:/<name>/<version>` or `models:/<name>@<alias>`.

    Raises:
        UserError: when there is no such alias, or it is no such URI.
    """
    found = re.fullmatch(r"models:/([^/]+)/(\d+)", uri if "@" not in uri else version_uri(uri, store))
    if not found:
        raise UserError(f"{uri}: expected models:/NAME/VERSION with the version's number, or models:/NAME@ALIAS")
    return found[1], found[2]
