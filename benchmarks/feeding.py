"""Feeding: what one core makes of data, from files to rows of shards and from shards to clips, and what an index costs.

    python benchmarks/feeding.py --data shards/photographs shards/davis shards/bl30k
    python benchmarks/feeding.py --make rendered pseudo ingested --data shards/photographs --root DAVIS --seconds 24
    python benchmarks/feeding.py --data shards/bl30k --index-videos 10000 --index-frames 40

clips: of each network's stages at `paper` size whose kind of shards is among `--data`, clips a second of one core,
requests and bytes read for a clip, and bytes of a clip as it goes to a worker.

rows: with `--make`, what a task of a build does with one file of shards: rendered videos of preset bl30k, pseudo-videos
of preset stcn from the photographs in `--data`, each read anew, and the videos below `--root` as they are ingested.

index: with `--index-videos`, an index of that many videos is drawn from the rows of the first of `--data`, with all
that varies in a row varied; its bytes, the seconds until it is loaded, and the memory that the process then holds.

Seconds are those that the process spent on its core, so that a busy machine matters little; waiting for disks or S3 is
left out.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from vosforge import console
from vosforge.data.layouts import SourceVideo, find_videos
from vosforge.data.pseudo_presets import preset as pseudo_preset
from vosforge.data.rendered import Production, SceneItem, rendered_table
from vosforge.data.rendering import preset as rendered_preset
from vosforge.data.shards import INDEX_SCHEMA, ShardSet, describe_shard, write_shard
from vosforge.data.stills import open_stills, pseudo_video_table
from vosforge.errors import UserError
from vosforge.storage import join, read_bytes, write_bytes
from vosforge.training import curricula
from vosforge.training.clip_order import stage_sampler
from vosforge.training.stages import Stage

Network = Literal["stm", "stm-interactive", "emn", "qpm", "skn", "camn", "cfbi+", "mivos", "kmn", "stcn"]
Rows = Literal["rendered", "pseudo", "ingested"]
# Columns of the index that are equal in all videos of a set, or name them.
_KEPT = ("objects", "first_frames", "image_ends", "mask_ends")
# Values of a frame in each column that has some, for each object where it says so.
_OF_FRAMES = {"areas": (1, True), "boxes": (4, True), "image_bytes": (1, False), "mask_bytes": (1, False)}
_ROWS_AT_ONCE = 5000


def main(
    data: tuple[str, ...] = (),
    networks: tuple[Network, ...] = ("stm", "emn", "qpm", "skn", "camn"),
    seconds: float = 4.0,
    make: tuple[Rows, ...] = (),
    root: Path | None = None,
    index_videos: int = 0,
    index_frames: int = 0,
) -> None:
    """Print what the curricula's clips cost, or rows of shards, or a large index.

    Args:
        data: folders or s3:// URIs of shards.
        networks: whose curricula.
        seconds: of CPU time for each stage, or each kind of rows.
        make: kinds of rows to make.
        root: folder of videos to ingest.
        index_videos: rows of a drawn index; 0 leaves this out.
        index_frames: its videos' frames, at most those of the first set; 0 takes all.
    """
    if not seconds > 0:
        raise UserError(f"--seconds: expected a number above 0, found {seconds:g}")
    if index_videos < 0 or index_frames < 0:
        found = min(index_videos, index_frames)
        raise UserError(f"--index-videos, --index-frames: expected at least 0, found {found}")
    cv2.setNumThreads(1)
    if make:
        for kind in make:
            measure_rows(kind, *rows_of(kind, data, root), seconds)
        return
    if not data:
        raise UserError("--data: expected shards, found none; build them with a program in datasets/")
    sets = [ShardSet(uri) for uri in data]
    if index_videos:
        measure_index(sets[0], index_videos, index_frames)
        return
    for name in networks:
        for stage in curricula.curriculum(name, "paper").stages.values():
            usable = [shards for shards in sets if shards.kind in stage.kinds]
            if usable:
                measure_stage(name, replace(stage, repeats=()), usable, seconds)


def measure_stage(name: str, stage: Stage, sets: list[ShardSet], seconds: float) -> None:
    """Print one stage's line."""
    sampler = stage_sampler(stage, sets, seed=0)
    first = sampler.clip(0)
    before = [(s.reader.requests, s.reader.bytes_read) for s in sets]
    started, count = time.process_time(), 0
    while time.process_time() - started < seconds:
        # Spread over the stage, in the course of which frames lie ever farther apart.
        sampler.clip(1 + count * 7919 % (stage.steps * stage.batch - 1))
        count += 1
    taken = time.process_time() - started
    requests = sum(s.reader.requests - b[0] for s, b in zip(sets, before, strict=True)) / count
    read = sum(s.reader.bytes_read - b[1] for s, b in zip(sets, before, strict=True)) / count
    (height, width), frames = stage.sampling.crop, stage.sampling.frames
    print(
        f"{name:5} {stage.name:7} {frames} frames of {height}x{width}: {count / taken:6.1f} clips/s/core, "
        f"{requests:.1f} requests and {read / 1e3:.0f} KB read, {(first.frames.nbytes + first.masks.nbytes) / 1e6:.2f} "
        "MB a clip",
        flush=True,
    )


