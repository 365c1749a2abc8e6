"""Where a program's results go: to storage that is still there when the program has ended."""

from __future__ import annotations

import os
from pathlib import Path

from vosforge.errors import UserError
from vosforge.storage import absolute

# Ray sets this for the driver of a submitted job.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def submitted() -> bool:
    """Whether this program is a submitted job, whose own folder goes when it ends."""
    return _SUBMITTED in os.environ


def lasting(uri: str | Path, flag: str) -> str:
    """The URI made absolute; in a submitted job a relative one would vanish with the job's own folder.

    Raises:
        UserError: for a relative path in a submitted job, naming the flag.
    """
    if submitted() and "://" not in str(uri) and not os.path.isabs(uri):
        raise UserError(f"{flag} {uri}: a submitted job needs an absolute path or s3:// URI, on storage that lasts")
    return absolute(uri)


def lasting_file(path: Path, flag: str) -> Path:
    """A path that is written by what knows local files alone, made absolute.

    Raises:
        UserError: for an `s3://` URI, which would become a folder of that name, and as `lasting`.
    """
    if str(path).startswith("s3:/"):
        raise UserError(f"{flag} {path}: expected a path, found an s3:// URI; copy it there afterwards")
    return Path(lasting(path, flag))
