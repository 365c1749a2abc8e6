from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from vosforge import cluster


@pytest.fixture(scope="session", autouse=True)
def ray_session() -> Iterator[None]:
    """One local Ray cluster for all tests of this folder."""
    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    cluster.connect()
    yield
    ray.shutdown()
    patch.undo()
