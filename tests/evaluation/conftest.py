from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.data.image_files import encode_frame, encode_mask


def drifting(name: str, objects: int = 1, frames: int = 5, step: int = 6) -> Clip:
    """Squares that drift to the right over noise, one below the other."""
    rng = np.random.default_rng(len(name) + objects)
    pictures = rng.integers(0, 120, (frames, 60, 80, 3), dtype=np.uint8)
    masks = np.zeros((frames, 60, 80), np.uint8)
    for t in range(frames):
        for k in range(objects):
            area = np.s_[t, 4 + 18 * k : 18 + 18 * k, 4 + step * t : 24 + step * t]
            masks[area], pictures[area] = k + 1, 180 + 20 * k
    return Clip(name, pictures, masks)


@pytest.fixture
def make_clip() -> Callable[..., Clip]:
    """Makes clips of drifting squares."""
    return drifting


@pytest.fixture
def write_masks() -> Callable[..., Path]:
    """Writes clips' masks, or others in their place, as `<folder>/<video>/<frame>.png`."""

    def write(folder: Path, *clips: Clip, masks: np.ndarray | None = None) -> Path:
        for clip in clips:
            (folder / clip.name).mkdir(parents=True, exist_ok=True)
            for frame, mask in zip(clip.frame_ids, clip.masks if masks is None else masks, strict=True):
                (folder / clip.name / f"{frame}.png").write_bytes(encode_mask(mask))
        return folder

    return write


@pytest.fixture
def write_davis(write_masks) -> Callable[..., Path]:
    """Writes clips as a data set in the layout of DAVIS and YouTube-VOS."""

    def write(root: Path, *clips: Clip) -> Path:
        write_masks(root / "Annotations", *clips)
        for clip in clips:
            folder = root / "JPEGImages" / clip.name
            folder.mkdir(parents=True)
            for t, (frame, picture) in enumerate(zip(clip.frame_ids, clip.frames, strict=True)):
                (folder / f"{frame}.jpg").write_bytes(encode_frame(picture))
                if not clip.annotated[t]:
                    (root / "Annotations" / clip.name / f"{frame}.png").unlink()
        return root

    return write


@pytest.fixture
def zip_folder() -> Callable[..., Path]:
    """Zips a folder's files, under a top folder if one is named."""

    def pack(folder: Path, path: Path, top: str = "") -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*.png")):
                archive.write(file, Path(top) / file.relative_to(folder))
        return path

    return pack
