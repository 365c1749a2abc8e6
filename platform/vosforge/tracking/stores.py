"""Names of the places where runs are kept, and what may be told of them. Kept free of MLflow, which starts slowly."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from vosforge.outputs import submitted
from vosforge.storage import is_local

_LOGGER = logging.getLogger(__name__)

_LONGEST_REASON = 200
# The part of a URI that holds a user's name and password, and parameters of URIs that hold keys.
_SECRETS = re.compile(r"(?<=://)[^/@\s'\"]*@|(?<=[?&])((?:[\w-]*(?:password|secret|token|key)[\w-]*)=)[^&\s'\"]+", re.I)


def default_store(folder: str | Path = "runs") -> str:
    """The tracking URI: `MLFLOW_TRACKING_URI`, else a SQLite file `mlflow.db` in the folder; for `s3://`, in runs/."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    if not is_local(folder) and submitted():
        _LOGGER.warning("MLFLOW_TRACKING_URI is not set: what is tracked goes when this job ends; name a server")
    local = Path(folder if is_local(folder) else "runs").resolve()
    return f"sqlite:///{local / 'mlflow.db'}"


def redacted(text: str) -> str:
    """The text without passwords and keys of URIs in it."""
    return _SECRETS.sub(lambda found: f"{found.group(1) or ''}***{'' if found.group(1) else '@'}", text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without secrets, cut where it becomes a report."""
    return redacted((str(error).splitlines() or [type(error).__name__])[0])[:_LONGEST_REASON]
