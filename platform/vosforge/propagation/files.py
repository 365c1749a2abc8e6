"""Segmenting videos that lie in files: from frames and first masks to palette PNGs, overlays and contact sheets."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vosforge import pictures
from vosforge.clip import VOID
from vosforge.data.image_files import IMAGE_SUFFIXES, decode_mask, encode_mask
from vosforge.data.video_files import VIDEO_SUFFIXES, FrameFolder, VideoFile, open_video
from vosforge.errors import UserError
from vosforge.propagation.segmenter import Segmenter, segment_frame
from vosforge.reading import reading
from vosforge.storage import write_aside

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

    A folder with images in it is a video. Hidden files and folders are nothing.

    Args:
        video: a video file, a folder of frames, or a folder of such files and folders.
        mask: for a folder of videos, a folder of `<video>.png` and `<video>/<frame>.png`.

    Raises:
        UserError: when there is nothing, images and videos beside each other, two videos of one name, or masks of no
            video.
    """
    if not video.is_dir():
        return None
    entries = _entries(video)
    found = [entry for entry in entries if entry.is_dir() or entry.suffix.lower() in VIDEO_SUFFIXES]
    images = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir()]
    if images:
        mixed = [entry for entry in found if not entry.is_dir() or _holds_frames(entry)]
        if mixed:
            raise UserError(
                f"{video}: expected frames, or videos, found {images[0].name} beside {mixed[0].name}; "
                "move one of them elsewhere"
            )
        return None
    if not found:
        raise UserError(f"{video}: no frames, video files or folders of them in it")
    if not mask.is_dir():
        raise UserError(f"{mask}: expected a folder of <video>.png or <video>/<frame>.png beside the folder of videos")
    names = [entry.name if entry.is_dir() else entry.stem for entry in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"{video}: two videos are named {min(twice)}; rename one")
    masks = {entry.stem: entry for entry in _entries(mask) if entry.suffix.lower() == ".png" and not entry.is_dir()}
    return [
        VideoFiles(name, entry, mask / name if (mask / name).is_dir() else masks.get(name, mask / f"{name}.png"))
        for name, entry in zip(names, found, strict=True)
    ]


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what is hidden."""
    with reading(folder):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _holds_frames(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in _entries(folder))


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
            self.files = {path.stem: path for path in _entries(mask) if path.suffix.lower() == ".png"}
        if not self.files:
            raise UserError(f"{mask}: no such mask file or folder of masks")
        self._known: set[int] = set()
        self.source = mask

    def given(self, position: int, name: str, size: tuple[int, int]) -> np.ndarray | None:
        """The mask `(H, W)` of objects that enter at a frame, or None.

        Raises:
            UserError: for a mask that cannot be read, does not decode, is of another size, or, as a single file, has
                no object.
        """
        path = self.files.get("" if self.single and position == 0 else name)
        if path is None:
            return None
        with reading(path):
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
        out: folder of the masks, which appears when it is complete; until then it must not exist, or be empty.
        overlay: write `overlay.mp4` and `sheet.png` there too.
        short_side: pixels to which frames are reduced before they are segmented.
        fps: frames a second of the overlay.
        on_frame: hears how many frames are finished.

    Returns:
        How many frames it has.

    Raises:
        UserError: naming file and frame, for a video or mask that cannot be used; for a folder with something in it.
    """
    # What a link leads to is a folder that can be replaced.
    out = out.resolve()
    check_empty(out)
    with reading(files.video):
        source = open_video(files.video)
    masks = FirstMasks(files.mask)
    masks.check(source.names)
    chosen = {round(i * (len(source) - 1) / (_SHEET_PICTURES - 1)) for i in range(_SHEET_PICTURES)}
    shown, count, size = [], 0, None
    _remove_left_behind(out)
    with write_aside(out) as aside:
        aside.mkdir()
        with pictures.Film(aside / OVERLAY, fps) if overlay else contextlib.nullcontext() as film:
            for t, (name, frame) in enumerate(_frames(source, files.video)):
                size = size or frame.shape[:2]
                if frame.shape[:2] != size:
                    raise UserError(f"{files.video}: frame {name} is {frame.shape[:2]}, the first one is {size}")
                labels = segment_frame(segmenter, frame, masks.given(t, name, size), short_side)
                (aside / f"{name}.png").write_bytes(encode_mask(labels))
                count += 1
                if overlay:
                    told = ", ".join(f"{i}: {quality:.2f}" for i, quality in segmenter.quality.items())
                    tinted = pictures.captioned(pictures.overlay(frame, labels), told and f"quality {told}")
                    film.add(tinted)
                    if t in chosen:
                        shown.append(tinted)
                on_frame(count)
        if count < len(source):
            raise UserError(f"{files.video}: ends after {count} frames, expected {len(source)}; repair the file")
        masks.check_used()
        if overlay:
            sheet = pictures.contact_sheet([(f"{files.name}: {count} frames", shown)], height=160)
            pictures.write_png(aside / SHEET, sheet)
    return count


def check_empty(out: Path) -> None:
    """Refuse a folder for masks in which masks of two runs, or masks and other files, would mix.

    Raises:
        UserError: when there is something in it, or it is a file.
    """
    if out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"{out}: expected a new or empty folder for the masks, found files in it; delete or choose another"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: expected a folder for the masks, found a file; choose another")


def _frames(source: FrameFolder | VideoFile, video: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and frames of a video; an error where its files cannot be read."""
    with reading(video):
        yield from source


def _remove_left_behind(out: Path) -> None:
    """Delete what runs that were killed had begun to write aside for this folder."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.*.aside"):
        number = path.name.removeprefix(f".{out.name}.").removesuffix(".aside")
        if number.isdecimal() and (int(number) == os.getpid() or not _runs(int(number))):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether a process of that id runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
