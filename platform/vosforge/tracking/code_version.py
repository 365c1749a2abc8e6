"""Which code trains: versions of packages, and the commit of a checkout."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import vosforge

_SECONDS = 10


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on most, and the commit where there is one."""
    found = {"vosforge": vosforge.__version__, "python": platform.python_version()}
    for package in ("torch", "ray"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    checked_out = commit()
    return found if checked_out is None else {**found, "commit": checked_out}


def commit(folder: Path | None = None) -> str | None:
    """The git commit of the checkout that this package is in, with "-dirty" where tracked files are changed.

    Args:
        folder: of the package; this one's when left out.

    Returns:
        40 hex digits and perhaps "-dirty"; None outside a checkout, or where git is missing.
    """
    folder = folder or Path(vosforge.__file__).parent
    # An installed package may lie inside another project's checkout.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
