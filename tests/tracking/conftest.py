from __future__ import annotations

import pytest

from vosforge.tracking import runs


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end when all is sent, however busy the machine is."""
    monkeypatch.setattr(runs, "_CLOSING_SECONDS", 300.0)
