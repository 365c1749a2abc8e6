"""How far a network's opinion of its masks agrees with their true J (QPM, figure 1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isnan, nan
from typing import Any

import numpy as np

from vosforge.evaluation.protocols import Scores


def attach_quality(
    scores: Mapping[str, Scores], quality: Mapping[str, Mapping[str, Mapping[int, float]]], merged: bool = False
) -> None:
    """Set the predicted quality of every counted frame beside its J, as the object's `"quality"`.

    Args:
        scores: video -> scores with `frame_ids`, as `score_set` gives them; changed in place.
        quality: video -> frame id -> object id -> quality; where it says nothing, NaN is set.
        merged: the scores are of all objects as one (protocol davis2016), which gets the mean of their qualities.
    """
    for video, objects in scores.items():
        by_frame = quality.get(video, {})
        for k, measures in objects.items():
            told = [by_frame.get(frame, {}) for frame in measures["frame_ids"]]
            measures["quality"] = [_mean(q.values()) if merged else q.get(k, nan) for q in told]


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else nan


def correlation(scores: Mapping[str, Scores]) -> dict[str, float | int]:
    """Between predicted quality and true J, over all objects and counted frames.

    Args:
        scores: with the quality that `attach_quality` set.

    Returns:
        `{"correlation": Pearson's, "rank correlation": Spearman's, "masks": how many}`; NaN for fewer than three
        masks, and where J or quality never changes.
    """
    pairs = [
        (predicted, true)
        for objects in scores.values()
        for measures in objects.values()
        for predicted, true in zip(measures.get("quality", ()), measures["J"]["frames"], strict=False)
        if not isnan(predicted)
    ]
    predicted, true = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return {
        "correlation": _pearson(predicted, true),
        "rank correlation": _pearson(_ranks(predicted), _ranks(true)),
        "masks": len(pairs),
    }


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return nan
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def mean_quality(measures: Mapping[str, Any]) -> float:
    """Of one object over its counted frames; NaN where nothing was assessed."""
    return _mean([q for q in measures.get("quality", ()) if not isnan(q)])
