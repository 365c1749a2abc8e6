"""What is run for a report: the classical baselines, and models that say what they think of their masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from vosforge.clip import Clip
from vosforge.propagation import CopyFirstMask, OpticalFlow, Segmenter, given_masks, segment_clip, segment_frame


def _segment_fresh(make: Callable[[], Segmenter], clip: Clip) -> np.ndarray:
    return segment_clip(make(), clip)


BASELINES: dict[str, Callable[[Clip], np.ndarray]] = {
    "copy first mask": partial(_segment_fresh, CopyFirstMask),
    "DIS flow": partial(_segment_fresh, OpticalFlow),
}
"""What every network has to beat: name -> clip to `(T, H, W)` uint8 ids at the clip's size."""


def segment_assessed(
    segmenter: Segmenter, clip: Clip, short_side: int | None = None
) -> tuple[np.ndarray, list[dict[int, float]]]:
    """`segment_clip`, and what the segmenter thinks of its masks.

    Args:
        segmenter: a fresh one.
        clip: its masks say what is given; the rest of them is not looked at.
        short_side: pixels to which frames are reduced first; None keeps their size.

    Returns:
        `(T, H, W)` uint8 ids at the clip's size; and for each frame object id -> quality (QPM, equation 2), empty for
        segmenters that assess nothing.
    """
    given = given_masks(clip)
    labels, quality = [], []
    for t, frame in enumerate(clip.frames):
        labels.append(segment_frame(segmenter, frame, given.get(t), short_side))
        quality.append(dict(getattr(segmenter, "quality", {})))
    return np.stack(labels), quality
