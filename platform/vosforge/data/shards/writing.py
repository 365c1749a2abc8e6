"""Writing shards: a clip's rows, a file of videos, its part of the index, and the manifest of the whole directory."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import vosforge
from vosforge.clip import Clip
from vosforge.data.image_files import JPEG_QUALITY, encode_frame, encode_mask, object_statistics
from vosforge.data.shards.schema import EXTRAS, INDEX_NAME, INDEX_SCHEMA, RANGED, ROWS_PER_GROUP, SCHEMA, SCHEMA_VERSION
from vosforge.errors import UserError
from vosforge.storage import delete, download_file, exists, join, read_bytes, sha256, write_bytes

_COMPRESSION = {name: "none" if name in (*RANGED, *EXTRAS) else "zstd" for name in SCHEMA.names}
for _column in ("objects", "areas", "boxes", "visible"):
    _COMPRESSION[f"{_column}.list.element"] = _COMPRESSION.pop(_column)
# One page a row group, so that its values lie in one block.
_PAGE_BYTES = 2**31 - 1
_FILE, _REJECTED = b"file", b"rejected"


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
        local,
        SCHEMA,
        compression=_COMPRESSION,
        use_dictionary=["dataset", "video_id", "source", "licence"],
        write_statistics=False,
        data_page_size=_PAGE_BYTES,
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        writer.add_key_value_metadata({_REJECTED.decode(): json.dumps(rejected)})


def describe_shard(local: str | Path) -> pa.Table:
    """The rows of the index for a finished file, with its manifest row and rejected inputs as metadata.

    Raises:
        UserError: when a value does not lie where the index says.
    """
    local = Path(local)
    videos: list[list[_Block]] = []
    with pq.ParquetFile(local) as file, open(local, "rb") as raw:
        metadata, first_row = file.metadata, 0
        for g in range(metadata.num_row_groups):
            rows = file.read_row_group(g, columns=[*_DESCRIBED, *RANGED])
            if rows["frame"][0].as_py() == 0:
                videos.append([])
            videos[-1].append(_block(rows, metadata.row_group(g), first_row, raw, local))
            first_row += rows.num_rows
        rejected = (metadata.metadata or {}).get(_REJECTED, b"[]")
    row = {"path": local.name, "rows": first_row, "bytes": local.stat().st_size, "sha256": sha256(local)}
    table = pa.Table.from_pylist([_index_row(blocks, local.name) for blocks in videos], schema=INDEX_SCHEMA)
    return table.replace_schema_metadata({_FILE: json.dumps(row), _REJECTED: rejected})


_DESCRIBED = ("dataset", "video_id", "frame", "frame_id", "height", "width", "objects", "areas", "boxes", "licence")


class _Block(NamedTuple):
    """A row group: its rows without images and masks, their lengths, where their blocks end, and its first row."""

    rows: pa.Table
    lengths: dict[str, list[int]]
    ends: dict[str, int]
    first_row: int


def _block(rows: pa.Table, group: Any, first_row: int, raw: BinaryIO, local: Path) -> _Block:
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    lengths, ends = {}, {}
    for name in RANGED:
        values = rows[name].to_pylist()
        lengths[name] = [len(value or b"") for value in values]
        ends[name] = columns[name].data_page_offset + columns[name].total_compressed_size
        block = b"".join(len(value).to_bytes(4, "little") + value for value in values if value)
        raw.seek(ends[name] - len(block))
        if raw.read(len(block)) != block:
            raise UserError(f"{local}: the bytes of column {name} lie elsewhere than expected; another Parquet writer?")
    return _Block(rows.drop_columns(list(RANGED)), lengths, ends, first_row)


def _index_row(blocks: list[_Block], file: str) -> dict[str, Any]:
    frames = pa.concat_tables([block.rows for block in blocks])
    per_frame, per_area, corners = (frames[name].to_pylist() for name in ("objects", "areas", "boxes"))
    objects = sorted({i for ids in per_frame for i in ids})
    areas = np.zeros((len(per_frame), len(objects)), np.int32)
    boxes = np.zeros((len(per_frame), len(objects), 4), np.int16)
    for t, ids in enumerate(per_frame):
        seen = [objects.index(i) for i in ids]
        areas[t, seen] = per_area[t]
        boxes[t, seen] = np.reshape(corners[t], (-1, 4))
    return {
        **{name: frames[name][0].as_py() for name in ("dataset", "video_id", "height", "width", "licence")},
        "file": file,
        "first_row": blocks[0].first_row,
        "frames": frames.num_rows,
        "frame_ids": "/".join(frames["frame_id"].to_pylist()),
        "objects": objects,
        "first_frames": (areas > 0).argmax(axis=0),
        "areas": areas.ravel(),
        "boxes": boxes.ravel(),
        **{f"{name}_bytes": [n for block in blocks for n in block.lengths[name]] for name in RANGED},
        **{f"{name}_ends": [block.ends[name] for block in blocks] for name in RANGED},
    }


def index_name(part: str) -> str:
    """The name of a part's own index, which lies beside it until the directory is finished."""
    return f"index-{part.removeprefix('part-')}"


def read_index(uri: str) -> tuple[pa.Table, dict[str, Any], list[dict[str, str]]]:
    """A part's index, its manifest row and its rejected inputs."""
    table = pq.read_table(pa.BufferReader(read_bytes(uri)))
    return table, json.loads(table.schema.metadata[_FILE]), json.loads(table.schema.metadata[_REJECTED])


def write_index(table: pa.Table, uri: str) -> bytes:
    """Write index rows as a whole; the bytes written."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    write_bytes(uri, content)
    return content


def finish(uri: str, kind: str, recipe: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Write the index and, last, the manifest of a directory whose files are complete.

    Args:
        uri: the directory.
        kind: what a training stage asks for: "images", "pseudo_video", "bl30k" or "videos".
        recipe: every parameter that the shards depend on.
        names: the files, in order; those without an index of their own beside them are read.

    Returns:
        The manifest.
    """
    tables, files, rejected = [], [], []
    for name in names:
        own = join(uri, index_name(name))
        if not exists(own):
            with tempfile.TemporaryDirectory() as folder:
                write_index(describe_shard(download_file(join(uri, name), Path(folder) / name)), own)
        table, file, left_out = read_index(own)
        tables.append(table.replace_schema_metadata(None))
        files.append(file)
        rejected += left_out
    index = pa.concat_tables(tables)
    written = write_index(index, join(uri, INDEX_NAME))
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "generator": f"vosforge {vosforge.__version__}",
        "kind": kind,
        "recipe": recipe,
        "files": files,
        "index": {"path": INDEX_NAME, "bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()},
        "totals": {
            "videos": index.num_rows,
            "frames": sum(file["rows"] for file in files),
            "objects": sum(len(objects) for objects in index["objects"].to_pylist()),
            "bytes": sum(file["bytes"] for file in files),
        },
        "rejected": rejected,
    }
    write_bytes(join(uri, "manifest.json"), json.dumps(manifest, indent=1).encode())
    for name in names:
        delete(join(uri, index_name(name)))
    return manifest
