"""Whether a row differs from another beyond the noise of seeds and videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot, inf, nan, sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student


class Change(NamedTuple):
    """Mean difference of J&F, half the width of its 95 % interval, and over how many seeds and videos.

    With one seed the interval is of videos alone: what training again would change is unknown. So it is with one video;
    with one of each the interval is infinite.
    """

    mean: float
    half: float
    seeds: int
    videos: int

    @property
    def in_the_noise(self) -> bool:
        """Whether the interval holds no difference."""
        return not abs(self.mean) > self.half


def change(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> Change:
    """By how much one row's J&F exceeds another's, seed by seed and video by video.

    Seeds and videos are two samples, each with its own luck. Student's intervals of the seeds' means and of the videos'
    means are added in quadrature, which is rather too wide than too narrow.

    Args:
        ours, theirs: for each seed, video -> J&F in [0, 1]; videos that one of them lacks have no part.
    """
    pairs = list(zip(ours, theirs, strict=True))
    videos = [video for video in ours[0] if all(video in scores for pair in pairs for scores in pair)] if ours else []
    if not videos:
        return Change(nan, nan, len(pairs), 0)
    differences = np.array([[a[video] - b[video] for video in videos] for a, b in pairs])
    half = hypot(*(_half(differences.mean(axis=axis)) for axis in (0, 1))) if differences.size > 1 else inf
    return Change(float(differences.mean()), half, *differences.shape)


def _half(means: np.ndarray) -> float:
    """Half of the 95 % interval of the mean; 0 of a single value, whose spread is unknown."""
    if len(means) < 2:
        return 0.0
    return float(student.ppf(0.975, len(means) - 1) * means.std(ddof=1) / sqrt(len(means)))
