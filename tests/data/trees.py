"""Small data sets on disk, in the layouts that people have."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vosforge.data.image_files import encode_frame, encode_mask

SIZE = (24, 32)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def square(identity: int = 1, size: tuple[int, int] = SIZE, top: int = 4) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[top : top + 6, 4:10] = identity
    return mask


def put(path: Path, data: bytes) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return data


def write_frame(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    return put(path, encode_frame(picture(seed, size), quality=40))


def write_mask(path: Path, identity: int = 1, size: tuple[int, int] = SIZE) -> bytes:
    return put(path, encode_mask(square(identity, size)))


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, format="PNG")
    return stream.getvalue()


def write_video(
    frames: Path,
    masks: Path | None,
    count: int = 3,
    seed: int = 0,
    step: int = 1,
    annotated: Sequence[int] | None = None,
) -> None:
    """`count` numbered frames, and masks for some of them."""
    for t in range(count):
        write_frame(frames / f"{t * step:05d}.jpg", seed=100 * seed + t)
        if masks is not None and (annotated is None or t in annotated):
            write_mask(masks / f"{t * step:05d}.png", identity=1 + seed % 3)


def write_tree(root: Path, *videos: str, count: int = 3, resolution: str = ".", **settings: object) -> Path:
    """`JPEGImages/[resolution/]<video>` and `Annotations` likewise."""
    for i, video in enumerate(videos):
        write_video(
            root / "JPEGImages" / resolution / video,
            root / "Annotations" / resolution / video,
            count,
            seed=i + 1,
            **settings,
        )
    return root
