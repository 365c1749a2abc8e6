from __future__ import annotations

import pytest

from vosforge import console


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    return clock


def test_time_left_of_a_resumed_run_follows_from_its_own_steps(clock, capsys):
    bar = console.Progress(100, "run", "steps")
    # Starting up says nothing about speed either.
    clock.now += 500
    bar.resume(60)
    bar.update(60)
    clock.now += 20
    bar.update(70)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "run: 60/100 steps, 0.0/s, starting"
    assert second == "run: 70/100 steps, 0.5/s, 60 s left"


def test_time_left_soon_follows_a_stage_that_is_slower(clock, capsys):
    bar = console.Progress(10_000, "run", "steps")
    for done in range(0, 5000, 100):
        clock.now += 10
        bar.update(done)
    for done in range(5000, 5100):
        clock.now += 10
        bar.update(done)
    assert "0.1/s, 13 h 37 min left" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "told"), [(40, "40 s"), (720, "12 min"), (18_600, "5 h 10 min"), (273_700, "3 d 4 h")]
)
def test_time_left_is_said_as_people_say_it(clock, capsys, seconds, told):
    bar = console.Progress(seconds + 20, "run", "steps")
    clock.now += 20
    bar.update(20)
    assert f"{told} left" in capsys.readouterr().out
