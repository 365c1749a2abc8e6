"""Feeding: what the clips of the papers' curricula cost one core that decodes them, and what a large index costs.

    python benchmarks/feeding.py --data shards/photographs shards/davis shards/bl30k
    python benchmarks/feeding.py --data shards/bl30k --index-videos 100000

clips: of each network's stages at `paper` size whose kind of shards is among `--data`, clips a second of one core,
requests and bytes read for a clip, and bytes of a clip as it goes to a worker. Seconds are those that the process
spent on its core, so that a busy machine matters little; waiting for disks or S3 is left out.

index: with `--index-videos`, an index of that many videos is drawn from the rows of the rendered shards, with all that
varies in a row varied; its bytes, the seconds until it is loaded, and the memory that the process then holds.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from vosforge.data.shards import INDEX_SCHEMA, ShardSet
from vosforge.storage import join, read_bytes, write_bytes
from vosforge.training import curricula
from vosforge.training.clip_order import stage_sampler
from vosforge.training.stages import Stage

NETWORKS = ("stm", "emn", "qpm", "skn", "camn")
# Columns of the index that are equal in all videos of a set, or name them.
_KEPT = ("objects", "first_frames", "image_ends", "mask_ends")
_ROWS_AT_ONCE = 5000


def main(
    data: tuple[str, ...], networks: tuple[str, ...] = NETWORKS, seconds: float = 4.0, index_videos: int = 0
) -> None:
    """Print what the curricula's clips cost, and a large index.

    Args:
        data: folders or s3:// URIs of shards.
        networks: whose curricula.
        seconds: of CPU time for each stage.
        index_videos: rows of a drawn index; 0 leaves this out.
    """
    cv2.setNumThreads(1)
    if index_videos:
        measure_index(next(uri for uri in data if ShardSet(uri).kind == "bl30k"), index_videos)
        return
    sets = [ShardSet(uri) for uri in data]
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


def measure_index(uri: str, videos: int) -> None:
    """Print what a drawn index costs; it is drawn in a process of its own, whose memory does not count."""
    with tempfile.TemporaryDirectory() as folder:
        drawer = multiprocessing.get_context("spawn").Process(target=draw_index, args=(uri, videos, folder))
        drawer.start()
        drawer.join()
        size = Path(folder, "videos.parquet").stat().st_size
        before, started = _resident(), time.process_time()
        found = ShardSet(folder).videos
        taken = time.process_time() - started
        print(
            f"index of {len(found):,} videos of {found[0].frames} frames: {size / 1e6:.0f} MB, loaded in {taken:.1f} s "
            f"of CPU time, {(_resident() - before) / 1e6:.0f} MB held, {(_peak() - before) / 1e6:.0f} MB at most"
        )


def draw_index(uri: str, videos: int, folder: str) -> None:
    """Write an index of so many videos beside a copy of the manifest."""
    rng = np.random.default_rng(0)
    model = pq.read_table(join(uri, "videos.parquet")).to_pylist()
    with pq.ParquetWriter(Path(folder, "videos.parquet"), INDEX_SCHEMA, compression="zstd") as writer:
        for first in range(0, videos, _ROWS_AT_ONCE):
            numbers = range(first, min(first + _ROWS_AT_ONCE, videos))
            drawn = [varied(model[n % len(model)], n, rng) for n in numbers]
            writer.write_table(pa.Table.from_pylist(drawn, schema=INDEX_SCHEMA))
    write_bytes(join(folder, "manifest.json"), read_bytes(join(uri, "manifest.json")))


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
    tyro.cli(main)
