from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from vosforge.ablation.study import Needs, perform
from vosforge.errors import UserError


def settled(value: Any = None, error: Exception | None = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error) if error else future.set_result(value)
    return future


def two_chains() -> Needs:
    """Networks a1 -> a2 and b1, measured alone and together."""
    found = Needs()
    found.runs = {name: name for name in ("a1", "a2", "b1")}
    found.after = {"a1": None, "a2": "a1", "b1": None}
    found.measurements = {name: name for name in ("a", "b", "both")}
    found.members = {"a": ["a2"], "b": ["b1"], "both": ["a2", "b1"]}
    return found


def test_everything_waits_for_what_it_needs():
    begun = []

    def begin(name: str) -> Future[Any]:
        begun.append(name)
        return settled({"of": name})

    scores, failed = perform(two_chains(), begin, begin)
    assert sorted(begun) == ["a", "a1", "a2", "b", "b1", "both"]
    assert begun.index("a1") < begun.index("a2") < begun.index("a")
    assert begun.index("both") > begun.index("b1")
    assert scores == {name: {"of": name} for name in ("a", "b", "both")}
    assert not failed


def test_run_that_fails_costs_only_what_needs_it():
    heard = {}

    def train(name: str) -> Future[Any]:
        return settled(error=UserError("the gradient is nan")) if name == "a1" else settled()

    scores, failed = perform(two_chains(), train, lambda name: settled({"of": name}), heard.__setitem__)
    assert scores == {"b": {"of": "b"}}
    assert set(failed) == {"a1", "a2", "a", "both"}
    assert set(failed.values()) == {"the gradient is nan"}
    assert heard["b"] is None
    assert heard["both"] == "the gradient is nan"
