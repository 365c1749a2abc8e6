"""Reading shards: a finished directory, opened for random access."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vosforge.clip import Clip
from vosforge.data.image_files import decode_frame, decode_mask
from vosforge.data.shards.schema import INDEX_NAME, RANGED, SCHEMA_VERSION, Video
from vosforge.errors import UserError
from vosforge.storage import RangeReader, exists, filesystem, join, read_bytes


class ShardSet:
    """A finished directory of shards, opened for random access.

    Choosing a clip looks at the index alone; reading one reads the bytes of its frames and little else.

    Args:
        uri: a local path or `s3://` URI.

    Raises:
        UserError: when there is no manifest (missing or unfinished), or it is of another schema version.
    """

    def __init__(self, uri: str):
        self.uri = str(uri)
        if not exists(join(self.uri, "manifest.json")):
            raise UserError(
                f"{self.uri}: no manifest.json, so no finished shards; build them with a program in datasets/"
            )
        content = read_bytes(join(self.uri, "manifest.json"))
        try:
            self.manifest = json.loads(content)
        except ValueError as error:
            raise UserError(f"{self.uri}/manifest.json: expected JSON, found something else ({error})") from error
        found = self.manifest.get("schema_version")
        if found != SCHEMA_VERSION:
            raise UserError(f"{self.uri}: shards of schema {found}, expected {SCHEMA_VERSION}; build them again")
        self.reader = RangeReader()

    @property
    def kind(self) -> str:
        """What the set holds: "images", "pseudo_video", "bl30k" or "videos"."""
        return self.manifest["kind"]

    @cached_property
    def digest(self) -> str:
        """Hex digest of the shards' contents: it changes when any byte does, and not with names or places."""
        contents = [[file["sha256"], file["rows"]] for file in self.manifest["files"]]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    @cached_property
    def videos(self) -> list[Video]:
        """The index."""
        fs, path = filesystem(join(self.uri, INDEX_NAME))
        try:
            return _videos(pq.read_table(path, filesystem=fs))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.uri}/{INDEX_NAME}: the index cannot be read ({error}); build it again") from error

    def read(self, video: Video, frames: Iterable[int] | None = None) -> Clip:
        """Decode frames of a video, in the order given; all of them by default.

        Raises:
            UserError: naming the shard and video, when a file is missing, truncated or does not decode, or a frame
                is not one of the video's.
        """
        wanted = list(range(video.frames)) if frames is None else list(frames)
        name = self._name(video)
        outside = [t for t in wanted if not 0 <= t < video.frames]
        if outside or not wanted:
            raise UserError(f"{name}: expected frames in 0..{video.frames - 1}, found {outside or 'none'}")
        images, encoded = self._bytes(video, wanted, RANGED)
        ids = [video.frame_ids[t] for t in wanted]
        empty = np.zeros(video.size, np.uint8)
        return Clip(
            name=video.video_id,
            frames=np.stack([decode_frame(data, f"{name}/{i}") for data, i in zip(images, ids, strict=True)]),
            masks=np.stack([decode_mask(d, f"{name}/{i}") if d else empty for d, i in zip(encoded, ids, strict=True)]),
            annotated=np.array([bool(data) for data in encoded]),
            frame_ids=tuple(ids),
        )

    def read_masks(self, video: Video) -> dict[str, np.ndarray | None]:
        """Every frame's name and `(H, W)` uint8 mask, None where it has none, without reading the frames themselves.

        Raises:
            UserError: as `read`.
        """
        name = self._name(video)
        (encoded,) = self._bytes(video, range(video.frames), ["mask"])
        pairs = zip(video.frame_ids, encoded, strict=True)
        return {i: decode_mask(data, f"{name}/{i}") if data else None for i, data in pairs}

    def _name(self, video: Video) -> str:
        return f"{join(self.uri, video.file)}:{video.video_id}"

    def _bytes(self, video: Video, frames: Sequence[int], columns: Sequence[str]) -> list[list[bytes]]:
        """Encoded values of a video's frames, by column."""
        ranges = np.concatenate([video.ranges(column)[list(frames)] for column in columns])
        try:
            found = self.reader.read(join(self.uri, video.file), ranges.tolist(), self._sizes[video.file])
        except (OSError, EOFError, KeyError) as error:
            asked = ", ".join(video.frame_ids[t] for t in frames[:3]) + (" ..." if len(frames) > 3 else "")
            raise UserError(
                f"{self._name(video)}: the shard cannot be read at frames {asked} ({error}); check it with "
                "datasets/check.py"
            ) from error
        return [found[c * len(frames) : (c + 1) * len(frames)] for c in range(len(columns))]

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {file["path"]: file["bytes"] for file in self.manifest["files"]}

    def __getstate__(self) -> dict[str, Any]:
        # The index is read again rather than sent: it may be large.
        return {name: value for name, value in self.__dict__.items() if name != "videos"} | {"reader": RangeReader()}


def _videos(table: pa.Table) -> list[Video]:
    """The index's rows; arrays are views of its columns."""
    table = table.combine_chunks()
    lists = {field.name: _slices(table[field.name]) for field in table.schema if pa.types.is_list(field.type)}
    plain = {name: table[name].to_pylist() for name in table.schema.names if name not in lists}
    videos = []
    for i in range(table.num_rows):
        row = {name: values[i] for name, values in plain.items()}
        frames, objects = row["frames"], lists["objects"][i]
        videos.append(
            Video(
                dataset=row["dataset"],
                video_id=row["video_id"],
                file=row["file"],
                first_row=row["first_row"],
                frames=frames,
                size=(row["height"], row["width"]),
                objects=objects,
                first_frames=lists["first_frames"][i],
                areas=lists["areas"][i].reshape(frames, len(objects)),
                boxes=lists["boxes"][i].reshape(frames, len(objects), 4),
                lengths={name: lists[f"{name}_bytes"][i] for name in RANGED},
                ends={name: lists[f"{name}_ends"][i] for name in RANGED},
                names=row["frame_ids"],
                licence=row["licence"] or "",
            )
        )
    return videos


def _slices(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Each row of a list column as an array."""
    if not column.num_chunks:
        return []
    chunk = column.chunk(0)
    offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=False)
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]
