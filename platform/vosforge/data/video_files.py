"""Videos as files: a folder of frames or anything that OpenCV decodes, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from vosforge.clip import frame_order
from vosforge.data.image_files import IMAGE_SUFFIXES, decode_frame
from vosforge.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
NamedFrames = Iterator[tuple[str, np.ndarray]]


class FrameFolder:
    """Image files of a folder, in order of their numbers; iterating yields (stem, `(H, W, 3)` uint8 RGB)."""

    def __init__(self, folder: Path):
        files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
        self.files = sorted(files, key=lambda path: frame_order(path.stem))
        if not self.files:
            raise UserError(f"{folder}: no JPEG or PNG frames in it")

    @property
    def names(self) -> list[str]:
        """Of the frames, in order."""
        return [path.stem for path in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> NamedFrames:
        return ((path.stem, decode_frame(path.read_bytes(), str(path))) for path in self.files)


class VideoFile:
    """A video file; iterating yields (five-digit number, `(H, W, 3)` uint8 RGB)."""

    def __init__(self, path: Path):
        self.path = path
        capture = cv2.VideoCapture(str(path))
        self._length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if self._length < 1:
            raise UserError(f"{path}: expected a video file or a folder of frames, found nothing that decodes")

    @property
    def names(self) -> list[str]:
        """Of the frames, in order, as far as the file's header counts them."""
        return [f"{index:05d}" for index in range(self._length)]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> NamedFrames:
        capture = cv2.VideoCapture(str(self.path))
        try:
            index = 0
            while True:
                there, bgr = capture.read()
                if not there:
                    return
                yield f"{index:05d}", cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
                index += 1
        finally:
            capture.release()


def open_video(path: Path) -> FrameFolder | VideoFile:
    """A folder of frames or a video file.

    Raises:
        UserError: when it is missing or holds nothing that decodes.
    """
    if path.is_dir():
        return FrameFolder(path)
    if not path.is_file():
        raise UserError(f"{path}: no such video file or folder of frames")
    return VideoFile(path)
