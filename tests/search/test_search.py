from __future__ import annotations

import json
from pathlib import Path

import pytest

from vosforge.errors import UserError
from vosforge.search.members import best_members
from vosforge.search.trials import check_space, vary
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan


def plan() -> TrainingPlan:
    return TrainingPlan("base", "stm", "nano", curricula.stages("stm", "nano", ["images", "bl30k"]), [])


def test_choices_go_to_parts_and_to_every_stage():
    varied = vary(plan(), {"learning_rate": 0.5, "reader": "topk"}, "trial")
    assert (varied.name, varied.parts) == ("trial", {"reader": "topk"})
    assert [stage.learning_rate for stage in varied.stages] == [0.5, 0.5]


@pytest.mark.parametrize(("space", "found"), [({}, "nothing"), ({"lr": 1}, "'lr'")])
def test_space_that_varies_nothing_or_something_unknown_is_refused(space, found):
    with pytest.raises(UserError, match=rf"expected some of .*learning_rate.*reader.*; found {found}"):
        check_space(plan(), space)


def sweep(folder: Path, scores: dict[str, float | None]) -> Path:
    folder.mkdir()
    trials = [
        {"trial": name, "JF_mean": score, "config": {}, "network": name, "error": None if score else "out of memory"}
        for name, score in scores.items()
    ]
    (folder / "trials.json").write_text(json.dumps(trials))
    return folder


def test_best_trials_of_all_sweeps_become_members(tmp_path):
    sweeps = [sweep(tmp_path / "a", {"a1": 0.4, "a2": None, "a3": 0.7}), sweep(tmp_path / "b", {"b1": 0.6})]
    assert [member.name for member in best_members(sweeps, 2)] == ["a3", "b1"]


def test_sweeps_that_give_no_member_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no finished sweep, trials\.json is missing"):
        best_members([tmp_path], 1)
    with pytest.raises(UserError, match="no trial succeeded"):
        best_members([sweep(tmp_path / "a", {"a1": None})], 1)
    with pytest.raises(UserError, match="at least one member"):
        best_members([tmp_path], 0)
