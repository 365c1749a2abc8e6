from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan, claim_run, read_plan


def test_run_name_of_another_plan_is_refused_by_field(make_plan, tmp_path):
    plan = make_plan()
    claim_run(str(tmp_path), plan, "ray")
    claim_run(str(tmp_path), plan, "ray")
    with pytest.raises(UserError, match=r"run run in .* was started with another seed"):
        claim_run(str(tmp_path), replace(plan, seed=1), "ray")


def test_stage_without_data_of_its_kind_is_refused(make_plan):
    plan = make_plan()
    starved = replace(plan, data=plan.data[1:])
    with pytest.raises(UserError, match=r"stage bl30k needs shards of kind bl30k .*\(videos\)"):
        starved.samplers()


def test_digest_follows_everything_but_the_name(make_plan):
    plan = make_plan()
    assert plan.digest == replace(plan, name="other").digest
    assert plan.digest != replace(plan, seed=1).digest


@pytest.mark.parametrize(
    ("network", "size", "names", "message"),
    [
        ("stm", "nano", ["video"], "expected some of images, bl30k, videos, found 'video'"),
        ("stm", "nano", [], "found none"),
        (
            "emm",
            "nano",
            ["images"],
            "unknown network 'emm'; valid: camn, cfbi\\+, emn, kmn, mivos, qpm, skn, stcn, stm, stm-interactive",
        ),
        ("stm", "huge", ["images"], "unknown size 'huge'; valid: nano, small, paper"),
    ],
)
def test_unknown_stages_are_refused_with_the_known(network, size, names, message):
    with pytest.raises(UserError, match=message):
        curricula.stages(network, size, names)


def test_learning_rate_warms_up_and_decays_as_a_function_of_the_step():
    stage = replace(curricula.stages("stm", "nano", ["images"])[0], steps=100, warm_up=10, power=0.9)
    assert stage.rate(0) == pytest.approx(stage.learning_rate / 10)
    assert stage.rate(50) == pytest.approx(stage.learning_rate * 0.5**0.9)
    assert all(stage.rate(step) > stage.rate(step + 1) for step in range(10, 99))


def test_paper_stages_keep_a_constant_rate():
    stage = curricula.stages("stm", "paper", ["images"])[0]
    assert stage.rate(0) == stage.rate(stage.steps - 1) == 1e-5


@pytest.mark.parametrize(("network", "size"), [(n, s) for n in curricula.PAPER for s in ("nano", "paper")])
def test_plan_of_a_run_is_read_back_from_its_directory(network, size, tmp_path, build_shards):
    clip = Clip("a", np.zeros((2, 32, 32, 3), np.uint8), np.ones((2, 32, 32), np.uint8))
    uri = build_shards(tmp_path / "shards", [clip]).uri
    stages = curricula.stages(network, size, ["images", "bl30k", "videos"])
    plan = TrainingPlan("run", network, size, stages, [uri], parts={"top_k": 20} if network == "stm" else {})
    claim_run(str(tmp_path / "runs"), plan, "local")
    found, harness = read_plan(str(tmp_path / "runs" / "run"))
    assert found == plan
    assert found.digest == plan.digest
    assert harness == "local"


def test_directories_without_a_run_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"nothing: no run, plan.json is missing"):
        read_plan(str(tmp_path / "nothing"))
    (tmp_path / "plan.json").write_text('{"name": "a"}')
    with pytest.raises(UserError, match=r"plan.json: expected the plan of a run of this version"):
        read_plan(str(tmp_path))
