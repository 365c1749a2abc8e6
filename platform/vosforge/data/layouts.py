"""Layouts: how data sets lie on disk, recognised and listed as videos to ingest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vosforge.clip import Clip
from vosforge.data.image_files import IMAGE_SUFFIXES, decode_frame, decode_mask
from vosforge.data.shards import clip_table
from vosforge.errors import UserError

LAYOUTS = ("auto", "davis", "static")
_STATIC_FOLDERS = (("images", "masks"), ("JPEGImages", "Annotations"))


@dataclass(frozen=True)
class SourceVideo:
    """A video on disk: its frames and, where given, their masks.

    Attributes:
        dataset, video_id: identity in the shards.
        frames: image files in order.
        masks: mask file of each frame, or None.
        licence: of the data, as the user states it.
    """

    dataset: str
    video_id: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    licence: str = ""

    def read(self) -> Clip:
        """Decode all frames and masks.

        Raises:
            UserError: naming the file that does not decode or has another size.
        """
        frames = [decode_frame(path.read_bytes(), str(path)) for path in self.frames]
        size = frames[0].shape[:2]
        masks = []
        for path, frame, mask in zip(self.frames, frames, self.masks, strict=True):
            if frame.shape[:2] != size:
                raise UserError(f"{path}: expected a frame of {size} like the first, found {frame.shape[:2]}")
            masks.append(np.zeros(size, np.uint8) if mask is None else decode_mask(mask.read_bytes(), str(mask)))
            if masks[-1].shape != size:
                raise UserError(f"{mask}: expected the frame's size {size}, found {masks[-1].shape}")
        annotated = np.array([mask is not None for mask in self.masks])
        ids = tuple(path.stem for path in self.frames)
        return Clip(self.video_id, np.stack(frames), np.stack(masks), annotated, ids)

    def table(self) -> pa.Table:
        """Rows for a shard; JPEG files keep their bytes."""
        clip = self.read()
        jpeg = all(path.suffix.lower() in (".jpg", ".jpeg") for path in self.frames)
        images = [path.read_bytes() for path in self.frames] if jpeg else None
        return clip_table(clip, self.dataset, source=self.frames[0].parent.name, licence=self.licence, images=images)


@dataclass(frozen=True)
class Recognised:
    """What a folder turned out to be: the layout's name, why, its kind of shards and its videos."""

    layout: str
    reason: str
    kind: str
    videos: list[SourceVideo]

    @property
    def digest(self) -> str:
        """Changes when a file is added, taken away or written again; from names, sizes and times, not contents."""
        files = [path for video in self.videos for path in (*video.frames, *video.masks) if path is not None]
        stats = [(str(path), path.stat()) for path in files]
        listed = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def find_videos(root: Path, layout: str = "auto", split: str | None = None, licence: str = "") -> Recognised:
    """List the videos under a folder.

    Args:
        root: the folder.
        layout: "davis" (videos in `JPEGImages/[480p/]<video>/`, masks likewise in `Annotations`), "static" (one
            folder of images, one of masks with the same stems), or "auto".
        split: a list in `ImageSets/[2017|2016/]<split>.txt`; all videos when left out.
        licence: stored with every frame.

    Raises:
        UserError: when the folder is missing, is none of the layouts, or has no such split.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; valid: {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a data set's folder")
    if layout in ("auto", "davis"):
        frames = _davis_folder(root, "JPEGImages")
        if frames is not None:
            masks = _davis_folder(root, "Annotations") or root / "Annotations"
            videos = _davis_videos(root, frames, masks, split, licence)
            return Recognised("davis", f"folders of frames under {frames.relative_to(root)}", "videos", videos)
    if layout in ("auto", "static"):
        for images, masks in _STATIC_FOLDERS:
            if (root / images).is_dir() and (root / masks).is_dir():
                videos = static_videos(root / images, root / masks, root.name, licence)
                return Recognised("static", f"images in {images}/ and masks in {masks}/", "images", videos)
    raise UserError(
        f"{root}: not recognised; expected JPEGImages/[480p/]<video>/ with Annotations/ beside it (davis), "
        f"or images/ and masks/ with the same file names (static)"
    )


def static_videos(images: Path, masks: Path, dataset: str, licence: str = "") -> list[SourceVideo]:
    """Pairs of image and mask with the same stem, as videos of one frame, by name.

    Raises:
        UserError: when a folder is missing or no pair is found.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    by_stem = {path.stem: path for path in masks.iterdir() if path.suffix.lower() == ".png"}
    videos = [
        SourceVideo(dataset, path.stem, (path,), (by_stem[path.stem],), licence)
        for path in sorted(images.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and path.stem in by_stem
    ]
    if not videos:
        raise UserError(f"{images} and {masks}: no image has a mask PNG of the same name")
    return videos


def _davis_folder(root: Path, name: str) -> Path | None:
    """`root/name/480p`, `root/name/Full-Resolution` or `root/name`, whichever holds folders of files first."""
    for folder in (root / name / "480p", root / name / "Full-Resolution", root / name):
        if folder.is_dir() and any(child.is_dir() for child in folder.iterdir()):
            return folder
    return None


def _davis_videos(root: Path, frames: Path, masks: Path, split: str | None, licence: str) -> list[SourceVideo]:
    names = sorted(child.name for child in frames.iterdir() if child.is_dir())
    if split is not None:
        names = _split(root, split)
    videos = []
    for name in names:
        files = sorted(p for p in (frames / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"{frames / name}: no frames, although the split or folder names this video")
        found = [masks / name / f"{path.stem}.png" for path in files]
        given = tuple(path if path.is_file() else None for path in found)
        videos.append(SourceVideo(root.name, name, tuple(files), given, licence))
    return videos


def _split(root: Path, split: str) -> list[str]:
    lists = [root / "ImageSets" / year / f"{split}.txt" for year in ("2017", "2016", ".")]
    for path in lists:
        if path.is_file():
            return [line.split()[0].strip("/") for line in path.read_text().splitlines() if line.strip()]
    there = sorted({path.stem for path in (root / "ImageSets").rglob("*.txt")})
    raise UserError(f"{root}: no split {split!r} in ImageSets/; there are: {', '.join(there) or 'none'}")
