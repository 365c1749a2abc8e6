"""Frames and masks as files: JPEG and PNG bytes to arrays and back.

Masks are decoded by palette *index*; OpenCV would turn a palette PNG into colours. Frames are RGB in memory and
BGR only inside OpenCV calls.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from vosforge.clip import VOID
from vosforge.errors import UserError
from vosforge.pictures import davis_palette
from vosforge.reading import reading

JPEG_QUALITY = 95
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MOST_GREY_LEVELS = 24
_EXIF, _HEADER, _ORIENTATION = b"Exif\x00\x00", 1 << 18, 0x0112


def encode_frame(frame: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """`(H, W, 3)` uint8 RGB -> JPEG bytes."""
    bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def decode_frame(data: bytes, name: str) -> np.ndarray:
    """JPEG or PNG bytes -> `(H, W, 3)` uint8 RGB, turned as a JPEG's EXIF orientation says.

    Raises:
        UserError: naming the file when the bytes are no image, or one of too many pixels.
    """
    with reading(name):
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if bgr is None:
        raise UserError(f"{name}: expected a JPEG or PNG image, found {len(data)} bytes that do not decode")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def is_turned(data: bytes) -> bool:
    """Whether JPEG bytes have an EXIF orientation by which viewers, and `decode_frame`, turn or mirror them."""
    if data.find(_EXIF, 0, _HEADER) < 0:
        return False
    try:
        return Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, 1) in range(2, 9)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        return False


def encode_mask(mask: np.ndarray) -> bytes:
    """`(H, W)` uint8 ids -> palette PNG bytes in the field's colours."""
    image = Image.fromarray(mask, mode="L")
    image.putpalette(davis_palette().reshape(-1).tolist())
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=False, compress_level=6)
    return stream.getvalue()


@dataclass(frozen=True)
class RawMask:
    """A mask file as it is stored, before its values are taken for ids.

    Attributes:
        coding: "palette", "grey" or "colour"; or "drawn", of shapes, which no interpolation can have softened.
        pixels: `(H, W)`: uint8 palette indices, grey levels or ids, or uint32 colours as 0xRRGGBB.
    """

    coding: str
    pixels: np.ndarray


def read_mask(data: bytes, name: str) -> RawMask:
    """Image bytes -> what they store. Pixels of equal red, green and blue are grey; transparency is left out.

    Raises:
        UserError: naming the file, when the bytes are no image, or one of too many pixels or of more than 8 bits a
            channel.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: cannot be read ({error})") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three for damaged PNG chunks.
        raise UserError(f"{name}: expected a mask PNG, found {len(data)} bytes that do not decode") from error
    if image.mode == "P":
        return RawMask("palette", np.asarray(image))
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    elif image.mode in ("PA", "CMYK", "YCbCr", "HSV", "LAB"):
        image = image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise UserError(f"{name}: expected an 8-bit mask of object ids, found {array.dtype}; convert it")
    if array.ndim == 2:
        return RawMask("grey", array)
    red, green, blue = (array[..., channel] for channel in range(3))
    if (red == green).all() and (red == blue).all():
        return RawMask("grey", np.ascontiguousarray(red))
    red, green, blue = (channel.astype(np.uint32) for channel in (red, green, blue))
    return RawMask("colour", (red << 16) | (green << 8) | blue)


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """PNG bytes -> `(H, W)` uint8 ids.

    A palette PNG gives its indices. A grey PNG gives its values, but 0/255 alone means one object (0/1). RGB is
    taken only when grey in disguise (equal channels). Masks of a whole video are judged together by
    `mask_lint.lint_masks`.

    Raises:
        UserError: naming the file, when the bytes are no image, are coloured, or are anti-aliased (so many
            levels that they cannot be ids).
    """
    raw = read_mask(data, name)
    if raw.coding == "palette":
        return raw.pixels
    if raw.coding == "colour":
        raise UserError(f"{name}: expected a palette or grey mask of object ids, found RGB colours; convert it")
    levels = grey_levels(raw.pixels)
    if set(levels) <= {0, VOID}:
        return (raw.pixels == VOID).astype(np.uint8)
    if not are_ids(raw.pixels, levels):
        raise UserError(
            f"{name}: expected object ids, found {len(levels)} grey levels: an anti-aliased mask; threshold it"
        )
    return np.ascontiguousarray(raw.pixels)


def grey_levels(pixels: np.ndarray) -> list[int]:
    """The values of an `(H, W)` uint8 picture, ascending."""
    # Ten times as fast as bincount, which makes 64-bit integers of the pixels first.
    return np.flatnonzero(cv2.calcHist([pixels], [0], None, [256], [0, 256])).tolist()


def are_ids(pixels: np.ndarray, levels: list[int]) -> bool:
    """Whether grey levels can be object ids rather than the soft rim of an anti-aliased object.

    Many levels cannot. Beside 255 (void), ids without a gap can, and small ids with gaps unless they look like a
    rim: nowhere 3 pixels thick, around an area of 255 that outweighs them.

    Args:
        pixels: `(H, W)` uint8.
        levels: its `grey_levels`.
    """
    if len(levels) > MOST_GREY_LEVELS:
        return False
    ids = [level for level in levels if 0 < level < VOID]
    if VOID not in levels or not ids or ids == list(range(1, len(ids) + 1)):
        return True
    if ids[-1] >= MOST_GREY_LEVELS:
        return False
    counts = np.bincount(pixels.ravel(), minlength=256)
    return bool(solid_counts(pixels)[1:VOID].any() or counts[1:VOID].sum() >= counts[VOID])


def solid_counts(pixels: np.ndarray) -> np.ndarray:
    """How many pixels of each value lie in the middle of 3x3 equal ones.

    Args:
        pixels: `(H, W)` uint8 or uint16; neighbours outside the picture do not count.

    Returns:
        `(256,)` or longer.
    """
    window = np.ones((3, 3), np.uint8)
    solid = cv2.erode(pixels, window) == cv2.dilate(pixels, window)
    return np.bincount(pixels[solid], minlength=256)


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
