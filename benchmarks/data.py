"""Data: ingest, reading clips, and what Ray Data costs over a plain loop.

    python benchmarks/data.py [--videos 24] [--frames 40] [--seconds 5] [--s3]

ingest: MB/s of JPEG and PNG files turned into shards, by a plain loop and on Ray Data with 1 and 2 workers.

reads: clips of 3 frames out of long videos, at random, a second, and bytes read for each byte needed; from a local
disk, and with --s3 from a server of the package moto on this machine.

clips: training clips (3 frames, crops of 384) a second by a plain loop and on Ray Data with 1 and 2 workers.

Ratios are over the plain loop of the same run; OpenCV and torch run on one thread. Videos are drawn: smooth noise with
boxes, which JPEG makes about as large as photographs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import ray

from vosforge import cluster
from vosforge.clip import Clip
from vosforge.data.factory import build
from vosforge.data.image_files import encode_frame, encode_mask
from vosforge.data.layouts import SourceVideo, find_videos
from vosforge.data.sampling import ClipSampler, SamplingRecipe
from vosforge.data.shards import ShardSet, describe_shard, write_shard
from vosforge.data.streams import run_workers
from vosforge.storage import join

SIZE = (480, 854)
RECIPE = {"made": "by a benchmark"}


def write_videos(root: Path, videos: int, frames: int) -> int:
    """A data set in DAVIS's layout; its bytes."""
    rng = np.random.default_rng(0)
    total = 0
    for v in range(videos):
        coarse = rng.integers(0, 255, (60, 107, 3), dtype=np.uint8)
        ground = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        for t in range(frames):
            frame, mask = ground.copy(), np.zeros(SIZE, np.uint8)
            box = slice(100 + t, 220 + t), slice(200 + 3 * t, 400 + 3 * t)
            frame[box], mask[box] = rng.integers(0, 255, 3), 1
            files = {f"JPEGImages/v{v:03d}/{t:05d}.jpg": encode_frame(frame, 95)}
            files[f"Annotations/v{v:03d}/{t:05d}.png"] = encode_mask(mask)
            for name, data in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(data)
                total += len(data)
    return total


def ingest(root: Path, total: int, out: Path) -> str:
    """Shards by a plain loop and on Ray Data; where the last ones lie."""
    items = find_videos(root).videos
    started = time.perf_counter()
    for i in range(0, len(items), 4):
        local = out / f"plain-{i:03d}.parquet"
        write_shard((video.table() for video in items[i : i + 4]), [], local)
        describe_shard(local)
    plain = time.perf_counter() - started
    print(f"ingest, plain loop: {total / plain / 1e6:.1f} MB/s")
    for workers in (1, 2):
        started = time.perf_counter()
        build(str(out / f"ray-{workers}"), "videos", RECIPE, items, SourceVideo.table, 4, workers)
        seconds = time.perf_counter() - started
        print(
            f"ingest, Ray Data, workers {workers}: {total / seconds / 1e6:.1f} MB/s, {plain / seconds:.2f} of the loop"
        )
    return str(out / "ray-2")


def reads(name: str, uri: str, seconds: float) -> None:
    """Clips of 3 frames at random, bytes alone."""
    shards, rng = ShardSet(uri), np.random.default_rng(0)
    videos = shards.videos
    needed = count = 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        video = videos[int(rng.integers(len(videos)))]
        frames = rng.choice(video.frames, 3, replace=False)
        needed += sum(int(video.lengths[column][t]) for column in ("image", "mask") for t in frames)
        shards.read(video, frames)
        count += 1
    taken = time.perf_counter() - started
    excess = shards.reader.bytes_read / needed
    print(f"reads, {name}: {count / taken:.1f} clips of 3 frames/s, {excess:.3f} bytes read for each needed")


def clips(uri: str, seconds: float) -> None:
    """Training clips by a plain loop and on Ray Data."""
    sampler = ClipSampler([ShardSet(uri)], SamplingRecipe(), seed=0, stage="videos")
    plain = rate((sampler.clip(i) for i in range(10**9)), seconds)
    print(f"clips, plain loop: {plain:.1f}/s")
    for workers in (1, 2):
        rows = run_workers(100_000, partial(clip_maker, uri), workers, per_block=16)
        on_ray = rate(rows, seconds)
        rows.close()
        print(f"clips, Ray Data, workers {workers}: {on_ray:.1f}/s, {on_ray / plain:.2f} of the loop")


def clip_maker(uri: str) -> Callable[[int], dict[str, np.ndarray]]:
    """A worker's function from a number to a clip's arrays."""
    cv2.setNumThreads(1)
    sampler = ClipSampler([ShardSet(uri)], SamplingRecipe(), seed=0, stage="videos")

    def make(i: int) -> dict[str, np.ndarray]:
        clip: Clip = sampler.clip(i)
        return {"frames": clip.frames, "masks": clip.masks}

    return make


def rate(items: Iterator[object], seconds: float) -> float:
    """Items a second once they flow: those of the first seconds, computed ahead, are left out."""
    next(items)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds / 2:
        next(items)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(items)
        count += 1
    return count / (time.perf_counter() - started)


@contextlib.contextmanager
def s3_copy(folder: str) -> Iterator[str]:
    """The shards on an S3 server of this machine."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    client = boto3.client("s3")
    client.create_bucket(Bucket="benchmark")
    for path in Path(folder).iterdir():
        client.upload_file(str(path), "benchmark", f"shards/{path.name}")
    yield join("s3://benchmark", "shards")
    server.stop()


def main() -> None:
    """Measure one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--s3", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    cluster.connect()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "videos", Path(folder) / "shards"
        out.mkdir()
        total = write_videos(root, options.videos, options.frames)
        print(f"{options.videos} videos of {options.frames} frames at {SIZE}, {total / 1e6:.0f} MB")
        uri = ingest(root, total, out)
        reads("local", uri, options.seconds)
        if options.s3:
            with s3_copy(uri) as remote:
                reads("S3 on this machine", remote, options.seconds)
        clips(uri, options.seconds)
    ray.shutdown()


if __name__ == "__main__":
    main()
