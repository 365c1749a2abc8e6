from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from heads import Head


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    if shutil.which("pkill") is None:
        pytest.skip("pkill is not installed (Debian: procps)")
    running = Head(tmp_path_factory.mktemp("head"))
    yield running
    running.stop()
