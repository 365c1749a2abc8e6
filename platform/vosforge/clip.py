"""Clip: the one value that every part of vosforge passes on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from vosforge.errors import UserError

MAX_OBJECTS = 255
# In files, beside other ids: pixels that no one was asked about.
VOID = 255


@dataclass(frozen=True, slots=True)
class Clip:
    """Consecutive frames of one video with their masks. A static image is a clip of one frame.

    Attributes:
        name: the video's id, unique within its data set.
        frames: `(T, H, W, 3)` uint8, RGB.
        masks: `(T, H, W)` uint8 index images: 0 is background, k is object k.
        annotated: `(T,)` bool, False where a frame has no mask (its `masks` plane is then all zeros).
        frame_ids: the frames' names in their source, without extension (`"00000"`, ...).

    Raises:
        UserError: when shapes or types do not fit together; the message names the clip and the field.
    """

    name: str
    frames: np.ndarray
    masks: np.ndarray
    annotated: np.ndarray = field(default=None)  # type: ignore[assignment]
    frame_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        frames, masks = self.frames, self.masks
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise UserError(f"clip {self.name}: frames must be (T, H, W, 3) uint8, found {frames.shape} {frames.dtype}")
        if masks.shape != frames.shape[:3] or masks.dtype != np.uint8:
            raise UserError(
                f"clip {self.name}: masks must be {frames.shape[:3]} uint8 like the frames, "
                f"found {masks.shape} {masks.dtype}"
            )
        length = len(frames)
        if self.annotated is None:
            object.__setattr__(self, "annotated", np.ones(length, dtype=bool))
        if not self.frame_ids:
            object.__setattr__(self, "frame_ids", tuple(f"{index:05d}" for index in range(length)))
        if len(self.annotated) != length or len(self.frame_ids) != length:
            raise UserError(
                f"clip {self.name}: {length} frames, but {len(self.annotated)} annotated flags "
                f"and {len(self.frame_ids)} frame ids"
            )

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def objects(self) -> list[int]:
        """Ids of the objects seen in any frame, ascending."""
        return [int(i) for i in np.flatnonzero(np.bincount(self.masks.ravel(), minlength=1)) if i]


def frame_order(name: str) -> tuple[list[int | str], str]:
    """Sorts names of frames by time: numbers in them count as numbers, so that 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name
