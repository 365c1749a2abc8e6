from __future__ import annotations

import pytest
from ray import tune

from vosforge.errors import UserError
from vosforge.search.searchers import Sieve, SiftedOptuna, listed, noted, points
from vosforge.search.sweeps import reason
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan

SPACE = {
    "reader": tune.choice(["dense", "topk"]),
    "top_k": tune.choice([20, 50]),
    "quality": tune.choice(["none", "shared"]),
    "memory_encoder": tune.choice(["key-value", "product"]),
}


@pytest.fixture
def sieve() -> Sieve:
    return Sieve(TrainingPlan("base", "stm", "nano", curricula.stages("stm", "nano", ["bl30k"]), []))


@pytest.mark.parametrize("search", ["random", "grid"])
def test_every_configuration_that_can_run_is_listed_once(sieve, search):
    """Three readers (dense, and top-k with two numbers), each in three pairs of memory and quality: a fourth fails."""
    found = listed(sieve, SPACE, search, 20, seed=1)
    assert len(found) == 9
    assert {config.get("top_k") for config in found if config["reader"] == "dense"} == {None}
    reasons = {reason for _, reason in sieve.refused}
    assert "tried before" in reasons
    assert any("needs a memory encoder" in reason for reason in reasons)
    assert listed(Sieve(sieve.plan), SPACE, search, 4, seed=1) == found[:4]


def test_optuna_is_asked_again_for_what_cannot_run_or_was_tried(sieve):
    space = {**SPACE, "aspp": "decoder", "aspp_dilations": tune.choice([(1, 2), (1, 3)])}
    searcher = SiftedOptuna(sieve, space, "JF_mean", seed=0)
    found = [searcher.suggest(f"t{i}") for i in range(18)]
    assert len({str(sorted(config["choices"].items())) for config in found}) == 18
    assert {config["choices"]["aspp_dilations"] for config in found} == {(1, 2), (1, 3)}
    assert sieve.refused
    assert searcher.suggest("one more") == "FINISHED"


def test_what_was_refused_is_told_once_when_a_sweep_is_restored(sieve, tmp_path):
    notes = str(tmp_path / "refused.jsonl")
    assert noted(notes) == []
    for _ in range(2):
        again = Sieve(sieve.plan, notes)
        listed(again, SPACE, "grid", 20, seed=1)
    assert sorted(reason for _, reason in noted(notes)) == sorted({str(r): r[1] for r in again.refused}.values())


def test_a_grid_takes_the_ends_and_the_middle_of_ranges():
    assert points(tune.loguniform(1, 100)) == pytest.approx([1, 10, 100])
    assert points(tune.uniform(0, 1)) == [0, 0.5, 1]
    assert points(tune.randint(1, 4)) == [1, 2, 3]
    assert points("dense") == ["dense"]
    with pytest.raises(UserError, match="a grid takes choices and ranges with two ends"):
        points(tune.randn())


def test_why_a_trial_failed_is_the_line_that_was_raised():
    died = 'Failure # 1\n  File "a.py", line 3, in work\n    run()\nOutOfMemoryError: 10 workers were killed\nhelp\n'
    assert reason(RuntimeError(died)) == "OutOfMemoryError: 10 workers were killed"
    assert reason(RuntimeError("The actor died unexpectedly.\nIts id is 1.")) == "The actor died unexpectedly."
    refused = 'Traceback\n  File "a.py", line 3, in work\n    run()\n    ^^^^^\nvosforge.errors.UserError: run a: NaN'
    assert reason(RuntimeError(refused)) == "run a: NaN"
