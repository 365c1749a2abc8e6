"""Whether one method beats another, beyond the luck of which videos were chosen."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan, nan
from typing import NamedTuple

import numpy as np

from vosforge.evaluation.protocols import Scores


class Difference(NamedTuple):
    """Mean difference of J&F over videos, the 95 % interval of its bootstrap, and how many videos there are."""

    mean: float
    low: float
    high: float
    videos: int


def paired_difference(
    ours: Mapping[str, Scores], theirs: Mapping[str, Scores], draws: int = 10_000, seed: int = 0
) -> Difference:
    """By how much one method's J&F exceeds another's on the same videos.

    A video's J&F is the mean over its objects, and every video weighs the same. The interval is the 2.5th to 97.5th
    percentile of the mean over videos drawn with replacement (percentile bootstrap).

    Args:
        ours, theirs: `{video: answer of vosforge.evaluation.score}`; videos that only one has, or of which no object
            has a counted frame, have no part.
        draws: of the bootstrap.
        seed: of those.

    Returns:
        The difference; NaN over 0 videos where none is left.
    """
    pairs = [(video_score(ours[video]), video_score(theirs[video])) for video in ours if video in theirs]
    differences = np.array([a - b for a, b in pairs if not isnan(a + b)])
    if not len(differences):
        return Difference(nan, nan, nan, 0)
    picks = np.random.default_rng(seed).integers(len(differences), size=(draws, len(differences)))
    low, high = np.percentile(differences[picks].mean(axis=1), (2.5, 97.5))
    return Difference(float(differences.mean()), float(low), float(high), len(differences))


def video_score(objects: Scores) -> float:
    """J&F of a video: the mean over its objects, NaN where none counts."""
    counted = [(s["J"]["mean"] + s["F"]["mean"]) / 2 for s in objects.values() if not isnan(s["J"]["mean"])]
    return sum(counted) / len(counted) if counted else nan
