from __future__ import annotations

import math

import numpy as np
import pytest

from vosforge.evaluation.quality import attach_quality, correlation, mean_quality


def scores(*values: float) -> dict:
    frames = [f"{t:05d}" for t in range(1, len(values) + 1)]
    return {"v": {1: {"J": {"frames": list(values)}, "frame_ids": frames}}}


def told(*values: float) -> dict:
    return {"v": {f"{t:05d}": {1: value} for t, value in enumerate(values, 1)}}


def test_quality_stands_beside_the_j_of_its_frame():
    found = scores(0.9, 0.5, 0.1)
    attach_quality(found, {"v": {"00003": {1: 0.2, 2: 0.6}, "00001": {1: 0.8}}})
    assert found["v"][1]["quality"] == pytest.approx([0.8, math.nan, 0.2], nan_ok=True)
    assert mean_quality(found["v"][1]) == pytest.approx(0.5)
    attach_quality(found, {"v": {"00003": {1: 0.2, 2: 0.6}}}, merged=True)
    assert found["v"][1]["quality"][2] == pytest.approx(0.4)


def test_correlation_is_pearson_s_and_spearman_s():
    found = scores(0.1, 0.4, 0.5, 0.9)
    attach_quality(found, told(0.2, 0.3, 0.5, 4.0))
    answer = correlation(found)
    assert answer["correlation"] == pytest.approx(np.corrcoef([0.1, 0.4, 0.5, 0.9], [0.2, 0.3, 0.5, 4.0])[0, 1])
    assert answer["rank correlation"] == pytest.approx(1)
    assert answer["masks"] == 4
    attach_quality(found, told(4.0, 3.0, 2.0, 1.0))
    assert correlation(found)["rank correlation"] == pytest.approx(-1)


def test_equal_values_share_their_rank():
    found = scores(0.1, 0.2, 0.3, 0.4)
    attach_quality(found, told(0.5, 0.5, 0.5, 0.9))
    assert correlation(found)["rank correlation"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [2, 2, 2, 4])[0, 1])


def test_what_never_changes_correlates_with_nothing():
    found = scores(0.1, 0.2, 0.3)
    attach_quality(found, told(1.0, 1.0, 1.0))
    assert math.isnan(correlation(found)["correlation"])
    assert correlation(scores(0.1))["masks"] == 0
