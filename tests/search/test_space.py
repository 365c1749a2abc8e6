from __future__ import annotations

import pytest

from vosforge.errors import UserError
from vosforge.networks import build, save
from vosforge.search.space import check_network, check_space, first_stage, identity, settle, vary
from vosforge.search.warm_starts import leading, shared_stages
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan


def plan(network: str = "stm", **changes: object) -> TrainingPlan:
    return TrainingPlan("base", network, "nano", curricula.stages(network, "nano", ["images", "bl30k"]), [], **changes)


def test_choices_go_to_parts_and_to_the_stages_that_they_name():
    varied = vary(
        plan(),
        {"learning_rate": 0.5, "bl30k.power": 0.1, "last.sampling.crop": 64, "times.warm_up": 2.0, "reader": "topk"},
        "trial",
    )
    assert (varied.name, varied.parts) == ("trial", {"reader": "topk"})
    assert [stage.learning_rate for stage in varied.stages] == [0.5, 0.5]
    assert [stage.power for stage in varied.stages] == [0.9, 0.1]
    assert [stage.sampling.crop for stage in varied.stages] == [(96, 96), (64, 64)]
    assert [stage.warm_up for stage in varied.stages] == [40, 40]


@pytest.mark.parametrize(
    ("space", "found"),
    [
        ({}, "nothing"),
        ({"lr": 1}, "'lr'"),
        ({"sampling": 1}, "'sampling'"),
        ({"loss.harder": 1}, "'loss.harder'"),
        ({"steps": 1}, "'steps'"),
        ({"videos.power": 1}, "'videos.power'"),
    ],
)
def test_space_that_varies_nothing_or_something_unknown_is_refused(space, found):
    with pytest.raises(UserError, match=rf"expected some of .*learning_rate.*memory_every.*reader.*; found {found}"):
        check_space(plan(), space)


def test_choices_without_effect_are_dropped_so_that_equal_trials_are_recognised():
    config = {"reader": "dense", "top_k": 20, "loss.hardest": 1.0, "loss.hardest_between": (0.0, 0.5)}
    settled = settle(plan(), config)
    assert settled == {"reader": "dense", "loss.hardest": 1.0}
    assert identity(plan(), settled) == identity(plan(), settle(plan(), {"top_k": 50, "power": 0.9}))
    assert identity(plan(), settled) != identity(plan(), {"memory_every": 2})
    assert settle(plan(), {**config, "reader": "topk"})["top_k"] == 20


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"memory_encoder": "product", "quality": "shared"}, "needs a memory encoder"),
        ({"reader": "nearest"}, "unknown reader"),
        ({"loss.hardest": 2.0}, "hardest in"),
        ({"memory_every": 0}, "memory_every must be a whole number"),
    ],
)
def test_what_cannot_run_is_refused_before_it_costs_anything(config, reason):
    with pytest.raises(UserError, match=reason):
        settle(plan(), config)


def test_parts_that_the_initial_network_does_not_fit_are_refused(tmp_path):
    save(build("stm", "nano"), tmp_path / "first.safetensors")
    begun = plan(initial=str(tmp_path / "first.safetensors"))
    check_network(vary(begun, {"reader": "kernel"}, "trial"))
    with pytest.raises(UserError, match="weights do not fit this network"):
        check_network(vary(begun, {"siamese": True}, "trial"))
    with pytest.raises(UserError, match="no timm model"):
        check_network(vary(plan(), {"backbone": "nonsense"}, "trial"))


def test_stages_are_shared_where_trials_can_have_them_in_common():
    assert [first_stage(plan(), key) for key in ("reader", "bl30k.power", "learning_rate", "memory_every")] == [
        0,
        1,
        0,
        2,
    ]
    assert shared_stages(plan(), {"reader": True, "bl30k.learning_rate": False}) == 1
    assert shared_stages(plan(), {"learning_rate": False, "bl30k.power": True}) == 0
    assert shared_stages(plan(), {"reader": True}) == 0
    one = TrainingPlan("base", "stm", "nano", curricula.stages("stm", "nano", ["bl30k"]), [])
    assert shared_stages(one, {"power": True, "memory_every": True}) == 0


def test_a_warm_start_is_named_by_what_determines_its_weights(make_plan):
    base = make_plan()
    names = [
        leading(vary(base, config, "trial"), 1).name
        for config in ({}, {"last.power": 0.5}, {"bl30k.power": 0.5}, {"reader": "topk"})
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
