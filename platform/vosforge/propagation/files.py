"""Segmenting videos that lie in files: from frames and first masks to palette PNGs, overlays and contact sheets."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vosforge import pictures
from vosforge.clip import VOID
from vosforge.data.image_files import IMAGE_SUFFIXES, decode_mask, encode_mask
from vosforge.data.video_files import open_video
from vosforge.errors import UserError
from vosforge.propagation.segmenter import Segmenter, segment_frame

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
OVERLAY, SHEET = "overlay.mp4", "sheet.png"
_SHEET_PICTURES = 8


@dataclass(frozen=True)
class VideoFiles:
    """A video to segment.

    Attributes:
        name: of the video; its masks go into a folder of that name.
        video: a video file or a folder of frames.
        mask: a PNG of the first frame's objects, or a folder of PNGs named as the frames where objects enter.
    """

    name: str
    video: Path
    mask: Path


def find_videos(video: Path, mask: Path) -> list[VideoFiles] | None:
    """The videos of a folder of videos, each with its masks; None when `video` is itself a video.

    Args:
        video: a video file, a folder of frames, or a folder of such files and folders.
        mask: for a folder of videos, a folder of `<video>.png` and `<video>/<frame>.png`.

    Raises:
        UserError: when there is nothing, or masks of no video.
    """
    if not video.is_dir():
        return None
    entries = sorted(video.iterdir())
    if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries):
        return None
    found = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise UserError(f"{video}: no frames, video files or folders of them in it")
    if not mask.is_dir():
        raise UserError(f"{mask}: expected a folder of <video>.png or <video>/<frame>.png beside the folder of videos")
    videos = []
    for entry in found:
        name = entry.name if entry.is_dir() else entry.stem
        folder = mask / name
        videos.append(VideoFiles(name, entry, folder if folder.is_dir() else mask / f"{name}.png"))
    twice = {files.name for files in videos if sum(other.name == files.name for other in videos) > 1}
    if twice:
        raise UserError(f"{video}: two videos are named {min(twice)}; rename one")
    return videos


class FirstMasks:
    """Masks given for a video: each object's at the frame where it appears first.

    Args:
        mask: a PNG, for the first frame, or a folder of PNGs named as the frames.

    Raises:
        UserError: when there is none.
    """

    def __init__(self, mask: Path):
        self.single = mask.is_file()
        self.files = {"": mask} if self.single else {}
        if mask.is_dir():
            self.files = {path.stem: path for path in sorted(mask.iterdir()) if path.suffix.lower() == ".png"}
        if not self.files:
            raise UserError(f"{mask}: no such mask file or folder of masks")
        self._known: set[int] = set()
        self.source = mask

    def given(self, position: int, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """The mask `(H, W)` of objects that enter at a frame, or None.

        Raises:
            UserError: for a mask that does not decode, of another size, or without an object in a single file.
        """
        path = self.files.get("" if self.single and position == 0 else name)
        if path is None:
            return None
        mask = decode_mask(path.read_bytes(), str(path))
        if mask.shape != size:
            raise UserError(f"{path}: expected the frame's size {size}, found {mask.shape}")
        if self.single and not mask.any():
            raise UserError(f"{path}: the mask is empty; mark at least one object")
        ids = {int(i) for i in np.unique(mask)} - {0}
        # Beside other ids 255 is void.
        ids -= {VOID} if len(ids) > 1 else set()
        entering = sorted(ids - self._known)
        self._known.update(entering)
        return np.where(np.isin(mask, entering), mask, 0).astype(np.uint8) if entering else None

    def check(self, names: list[str]) -> None:
        """Refuse a folder with a mask of no frame.

        Args:
            names: of the video's frames.

        Raises:
            UserError: naming the file.
        """
        strange = [] if self.single else [path for stem, path in self.files.items() if stem not in set(names)]
        if strange:
            raise UserError(f"{strange[0]}: no frame of that name; frames are {names[0]} to {names[-1]}")

    def check_used(self) -> None:
        """Refuse masks that marked no object.

        Raises:
            UserError: naming the folder.
        """
        if not self._known:
            raise UserError(f"{self.source}: its masks mark no object")


def segment_files(
    segmenter: Segmenter,
    files: VideoFiles,
    out: Path,
    overlay: bool = False,
    short_side: int | None = None,
    fps: float = 10.0,
    on_frame: Callable[[int], None] = lambda done: None,
) -> int:
    """Segment a video into a folder of palette PNGs named as its frames; nothing is there unless all is.

    Args:
        segmenter: a fresh one.
        files: what to segment.
        out: folder of the masks; its other files stay.
        overlay: write `overlay.mp4` and `sheet.png` there too.
        short_side: pixels to which frames are reduced before they are segmented.
        fps: frames a second of the overlay.
        on_frame: hears how many frames are finished.

    Returns:
        How many frames it has.

    Raises:
        UserError: naming file and frame, for a video or mask that cannot be used.
    """
    source = open_video(files.video)
    masks = FirstMasks(files.mask)
    masks.check(source.names)
    chosen = {round(i * (len(source) - 1) / (_SHEET_PICTURES - 1)) for i in range(_SHEET_PICTURES)}
    names, shown, size = [], [], None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        aside = Path(folder)
        with pictures.Film(aside / OVERLAY, fps) if overlay else contextlib.nullcontext() as film:
            for t, (name, frame) in enumerate(source):
                size = size or frame.shape[:2]
                if frame.shape[:2] != size:
                    raise UserError(f"{files.video}: frame {name} is {frame.shape[:2]}, the first one is {size}")
                given = masks.given(t, name, size)
                labels = segment_frame(segmenter, frame, given, short_side)
                (aside / f"{name}.png").write_bytes(encode_mask(labels))
                names.append(name)
                if overlay:
                    told = ", ".join(f"{i}: {quality:.2f}" for i, quality in segmenter.quality.items())
                    tinted = pictures.captioned(pictures.overlay(frame, labels), told and f"quality {told}")
                    film.add(tinted)
                    if t in chosen:
                        shown.append(tinted)
                on_frame(t + 1)
        if len(names) < len(source):
            raise UserError(f"{files.video}: ends after {len(names)} frames, expected {len(source)}; repair the file")
        masks.check_used()
        if overlay:
            sheet = pictures.contact_sheet([(f"{files.name}: {len(names)} frames", shown)], height=160)
            pictures.write_png(aside / SHEET, sheet)
        _publish(aside, out)
    return len(names)


def _publish(aside: Path, out: Path) -> None:
    """Move finished files to where they belong: the folder at once, or one by one into a folder that is there."""
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        finished = aside / "finished"
        finished.mkdir()
        for path in list(aside.iterdir()):
            if path != finished:
                os.replace(path, finished / path.name)
        os.replace(finished, out)
        return
    for path in list(aside.iterdir()):
        os.replace(path, out / path.name)
