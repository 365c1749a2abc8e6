from __future__ import annotations

from math import isnan

import numpy as np
import pytest

from vosforge.ablation.comparing import change


def scores(seed: int, seeds: int = 3, videos: int = 8, spread: float = 0.02) -> list[dict[str, float]]:
    rng = np.random.default_rng(seed)
    return [{f"v{i}": float(0.5 + spread * rng.standard_normal()) for i in range(videos)} for _ in range(seeds)]


def raised(found: list[dict[str, float]], by: float) -> list[dict[str, float]]:
    return [{video: value + by for video, value in one.items()} for one in found]


def test_large_change_is_told_from_noise():
    found = change(raised(scores(0), 0.1), scores(1))
    assert found.mean == pytest.approx(0.1, abs=0.03)
    assert (found.seeds, found.videos) == (3, 8)
    assert not found.in_the_noise


def test_no_change_is_in_the_noise():
    assert change(scores(0), scores(1)).in_the_noise
    same = change(scores(0), scores(0))
    assert same.mean == same.half == 0
    assert same.in_the_noise


def test_change_of_every_video_alike_is_none_of_chance():
    found = change(raised(scores(0), 0.001), scores(0))
    assert found.mean == pytest.approx(0.001)
    assert found.half == pytest.approx(0, abs=1e-12)


def test_interval_holds_the_truth_in_most_samples():
    """Changes of 0 with noise of seeds and of videos: an interval of 95 % misses at most a few."""
    rng = np.random.default_rng(0)
    misses = 0
    for _ in range(200):
        noise = 0.02 * rng.standard_normal((3, 1)) + 0.05 * rng.standard_normal((1, 10))
        ours = [{str(v): 0.5 + float(x) for v, x in enumerate(row)} for row in noise]
        misses += not change(ours, [{str(v): 0.5 for v in range(10)}] * 3).in_the_noise
    assert misses <= 10


def test_interval_of_one_seed_is_of_its_videos():
    one = change(scores(0, seeds=1), scores(1, seeds=1))
    assert one.seeds == 1
    assert one.half > 0


def test_one_video_of_one_seed_tells_nothing():
    assert change([{"a": 0.9}], [{"a": 0.1}]).in_the_noise


def test_videos_that_one_lacks_have_no_part():
    ours = scores(0)
    del ours[1]["v3"]
    assert change(ours, scores(1)).videos == 7
    nothing = change([{"a": 1.0}], [{"b": 1.0}])
    assert isnan(nothing.mean)
    assert nothing.in_the_noise
