"""Shards: Parquet files of videos, one row a frame, with an index beside them and a manifest.

A directory of shards holds `part-*.parquet`, `videos.parquet` (one row a video, enough to choose clips without
decoding anything) and `manifest.json`, written last: a directory without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import vosforge
from vosforge.clip import Clip
from vosforge.data.image_files import (
    JPEG_QUALITY,
    decode_frame,
    decode_mask,
    encode_frame,
    encode_mask,
    object_statistics,
)
from vosforge.errors import UserError
from vosforge.storage import exists, filesystem, join, read_bytes, sha256, write_bytes

SCHEMA_VERSION = 2
EXTRAS = ("flow", "depth", "amodal")
"""What rendered video may carry beside frames and masks, encoded; null elsewhere."""
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
        ("objects", pa.list_(pa.uint8())),
        ("first_frames", pa.list_(pa.int32())),
        ("areas", pa.list_(pa.list_(pa.int32()))),
        ("annotated", pa.list_(pa.bool_())),
    ]
)
_COMPRESSION = {name: "none" if name in ("image", "mask", *EXTRAS) else "zstd" for name in SCHEMA.names}
for _column in ("objects", "areas", "boxes", "visible"):
    _COMPRESSION[f"{_column}.list.element"] = _COMPRESSION.pop(_column)
# One row a group: a clip of three frames reads three rows, for about 1 % of size.
_ROWS_PER_GROUP = 1


@dataclass(frozen=True)
class Video:
    """One row of the index.

    Attributes:
        dataset, video_id: identity; `file`, `first_row`: where its frames start.
        frames: how many; `size`: (height, width).
        objects: ids, ascending, as an array `(K,)`.
        first_frames: `(K,)` the frame where each object is seen first.
        areas: `(T, K)` pixels of each object in each frame.
        annotated: `(T,)` which frames have a mask.
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
    annotated: np.ndarray


