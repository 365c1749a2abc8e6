"""What is run for a report: the classical baselines, and models that say what they think of their masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from vosforge.clip import Clip
from vosforge.propagation import (
    CopyFirstMask,
    OpticalFlow,
    Segmenter,
    Session,
    given_masks,
    segment_clip,
    segment_frame,
)
from vosforge.propagation.scribbles import NOTHING, Scribbles, draw


def _segment_fresh(make: Callable[[], Segmenter], clip: Clip) -> np.ndarray:
    return segment_clip(make(), clip)


BASELINES: dict[str, Callable[[Clip], np.ndarray]] = {
    "copy first mask": partial(_segment_fresh, CopyFirstMask),
    "DIS flow": partial(_segment_fresh, OpticalFlow),
}
"""What every network has to beat: name -> clip to `(T, H, W)` uint8 ids at the clip's size."""


class Brush:
    """A session that takes strokes for masks: what every network that understands scribbles has to beat.

    Each stroke paints a band on the frame's present mask, and the painted mask is carried to the other frames as
    `Session.correct` does.

    Args:
        segmenter: what carries masks.
        frames: `(T, H, W, 3)` uint8.
        breadth: of the band, as a share of the frame's shorter side.
    """

    def __init__(self, segmenter: Segmenter, frames: np.ndarray, breadth: float = 0.05):
        self._session = Session(segmenter, frames)
        self._breadth = breadth

    def interact(self, frame: int, scribbles: Scribbles) -> np.ndarray:
        """Masks `(T, H, W)` uint8 after these strokes and all before.

        Raises:
            UserError: as `Session.interact` and `Session.correct`.
        """
        masks = self._session.masks
        size = masks.shape[1:]
        drawn = draw(scribbles, frame, len(masks), size, max(1, round(self._breadth * min(size))))
        return self._session.correct(frame, np.where(drawn.ids == NOTHING, masks[frame], drawn.ids).astype(np.uint8))


INTERACTIVE_BASELINES: dict[str, Callable[[Clip], Brush]] = {
    "brush, copied": lambda clip: Brush(CopyFirstMask(), clip.frames),
    "brush, DIS flow": lambda clip: Brush(OpticalFlow(), clip.frames),
}
"""Name -> a clip's session, which looks at its frames alone."""


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
