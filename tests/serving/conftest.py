from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients import InProcess
from fastapi.testclient import TestClient

from vosforge.propagation.model import BUNDLED
from vosforge.serving.access import Access
from vosforge.serving.api import make_app
from vosforge.serving.journal import Journal
from vosforge.serving.limits import Limits
from vosforge.serving.models import Shelf, shelf
from vosforge.serving.store import SessionStore


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def bundled() -> Shelf:
    return shelf(str(BUNDLED), "")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_store(tmp_path: Path, bundled: Shelf, clock: Clock) -> Iterator[Callable[..., SessionStore]]:
    """Makes stores on one journal, as processes that follow one another would."""
    stores = []

    def make(models: Shelf = bundled, slot: int = 0, batch: int = 8, **limits: Any) -> SessionStore:
        journal = Journal(str(tmp_path / "journal"))
        stores.append(SessionStore(models, journal, Limits(**limits), slot, batch, clock))
        return stores[-1]

    yield make
    for store in stores:
        store.stop()


@pytest.fixture
def connect(make_store):
    def connect(token: str | None = None, **limits: Any) -> TestClient:
        app = make_app(InProcess(make_store(**limits)), Limits(**limits), Access(token))
        return TestClient(app, raise_server_exceptions=False)

    return connect
