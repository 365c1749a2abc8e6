from __future__ import annotations

from dataclasses import replace

import pytest

from vosforge import networks
from vosforge.ablation.measuring import TruthSource
from vosforge.ablation.study import Study, needs
from vosforge.ablation.tables import TABLES, tables
from vosforge.errors import UserError
from vosforge.training.stages import Corruption

ROWS = [(name, table, row) for name, own in TABLES.items() for table in own for row in table.rows]


@pytest.fixture
def study(make_plan, build_shards, moving, tmp_path):
    """A study of any network on tiny shards."""
    data = tuple(make_plan().data)
    build_shards(tmp_path / "truth", [moving("t", 7)])

    def make(network: str, **changes: object) -> Study:
        settings = {
            "truths": (TruthSource(str(tmp_path / "truth")),),
            "seeds": (0, 1),
            "stages": ("bl30k", "videos"),
            "numbers": {"steps": 2, "batch": 2},
            "crop": 32,
        }
        return Study(tables(network), "nano", data, storage=str(tmp_path / "runs"), **{**settings, **changes})

    return make


@pytest.mark.parametrize(("name", "table", "row"), ROWS, ids=lambda value: getattr(value, "cells", ("",))[0])
def test_every_row_has_networks_that_can_be_built_and_figures_for_every_set(name, table, row):
    assert len(row.cells) == len(table.headings)
    assert len(row.paper) == len(table.sets)
    for member in row.members:
        networks.build(member.network, "nano", **{**member.parts, **row.test_parts})


def test_papers_figures_rise_by_what_the_papers_say():
    (skn,) = tables("skn")
    gains = [round(100 * (row.paper[1] - skn.rows[row.against].paper[1]), 1) for row in skn.rows[1:]]
    assert gains == [0.9, 0.9, 0.7, 1.0]
    (camn,) = tables("camn")
    gains = [round(100 * (row.paper[0] - camn.rows[row.against].paper[0]), 1) for row in camn.rows[1:]]
    assert gains == [0.3, 0.7, 0.8, 1.6, 0.2, 2.3, 2.4]


def test_network_without_a_table_is_refused():
    with pytest.raises(UserError, match=r"expected one of stm, emn, qpm, skn, camn, .* found 'stcn'"):
        tables("stcn")


def test_rows_of_one_network_train_it_once(study):
    emn = needs(study("emn"))
    assert len(emn.runs) == 5 * 2 * 2, "five networks, two seeds, two stages"
    assert emn.steps * 18 == emn.wanted * 10, "18 uses of 10 networks"
    assert len(emn.measurements) == 6 * 2, "softmax aggregation stands in both tables"


def test_rows_that_differ_in_the_last_stage_share_those_before_it(study):
    skn = needs(study("skn"))
    assert len(skn.runs) == 2 * (3 * 2 + 1)
    spoilt = [plan for plan in skn.runs.values() if plan.stages[0].corruption != Corruption()]
    assert {plan.stages[0].name for plan in spoilt} == {"videos"}
    assert len(spoilt) == 2 * 2, "adversarial training with and without the kernel"


def test_test_time_rows_train_nothing(study):
    stm = needs(study("stm"))
    assert len(stm.runs) == 2 * 2
    assert len(stm.measurements) == 7 * 2


def test_names_follow_from_seed_and_numbers_and_not_from_the_table(study):
    camn, stm = needs(study("camn", stages=("videos",))), needs(study("stm", stages=("videos",)))
    assert set(stm.runs) < set(camn.runs), "CAMN's ensemble takes STM's own runs"
    longer = needs(study("stm", stages=("videos",), numbers={"steps": 3, "batch": 2}))
    assert not set(longer.runs) & set(stm.runs)
    elsewhere = replace(study("stm"), storage="elsewhere")
    assert set(needs(elsewhere).runs) == set(needs(study("stm")).runs)


def test_study_without_seeds_or_with_one_twice_is_refused(study):
    with pytest.raises(UserError, match="--seeds: expected some, each once, found none"):
        study("stm", seeds=())
    with pytest.raises(UserError, match=r"--seeds: .* found 1 1"):
        study("stm", seeds=(1, 1))


def test_videos_that_are_trained_on_are_no_truth(study):
    trained_on = study("stm").data[0]
    with pytest.raises(UserError, match=f"--truth {trained_on}: expected videos that nothing is trained on"):
        needs(study("stm", truths=(TruthSource(trained_on),)))


def test_stage_without_data_is_refused_before_anything_is_trained(study):
    with pytest.raises(UserError, match="stage images needs shards of kind images or pseudo_video"):
        needs(study("stm", stages=("images", "videos")))
