from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation.truth import Truth
from vosforge.networks import build
from vosforge.search.examining import Examination, check_scores, rungs_of
from vosforge.search.splits import split


@pytest.fixture
def validation(tmp_path, build_shards, moving) -> str:
    build_shards(tmp_path / "validation", [moving(f"v{i}", i) for i in range(8)])
    return str(tmp_path / "validation")


def test_parts_of_a_validation_set_are_disjoint_and_follow_from_its_names(validation):
    parts = split(Truth(validation))
    assert [len(part) for part in parts] == [4, 2, 2]
    assert sorted([*parts.select, *parts.stack, *parts.report]) == list(range(8))
    assert split(Truth(validation)) == parts
    assert split(Truth(validation, limit=4)).report != []
    with pytest.raises(UserError, match=r"expected at least 4 videos, half of which choose.*found 3"):
        split(Truth(validation, limit=3))


def test_a_network_is_scored_at_rungs_and_left_as_it_was(validation, tmp_path):
    network = build("emn", "nano").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    examine = Examination(validation, str(tmp_path / "rungs"), (4, 8))
    assert examine(network, 3) == {}
    scores = examine(network, 4)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert 0 <= scores["JF_mean"] <= 1
    assert scores["JF_mean"] == pytest.approx((scores["J_mean"] + scores["F_mean"]) / 2)
    assert rungs_of(str(tmp_path / "rungs")) == [{"step": 4, **scores}]


def test_weights_that_are_no_numbers_have_no_score_and_a_reason(validation, tmp_path):
    network = build("stm", "nano")
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    examine = Examination(validation, str(tmp_path / "rungs"), (4,))
    assert math.isnan(examine(network, 4)["JF_mean"])
    (told,) = rungs_of(str(tmp_path / "rungs"))
    with pytest.raises(UserError, match=r"run a, step 4: J&F is no number: "):
        check_scores(told, "run a")


def test_videos_without_an_object_give_no_score(tmp_path, build_shards):
    empty = [Clip(f"v{i}", np.zeros((3, 32, 32, 3), np.uint8), np.zeros((3, 32, 32), np.uint8)) for i in range(4)]
    build_shards(tmp_path / "validation", empty)
    examine = Examination(str(tmp_path / "validation"), str(tmp_path / "rungs"), (4,))
    assert math.isnan(examine(build("stm", "nano"), 4)["JF_mean"])
    (told,) = rungs_of(str(tmp_path / "rungs"))
    with pytest.raises(UserError, match="no object of the validation set has a frame that counts"):
        check_scores(told, "run a")
