"""Frames and masks as files: JPEG and PNG bytes to arrays and back.

Masks are decoded by palette *index*; OpenCV would turn a palette PNG into colours. Frames are RGB in memory and
BGR only inside OpenCV calls.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from vosforge.errors import UserError
from vosforge.pictures import davis_palette

JPEG_QUALITY = 95
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MOST_GREY_LEVELS = 24


def encode_frame(frame: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """`(H, W, 3)` uint8 RGB -> JPEG bytes."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decode_frame(data: bytes, name: str) -> np.ndarray:
    """JPEG or PNG bytes -> `(H, W, 3)` uint8 RGB.

    Raises:
        UserError: naming the file when the bytes are no image.
    """
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if bgr is None:
        raise UserError(f"{name}: expected a JPEG or PNG image, found {len(data)} bytes that do not decode")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def encode_mask(mask: np.ndarray) -> bytes:
    """`(H, W)` uint8 ids -> palette PNG bytes in the field's colours."""
    image = Image.fromarray(mask, mode="L")
    image.putpalette(davis_palette().reshape(-1).tolist())
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=False, compress_level=6)
    return stream.getvalue()


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """PNG bytes -> `(H, W)` uint8 ids.

    A palette PNG gives its indices. A grey PNG gives its values, but 0/255 alone means one object (0/1). RGB is
    taken only when grey in disguise (equal channels).

    Raises:
        UserError: naming the file, when the bytes are no image, are coloured, or are anti-aliased (so many
            levels that they cannot be ids).
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged PNG chunks.
        raise UserError(f"{name}: expected a mask PNG, found {len(data)} bytes that do not decode") from error
    if image.mode == "P":
        return np.asarray(image)
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    array = np.asarray(image)
    if array.ndim == 3:
        if (array[..., 0] != array[..., 1]).any() or (array[..., 0] != array[..., 2]).any():
            raise UserError(f"{name}: expected a palette or grey mask of object ids, found RGB colours; convert it")
        array = array[..., 0]
    if array.dtype != np.uint8:
        raise UserError(f"{name}: expected an 8-bit mask of object ids, found {array.dtype}; convert it")
    levels = np.unique(array)
    if set(levels) <= {0, 255}:
        return (array == 255).astype(np.uint8)
    ids = levels[levels < 255]
    if len(levels) > _MOST_GREY_LEVELS or (255 in levels and len(ids) - 1 != ids.max()):
        raise UserError(
            f"{name}: expected object ids, found {len(levels)} grey levels: an anti-aliased mask; threshold it"
        )
    return np.ascontiguousarray(array)


def object_statistics(mask: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """What a sampler filters on.

    Args:
        mask: `(H, W)` uint8 ids.

    Returns:
        ids present (ascending, without background), their areas in pixels, and their boxes as consecutive
        (x0, y0, x1, y1), end exclusive.
    """
    counts = np.bincount(mask.ravel(), minlength=256)
    ids = [int(i) for i in np.flatnonzero(counts) if i]
    boxes: list[int] = []
    for i in ids:
        x, y, width, height = cv2.boundingRect((mask == i).astype(np.uint8))
        boxes += [x, y, x + width, y + height]
    return ids, [int(counts[i]) for i in ids], boxes
