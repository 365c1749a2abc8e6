"""Differences between methods, and how sure they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vosforge.evaluation.paired import paired_difference


def scores(**videos: list[float]) -> dict:
    """J&F of each video's objects."""
    return {
        video: {k: {"J": {"mean": value - 0.05}, "F": {"mean": value + 0.05}} for k, value in enumerate(values, 1)}
        for video, values in videos.items()
    }


def test_videos_weigh_the_same_however_many_objects_they_have():
    ours, theirs = scores(crowd=[0.9, 0.7, 0.8], alone=[0.5]), scores(crowd=[0.6, 0.6, 0.6], alone=[0.4])
    assert paired_difference(ours, theirs).mean == pytest.approx((0.2 + 0.1) / 2)


def test_interval_holds_the_true_difference_in_most_samples():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        noise = rng.normal(0.02, 0.1, 30)
        ours = scores(**{f"v{i}": [0.5 + n] for i, n in enumerate(noise)})
        found = paired_difference(ours, scores(**{f"v{i}": [0.5] for i in range(30)}), draws=1000)
        assert found.low < found.mean < found.high
        held += found.low < 0.02 < found.high
    assert 50 <= held < 60


def test_the_same_method_differs_by_nothing():
    same = scores(a=[0.3], b=[0.8], c=[0.1])
    assert paired_difference(same, same) == (0, 0, 0, 3)


def test_only_videos_that_both_have_and_that_count_are_compared():
    ours = scores(a=[0.5], b=[math.nan], ours=[1.0])
    theirs = scores(a=[0.25], b=[0.5], theirs=[0.0])
    assert paired_difference(ours, theirs) == pytest.approx((0.25, 0.25, 0.25, 1))
    nothing = paired_difference(scores(a=[0.5]), scores(b=[0.5]))
    assert nothing.videos == 0
    assert math.isnan(nothing.mean)
