"""The frames of a video that is at hand, checked when they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import cv2
import numpy as np

from vosforge.errors import UserError


class Video:
    """Frames of one size, by position.

    Args:
        frames: `(T, H, W, 3)` uint8 RGB, or any sequence of `(H, W, 3)`.
        short_side: pixels to which frames are reduced; None keeps their size.

    Raises:
        UserError: for no sequence, no frame, a first frame of another form, or a short side below 16.

    Attributes:
        size: (H, W) of the frames.
        reduced_size: (h, w) of the reduced ones.
    """

    def __init__(self, frames: np.ndarray | Sequence[np.ndarray], short_side: int | None = None):
        if not (hasattr(frames, "__len__") and hasattr(frames, "__getitem__")):
            raise UserError(
                f"frames: expected (T, H, W, 3) uint8 or a sequence of (H, W, 3), found {type(frames).__name__}; "
                "make a list of it"
            )
        if not len(frames):
            raise UserError("frames: expected at least one, found none")
        if short_side is not None and short_side < 16:
            raise UserError(f"short side: expected at least 16 pixels, found {short_side}")
        self._frames = frames
        self.size: tuple[int, int] = _checked(frames[0], 0).shape[:2]
        factor = 1.0 if short_side is None else min(1.0, short_side / min(self.size))
        self.reduced_size = (round(self.size[0] * factor), round(self.size[1] * factor))

    def __len__(self) -> int:
        return len(self._frames)

    def reduced(self, t: int) -> np.ndarray:
        """The frame at a position, `(h, w, 3)` uint8.

        Raises:
            UserError: for a frame of another form or size than the first.
        """
        frame = _checked(self._frames[t], t)
        if frame.shape[:2] != self.size:
            raise UserError(f"frame {t}: the video's frames are {self.size}, this one is {frame.shape[:2]}")
        if self.reduced_size == self.size:
            return frame
        return cv2.resize(frame, self.reduced_size[::-1], interpolation=cv2.INTER_AREA)

    def position(self, frame: Any) -> int:
        """A frame's position, or a `UserError` where the video has none such."""
        if not isinstance(frame, Integral) or isinstance(frame, bool) or not 0 <= frame < len(self):
            raise UserError(f"frame: expected a position 0..{len(self) - 1}, found {frame!r}")
        return int(frame)


def _checked(frame: Any, t: int) -> np.ndarray:
    found = np.asarray(frame)
    if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8 or 0 in found.shape:
        raise UserError(f"frame {t}: expected (H, W, 3) uint8, found {found.shape} {found.dtype}")
    return found
