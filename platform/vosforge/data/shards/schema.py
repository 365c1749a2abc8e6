"""What shards hold: one row a frame in the files, one row a video in the index.

In a file a video's images lie one after the other, unchanged and uncompressed, and so do its masks. The index knows
where each block ends and how long every image and mask is, so a frame is a range of bytes that can be read without
looking at the rest of the file, from a disk or from S3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 2
EXTRAS = ("flow", "depth", "amodal")
"""What rendered video may carry beside frames and masks, encoded; null elsewhere."""
RANGED = ("image", "mask")
"""Columns whose values are found by byte ranges."""
INDEX_NAME = "videos.parquet"
ROWS_PER_GROUP = 256
"""Most rows of a row group; a video begins a new one."""

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("video_id", pa.string()),
        ("frame", pa.int32()),
        ("frame_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("image", pa.binary()),
        ("mask", pa.binary()),
        ("objects", pa.list_(pa.uint8())),
        ("areas", pa.list_(pa.int32())),
        ("boxes", pa.list_(pa.int16())),
        ("source", pa.string()),
        ("licence", pa.string()),
        *[(name, pa.binary()) for name in EXTRAS],
        ("visible", pa.list_(pa.float32())),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("video_id", pa.string()),
        ("file", pa.string()),
        ("first_row", pa.int64()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("licence", pa.string()),
        # Names of all frames, joined by "/", which no name has.
        ("frame_ids", pa.string()),
        ("objects", pa.list_(pa.uint8())),
        ("first_frames", pa.list_(pa.int32())),
        # (T, K) and (T, K, 4), flattened.
        ("areas", pa.list_(pa.int32())),
        ("boxes", pa.list_(pa.int16())),
        # Bytes of every frame's image and mask, 0 where it has none, and where the block of each row group ends.
        ("image_bytes", pa.list_(pa.int32())),
        ("mask_bytes", pa.list_(pa.int32())),
        ("image_ends", pa.list_(pa.int64())),
        ("mask_ends", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class Video:
    """One row of the index.

    Attributes:
        dataset, video_id: identity; `file`, `first_row`: where its frames start.
        frames: how many; `size`: (height, width).
        objects: ids, ascending, as an array `(K,)`.
        first_frames: `(K,)` the frame where each object is seen first.
        areas: `(T, K)` pixels of each object in each frame.
        boxes: `(T, K, 4)` pixels x0, y0, x1, y1, end exclusive; zeros where an object is not seen.
        lengths: `RANGED` column -> `(T,)` bytes of each frame's value, 0 where there is none.
        ends: `RANGED` column -> position in the file where the block of each row group ends.
        names: of the frames, joined by "/".
        licence: of the data, as its source states it.
    """

    dataset: str
    video_id: str
    file: str
    first_row: int
    frames: int
    size: tuple[int, int]
    objects: np.ndarray
    first_frames: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    lengths: dict[str, np.ndarray]
    ends: dict[str, np.ndarray]
    names: str
    licence: str = ""

    @property
    def annotated(self) -> np.ndarray:
        """`(T,)` which frames have a mask."""
        return self.lengths["mask"] > 0

    @property
    def frame_ids(self) -> tuple[str, ...]:
        """Names of the frames."""
        return tuple(self.names.split("/"))

    def ranges(self, column: str) -> np.ndarray:
        """`(T, 2)` first byte and length of every frame's value in the file; length 0 where there is none.

        Args:
            column: one of `RANGED`.
        """
        lengths = self.lengths[column].astype(np.int64)
        # Parquet's plain encoding: four bytes of length before each value that is there, nothing for the others.
        taken = np.where(lengths > 0, lengths + 4, 0)
        starts = np.empty(self.frames, np.int64)
        for group, end in enumerate(self.ends[column]):
            rows = slice(group * ROWS_PER_GROUP, (group + 1) * ROWS_PER_GROUP)
            starts[rows] = end - np.cumsum(taken[rows][::-1])[::-1] + 4
        return np.stack([starts, lengths], axis=1)