def rows_of(kind: Rows, data: tuple[str, ...], root: Path | None) -> tuple[Iterable[Any], Callable[[Any], pa.Table]]:
    """Items of a build and what makes rows of one, after a first one, which compiles and loads what all need."""
    if kind == "rendered":
        small = Production(rendered_preset("bl30k", height=32, width=48, frames=2))
        rendered_table(small, SceneItem(0, 0))
        return (SceneItem(0, n) for n in range(10**6)), partial(rendered_table, Production(rendered_preset("bl30k")))
    if kind == "ingested":
        if root is None:
            raise UserError("--root: expected a folder of videos, found none; --make ingested needs one")
        return find_videos(root).videos, SourceVideo.table
    images = [uri for uri in data if ShardSet(uri).kind == "images"]
    if not images:
        raise UserError("--data: expected shards of images, found none; --make pseudo sets photographs in motion")
    stills = open_stills(images[0], None, None)
    items = sorted(stills.items(clips_per_image=1000, seed=0), key=lambda still: still.copy)
    make = partial(pseudo_video_table, stills, pseudo_preset("stcn"))
    make(items.pop())
    return items, make


def measure_rows(kind: Rows, items: Iterable[Any], make: Callable[[Any], pa.Table], seconds: float) -> None:
    """Write one file of shards and describe it, as a build's task does; print one line."""
    started = time.process_time()

    def tables() -> Iterator[pa.Table]:
        for item in items:
            yield make(item)
            if time.process_time() - started > seconds:
                return

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "part-00000.parquet")
        write_shard(tables(), [], file)
        found = describe_shard(file)["frames"].to_pylist()
        taken, size = time.process_time() - started, file.stat().st_size
    print(
        f"{kind}: {len(found):,} videos of {sum(found) / len(found):.0f} frames, {sum(found) / taken:.1f} frames and "
        f"{len(found) / taken:.2f} videos/s/core, {size / sum(found) / 1e3:.1f} KB a frame",
        flush=True,
    )


def measure_index(shards: ShardSet, videos: int, frames: int) -> None:
    """Print what a drawn index costs; it is drawn in a process of its own, whose memory does not count."""
    most = min(video.frames for video in shards.videos)
    if frames > most:
        raise UserError(f"--index-frames: expected at most the {most} frames of {shards.uri}, found {frames}")
    with tempfile.TemporaryDirectory() as folder:
        drawer = multiprocessing.get_context("spawn").Process(
            target=draw_index, args=(shards.uri, videos, frames or most, folder)
        )
        drawer.start()
        drawer.join()
        size = Path(folder, "videos.parquet").stat().st_size
        before, started = _resident(), time.process_time()
        found = ShardSet(folder).videos
        taken = time.process_time() - started
        print(
            f"index of {len(found):,} videos of {found[0].frames} frames: {size / 1e6:.1f} MB, loaded in {taken:.2f} s "
            f"of CPU time, {(_resident() - before) / 1e6:.0f} MB held, {(_peak() - before) / 1e6:.0f} MB at most"
        )


def draw_index(uri: str, videos: int, frames: int, folder: str) -> None:
    """Write an index of so many videos beside a copy of the manifest."""
    rng = np.random.default_rng(0)
    model = [cut(row, frames) for row in pq.read_table(join(uri, "videos.parquet")).to_pylist()]
    with pq.ParquetWriter(Path(folder, "videos.parquet"), INDEX_SCHEMA, compression="zstd") as writer:
        for first in range(0, videos, _ROWS_AT_ONCE):
            numbers = range(first, min(first + _ROWS_AT_ONCE, videos))
            drawn = [varied(model[n % len(model)], n, rng) for n in numbers]
            writer.write_table(pa.Table.from_pylist(drawn, schema=INDEX_SCHEMA))
    write_bytes(join(folder, "manifest.json"), read_bytes(join(uri, "manifest.json")))


def cut(row: dict, frames: int) -> dict:
    """A row of the video's first frames."""
    kept = {
        name: row[name][: frames * values * (len(row["objects"]) if of_objects else 1)]
        for name, (values, of_objects) in _OF_FRAMES.items()
    }
    return {**row, **kept, "frames": frames, "frame_ids": "/".join(row["frame_ids"].split("/")[:frames])}


def varied(row: dict, number: int, rng: np.random.Generator) -> dict:
    """A row as another video would have it: other sizes in bytes, areas and boxes, by up to an eighth."""
    changed = {
        name: (np.asarray(value) * rng.uniform(0.875, 1.0, len(value))).astype(np.int64)
        for name, value in row.items()
        if isinstance(value, list) and name not in _KEPT
    }
    return {**row, **changed, "video_id": f"0-{number:07d}", "file": f"part-3f2a91c0-{number // 16:05d}.parquet"}


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), resumes=False)
