"""Pictures for people: overlays, contact sheets, videos."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vosforge.errors import UserError
from vosforge.storage import write_aside

_CAPTION_HEIGHT = 18


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
    height, width = pictures[0].shape[:2]
    # Codecs want even sizes.
    size = (width + width % 2, height + height % 2)
    with write_aside(path) as aside:
        # OpenCV chooses the container by the name's ending.
        video = aside.with_suffix(".mp4")
        writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
        if not writer.isOpened():
            raise UserError(f"{path}: this build of OpenCV cannot write mp4 video; install opencv-python")
        for picture in pictures:
            even = cv2.copyMakeBorder(picture, 0, size[1] - height, 0, size[0] - width, cv2.BORDER_REPLICATE)
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        writer.release()
        video.replace(aside)


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = picture.shape[0] > height
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
