from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def formulas() -> ModuleType:
    """The formulas of the golden inputs."""
    spec = importlib.util.spec_from_file_location("golden_formulas", GOLDEN / "formulas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Reads one JSON file of golden answers."""
    return lambda name: json.loads((GOLDEN / name).read_text())
