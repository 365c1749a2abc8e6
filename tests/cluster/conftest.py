from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import ROOT, Head


@contextlib.contextmanager
def started(folder: Path, variables: dict[str, str]) -> Iterator[Head]:
    """A head that ends with the block."""
    if shutil.which("pkill") is None:
        pytest.skip("pkill is not installed (Debian: procps)")
    running = Head(folder, variables)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started(tmp_path_factory.mktemp("head"), {}) as running:
        yield running


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A head whose Python has vosforge as `pip install .` makes it, and the folder where that lies."""
    sources, place = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    # setuptools builds beside what it is given.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "platform", sources / "platform", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", place]
    subprocess.run([*map(str, pip), str(sources)], check=True, timeout=300)
    with started(tmp_path_factory.mktemp("head"), {"PYTHONPATH": str(place)}) as running:
        yield running, place
