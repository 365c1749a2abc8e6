"""Propagation: time a frame against the published STM loop, memory over long videos, and several videos in one batch.

    python benchmarks/propagation.py [--parts loop memory batch] [--size paper] [--frames 20]

loop: the same network and first mask through `Propagator`, and through a plain transcription of what the published
code computes: every object's skip convolutions, whole matrices of affinities, memories copied when they grow. Both in
turn, float32; the ratio is plain / ours. Masks must agree.

memory: the process's resident memory over 2,000 frames at nano 240p and 60 at paper 480p, with a budget of 8 frames.

batch: frames/s of `propagate(videos, batch=...)` against one video after the other.

Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vosforge.clip import Clip
from vosforge.networks import MemoryNetwork, build
from vosforge.networks.aggregation import soft_aggregate
from vosforge.networks.base import crop_to, pad_to_stride
from vosforge.propagation import Propagator, propagate, segment_clip

FRAME = {"nano": (240, 427), "small": (480, 854), "paper": (480, 854)}
EVERY = 5


def video(frames: int, objects: int, size: tuple[int, int], seed: int = 0) -> Clip:
    """Boxes that drift over smooth noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    ground = torch.from_numpy(rng.random((1, 3, 12, 20))).float()
    ground = F.interpolate(ground, size=size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    pictures = np.repeat((ground * 255).astype(np.uint8)[None], frames, axis=0)
    masks = np.zeros((frames, height, width), np.uint8)
    for k in range(objects):
        top, left = (k * height) // (2 * objects), (k * width) // (objects + 1)
        for t in range(frames):
            box = slice(top + t, top + t + height // 6), slice(left + t, left + t + width // 8)
            masks[t][box] = k + 1
            pictures[t][box] = (40 * k + 30, 255 - 40 * k, 90)
    return Clip(f"boxes-{seed}", pictures, masks)


def plain_loop(network: MemoryNetwork, clip: Clip) -> Iterator[np.ndarray]:
    """The published loop's work, frame by frame: labels `(H, W)` of frames 1, 2, ..."""
    objects = int(clip.masks.max())
    masks = torch.stack([torch.from_numpy(clip.masks[0] == k) for k in range(1, objects + 1)]).float()
    keys = values = None
    for t in range(1, len(clip)):
        previous = _tensor(clip.frames[t - 1])
        others = (masks.sum(dim=0, keepdim=True) - masks).clamp(0, 1)
        planes = pad_to_stride(torch.stack([masks, others], dim=1), network.stride)
        features = network.memory_encoder(network.pad_frames(previous).expand(objects, -1, -1, -1), planes)[-1]
        key, value = (x[:, :, None] for x in network.memory_head(features))
        now_keys, now_values = (
            new if old is None else torch.cat([old, new], dim=2) for old, new in ((keys, key), (values, value))
        )
        frame = _tensor(clip.frames[t])
        *skips, coarse = network.query_encoder(network.pad_frames(frame))
        query_key, query_value = (x.expand(objects, -1, -1, -1) for x in network.query_head(coarse))
        affinity = now_keys.flatten(2).transpose(1, 2) @ query_key.flatten(2) / math.sqrt(query_key.shape[1])
        read = (now_values.flatten(2) @ affinity.softmax(dim=1)).unflatten(2, query_key.shape[2:])
        read = torch.cat([read, query_value], dim=1)[:, None]
        logits = network.decoder(read, [skip.expand(objects, -1, -1, -1) for skip in skips])[None, :, 0]
        logits = crop_to(soft_aggregate(logits.sigmoid()), clip.size)
        probabilities = logits.softmax(dim=1)[0]
        masks = probabilities[1:]
        if (t - 1) % EVERY == 0:
            keys, values = now_keys, now_values
        yield probabilities.argmax(dim=0).numpy().astype(np.uint8)


def our_loop(network: MemoryNetwork, clip: Clip) -> Iterator[np.ndarray]:
    """The same by `Propagator.step`."""
    propagator = Propagator(network, EVERY)
    propagator.step(clip.frames[0], clip.masks[0])
    for frame in clip.frames[1:]:
        yield propagator.labels(propagator.step(frame))


def loop(size: str, frames: int) -> None:
    """Both loops in turn, at 1, 3 and 5 objects."""
    network = build("stm", size).eval()
    print(
        f"| objects | plain s/frame | ours s/frame | ratio | equal pixels |   ({size}, {FRAME[size]}, {frames} frames)"
    )
    for objects in (1, 3, 5):
        clip = video(frames, objects, FRAME[size])
        seconds, labels = {}, {}
        with torch.inference_mode():
            for name, run in (("plain", plain_loop), ("ours", our_loop)):
                started = time.perf_counter()
                labels[name] = list(run(network, clip))
                seconds[name] = (time.perf_counter() - started) / (frames - 1)
        equal = np.mean([(a == b).mean() for a, b in zip(*labels.values(), strict=True)])
        ratio = seconds["plain"] / seconds["ours"]
        print(f"| {objects} | {seconds['plain']:.3f} | {seconds['ours']:.3f} | {ratio:.2f} | {equal:.6f} |", flush=True)


def memory() -> None:
    """Resident memory along long videos, under a budget."""
    for size, frames, resolution in (("nano", 2000, (240, 427)), ("paper", 60, (480, 854))):
        propagator = Propagator(build("stm", size), EVERY, budget=8)
        clip = video(20, 2, resolution)
        print(f"resident memory, stm {size} at {resolution}, {frames} frames, budget 8 frames:")
        for t in range(frames):
            propagator.step(clip.frames[t % 20], clip.masks[0] if t == 0 else None)
            if (t + 1) % (frames // 10) == 0:
                print(f"  after {t + 1} frames: {_resident():.0f} MiB", flush=True)


def batch(size: str, frames: int) -> None:
    """Frames a second of several videos, one by one and together."""
    network = build("stm", size).eval()
    clips = [video(frames, 1 + i % 3, FRAME[size], seed=i) for i in range(8)]
    started = time.perf_counter()
    alone = [segment_clip(Propagator(network, EVERY), clip) for clip in clips]
    one_by_one = time.perf_counter() - started
    print(f"one by one: {8 * frames / one_by_one:.2f} frames/s")
    for videos in (2, 4, 8):
        started = time.perf_counter()
        found = list(propagate(clips, network, batch=videos, memory_every=EVERY))
        seconds = time.perf_counter() - started
        equal = np.mean([(a == b).mean() for a, b in zip(alone, found, strict=True)])
        print(
            f"batch {videos}: {8 * frames / seconds:.2f} frames/s, {one_by_one / seconds:.2f} times, equal {equal:.6f}"
        )


def _tensor(frame: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255


def _resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["loop", "memory", "batch"], default=["loop", "memory", "batch"])
    parser.add_argument("--size", choices=list(FRAME), default="paper")
    parser.add_argument("--frames", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if "loop" in options.parts:
        loop(options.size, options.frames)
    if "memory" in options.parts:
        memory()
    if "batch" in options.parts:
        batch("nano", options.frames)


if __name__ == "__main__":
    main()