def clip_table(
    clip: Clip,
    dataset: str,
    source: str = "",
    licence: str = "",
    quality: int = JPEG_QUALITY,
    images: list[bytes] | None = None,
    extras: Mapping[str, Sequence[Any]] | None = None,
) -> pa.Table:
    """Encode a clip into rows of the schema, JPEG frames and palette PNG masks.

    Args:
        clip: what to store.
        dataset, source, licence: where it comes from.
        quality: of the JPEGs.
        images: the frames' encoded bytes, to keep as they are instead of encoding anew.
        extras: further columns, T values each: `EXTRAS` as bytes, and "visible", for each of a frame's objects the
            share of it that is seen.
    """
    rows = []
    for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        objects, areas, boxes = object_statistics(mask)
        rows.append(
            {
                "dataset": dataset,
                "video_id": clip.name,
                "frame": t,
                "frame_id": clip.frame_ids[t],
                "height": clip.size[0],
                "width": clip.size[1],
                "image": images[t] if images else encode_frame(frame, quality),
                "mask": encode_mask(mask) if clip.annotated[t] else None,
                "objects": objects,
                "areas": areas,
                "boxes": boxes,
                "source": source,
                "licence": licence,
                **{name: values[t] for name, values in (extras or {}).items()},
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write_shard(tables: Iterable[pa.Table], rejected: list[dict[str, str]], local: str | Path) -> None:
    """Write videos, one table each, into one local Parquet file.

    Args:
        tables: consumed one by one; while they are, `rejected` may still grow.
        rejected: `{"video", "reason"}` of inputs left out; kept in the file, so that a resumed build knows them.
        local: path of the file.
    """
    with pq.ParquetWriter(
        local, SCHEMA, compression=_COMPRESSION, use_dictionary=["dataset", "video_id"], write_statistics=False
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        writer.add_key_value_metadata({"rejected": json.dumps(rejected)})


def describe_shard(uri: str, name: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, str]]]:
    """The manifest row, the index rows and the rejected inputs of a finished shard file, read back from it."""
    fs, path = filesystem(join(uri, name))
    columns = ["dataset", "video_id", "height", "width", "objects", "areas"]
    with pq.ParquetFile(path, filesystem=fs) as file:
        table = file.read(columns=columns)
        annotated = np.asarray(file.read(columns=["mask"]).column("mask").is_valid())
        rows = file.metadata.num_rows
        rejected = json.loads(file.metadata.metadata.get(b"rejected", b"[]"))
    videos: list[dict[str, Any]] = []
    names = table.column("video_id").to_pylist()
    starts = [i for i in range(rows) if i == 0 or names[i] != names[i - 1]]
    for start, stop in zip(starts, [*starts[1:], rows], strict=True):
        videos.append(_index_row(table.slice(start, stop - start), annotated[start:stop], name, start))
    size = fs.get_file_info(path).size
    return {"path": name, "rows": rows, "bytes": size, "sha256": sha256(join(uri, name))}, videos, rejected


def _index_row(frames: pa.Table, annotated: np.ndarray, file: str, start: int) -> dict[str, Any]:
    per_frame, per_area = frames.column("objects").to_pylist(), frames.column("areas").to_pylist()
    objects = sorted({i for ids in per_frame for i in ids})
    areas = [
        [dict(zip(ids, a, strict=True)).get(i, 0) for i in objects] for ids, a in zip(per_frame, per_area, strict=True)
    ]
    first_frames = [next(t for t, ids in enumerate(per_frame) if i in ids) for i in objects]
    return {
        "dataset": frames["dataset"][0].as_py(),
        "video_id": frames["video_id"][0].as_py(),
        "file": file,
        "first_row": start,
        "frames": frames.num_rows,
        "height": frames["height"][0].as_py(),
        "width": frames["width"][0].as_py(),
        "objects": objects,
        "first_frames": first_frames,
        "areas": areas,
        "annotated": annotated.tolist(),
    }


def finish(uri: str, kind: str, recipe: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Write the index and, last, the manifest of a directory whose files are complete.

    Args:
        uri: the directory.
        kind: what a training stage asks for: "images", "pseudo_video", "bl30k" or "videos".
        recipe: every parameter that the shards depend on.
        names: the files, in order.

    Returns:
        The manifest.
    """
    described = [describe_shard(uri, name) for name in names]
    files = [file for file, _, _ in described]
    videos = [video for _, rows, _ in described for video in rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(videos, schema=INDEX_SCHEMA), sink, compression="zstd")
    write_bytes(join(uri, "videos.parquet"), sink.getvalue().to_pybytes())
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "generator": f"vosforge {vosforge.__version__}",
        "kind": kind,
        "recipe": recipe,
        "files": files,
        "totals": {
            "videos": len(videos),
            "frames": sum(file["rows"] for file in files),
            "objects": sum(len(video["objects"]) for video in videos),
            "bytes": sum(file["bytes"] for file in files),
        },
        "rejected": [entry for _, _, rejected in described for entry in rejected],
    }
    write_bytes(join(uri, "manifest.json"), json.dumps(manifest, indent=1).encode())
    return manifest


class ShardSet:
    """A finished directory of shards, opened for random access.

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
        self._files: dict[str, pq.ParquetFile] = {}

    @property
    def kind(self) -> str:
        """What the set holds: "images", "pseudo_video", "bl30k" or "videos"."""
        return self.manifest["kind"]

    @cached_property
    def digest(self) -> str:
        """Hex digest that changes when any shard's bytes do."""
        return hashlib.sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()

    @cached_property
    def videos(self) -> list[Video]:
        """The index."""
        fs, path = filesystem(join(self.uri, "videos.parquet"))
        try:
            rows = pq.read_table(path, filesystem=fs).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.uri}/videos.parquet: the index cannot be read ({error}); build it again") from error
        return [
            Video(
                dataset=row["dataset"],
                video_id=row["video_id"],
                file=row["file"],
                first_row=row["first_row"],
                frames=row["frames"],
                size=(row["height"], row["width"]),
                objects=np.array(row["objects"], np.uint8),
                first_frames=np.array(row["first_frames"], np.int32),
                areas=np.array(row["areas"], np.int32).reshape(row["frames"], len(row["objects"])),
                annotated=np.array(row["annotated"], bool),
            )
            for row in rows
        ]

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
        ids, encoded, images = self._columns(video, wanted, ["frame_id", "mask", "image"])
        empty = np.zeros(video.size, np.uint8)
        return Clip(
            name=video.video_id,
            frames=np.stack([decode_frame(data, f"{name}/{i}") for data, i in zip(images, ids, strict=True)]),
            masks=np.stack([decode_mask(d, f"{name}/{i}") if d else empty for d, i in zip(encoded, ids, strict=True)]),
            annotated=np.array([d is not None for d in encoded]),
            frame_ids=tuple(ids),
        )

    def read_masks(self, video: Video) -> dict[str, np.ndarray | None]:
        """Every frame's name and `(H, W)` uint8 mask, None where it has none, without reading the frames themselves.

        Raises:
            UserError: as `read`.
        """
        name = self._name(video)
        ids, encoded = self._columns(video, range(video.frames), ["frame_id", "mask"])
        return {i: decode_mask(data, f"{name}/{i}") if data else None for i, data in zip(ids, encoded, strict=True)}

    def _name(self, video: Video) -> str:
        return f"{join(self.uri, video.file)}:{video.video_id}"

    def _columns(self, video: Video, frames: Iterable[int], columns: list[str]) -> list[list[Any]]:
        """Columns of a video's frames, undecoded."""
        try:
            groups = [(video.first_row + t) // _ROWS_PER_GROUP for t in frames]
            table = self._open(video.file).read_row_groups(groups, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self._name(video)}: the shard cannot be read ({error}); check it with datasets/check.py"
            ) from error
        return [table.column(column).to_pylist() for column in columns]

    def _open(self, file: str) -> pq.ParquetFile:
        if file not in self._files:
            fs, path = filesystem(join(self.uri, file))
            self._files[file] = pq.ParquetFile(path, filesystem=fs)
        return self._files[file]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


__all__ = ["SCHEMA", "ShardSet", "Video", "clip_table", "describe_shard", "finish", "write_shard"]
