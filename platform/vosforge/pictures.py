"""Pictures for people: overlays, contact sheets, videos."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from PIL import Image

from vosforge.errors import UserError
from vosforge.storage import write_aside

_CAPTION_HEIGHT = 18
# Brightness of a frame under a map where the map is 0.
_GROUND = 0.6


def davis_palette() -> np.ndarray:
    """The `(256, 3)` uint8 colours of the field: bit j of the index goes to channel j mod 3, high bits first."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((index >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def overlay(frame: np.ndarray, mask: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Objects tinted in the palette's colours, with their outlines.

    Args:
        frame: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` uint8 ids.
        strength: of the tint, in [0, 1].

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    colours = davis_palette()[mask]
    mixed = (frame * (1 - strength) + colours * strength).astype(np.uint8)
    result = np.where(mask[..., None] > 0, mixed, frame)
    outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    result[outline & (mask > 0)] = colours[outline & (mask > 0)]
    return result


def heat(
    frame: np.ndarray, values: np.ndarray, cell: tuple[int, int] | None = None, strength: float = 0.85
) -> np.ndarray:
    """A map laid over a frame: dark and grey where it is 0, glowing where it is 1.

    Args:
        frame: `(H, W, 3)` uint8 RGB.
        values: `(h, w)` in [0, 1], cells that cover the frame.
        cell: (row, column) of the map that gets a cross.
        strength: of the glow where the map is 1, in [0, 1].

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        UserError: for a map of another form or with values outside [0, 1].
    """
    if values.ndim != 2 or not (values.min() >= 0 and values.max() <= 1):
        found = f"{values.shape} with {values.min():.4g} to {values.max():.4g}"
        raise UserError(f"a map of heat must be (h, w) in [0, 1], found {found}")
    height, width = frame.shape[:2]
    grown = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    colours = cv2.applyColorMap((255 * grown).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = frame @ np.array([0.299, 0.587, 0.114])
    # The square root lets low values show at all.
    share = strength * np.sqrt(grown)
    result = (_GROUND * grey[..., None] * (1 - share) + colours * share).astype(np.uint8)
    return result if cell is None else cross(result, cell, values.shape)


def cross(frame: np.ndarray, cell: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """A frame with a cross at the middle of a cell.

    Args:
        frame: `(H, W, 3)` uint8 RGB.
        cell: (row, column) of it.
        cells: (h, w), how many cover the frame.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    y, x = (int((place + 0.5) * side / number) for place, side, number in zip(cell, frame.shape, cells, strict=False))
    result = frame.copy()
    size = max(7, min(frame.shape[:2]) // 16)
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.drawMarker(result, (x, y), colour, cv2.MARKER_CROSS, size, thickness, cv2.LINE_AA)
    return result


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A copy of `(H, W, 3)` uint8 RGB with a line of text at its lower edge; the picture itself without text."""
    if not text:
        return picture
    picture, place = picture.copy(), (6, picture.shape[0] - 8)
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, thickness, cv2.LINE_AA)
    return picture


def contact_sheet(rows: list[tuple[str, list[np.ndarray]]], height: int = 96) -> np.ndarray:
    """Rows of pictures under each other, each row with a caption.

    Args:
        rows: caption and pictures `(H, W, 3)` uint8 RGB; all rows of one length look best.
        height: of a picture on the sheet, in pixels.

    Returns:
        `(H', W', 3)` uint8 RGB.
    """
    strips = []
    for caption, pictures in rows:
        scaled = [_to_height(picture, height) for picture in pictures]
        strip = np.concatenate(scaled, axis=1)
        title = np.full((_CAPTION_HEIGHT, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(title, caption, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        strips.append(np.concatenate([title, strip]))
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    return np.concatenate(padded)


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write `(H, W, 3)` uint8 RGB as PNG, aside and into place."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", optimize=True)
    with write_aside(path) as aside:
        aside.write_bytes(stream.getvalue())


def write_video(path: str | Path, pictures: list[np.ndarray], fps: float = 10.0) -> None:
    """Write `(H, W, 3)` uint8 RGB pictures of one size as mp4, aside and into place.

    Raises:
        UserError: when this OpenCV cannot write mp4.
    """
    with Film(path, fps) as film:
        for picture in pictures:
            film.add(picture)


class Film:
    """An mp4 that is written picture by picture, aside, and takes its place when the block succeeds.

    It is MPEG-4 part 2, the codec that every build of OpenCV writes: those of PyPI come without an encoder for H.264,
    and say so on stderr, past Python, when one is asked for.

    Args:
        path: of the video.
        fps: frames a second.
    """

    def __init__(self, path: str | Path, fps: float = 10.0):
        self.path = Path(path)
        self.fps = fps
        self._open = contextlib.ExitStack()
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> Film:
        self._aside = self._open.enter_context(write_aside(self.path))
        # OpenCV chooses the container by the name's ending.
        self._video = self._aside.with_suffix(".mp4")
        return self

    def add(self, picture: np.ndarray) -> None:
        """The next `(H, W, 3)` uint8 RGB picture, of the same size as the others.

        Raises:
            UserError: when this OpenCV cannot write mp4.
        """
        height, width = picture.shape[:2]
        # Codecs want even sizes.
        size = (width + width % 2, height + height % 2)
        if self._writer is None:
            self._writer = cv2.VideoWriter(str(self._video), cv2.VideoWriter_fourcc(*"mp4v"), self.fps, size)
            if not self._writer.isOpened():
                raise UserError(f"{self.path}: this build of OpenCV cannot write mp4 video; install opencv-python")
        even = cv2.copyMakeBorder(picture, 0, size[1] - height, 0, size[0] - width, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        try:
            if kind is None and self._video.exists():
                self._video.replace(self._aside)
            self._open.__exit__(kind, error, trace)
        finally:
            self._video.unlink(missing_ok=True)


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = picture.shape[0] > height
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
