"""Geometry of clips: affine maps, one-interpolation warps, and the choice of objects."""

from __future__ import annotations

import cv2
import numpy as np

_SMALLEST_OBJECT = 0.002
_FILL = (124, 116, 104)


def affine(
    scale: float = 1.0, rotation: float = 0.0, shear: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """`(3, 3)` map: shear, rotate (both in degrees) and scale about the origin, then shift by (x, y) pixels."""
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    linear = scale * np.array([[c, -s], [s, c]]) @ np.array([[1, np.tan(np.radians(shear))], [0, 1]])
    return np.array([[*linear[0], shift[0]], [*linear[1], shift[1]], [0, 0, 1]])


def warp(
    frame: np.ndarray, mask: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int = cv2.BORDER_CONSTANT
) -> tuple[np.ndarray, np.ndarray]:
    """Frame and mask through one map: linear interpolation for the frame, nearest for the mask.

    Args:
        frame: `(H, W, 3)` uint8.
        mask: `(H, W)` uint8 ids; 0 outside.
        matrix: `(3, 3)` affine, source to target pixels.
        size: (height, width) of the target.
        border: OpenCV's border mode for the frame; outside a constant border lies the mean colour of photographs,
            as in the STCN family. A mirrored border would show objects that the mask does not have.

    Returns:
        The warped frame and mask.
    """
    target = (size[1], size[0])
    scaled = matrix
    # Shrinking by linear interpolation alone would alias: reduce by area first, and take that out of the map.
    shrink = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    if shrink < 0.5:
        small = (max(round(frame.shape[1] * shrink), 1), max(round(frame.shape[0] * shrink), 1))
        frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
        x, y = mask.shape[1] / small[0], mask.shape[0] / small[1]
        # Pixel centres lie at whole numbers, so the corner of the picture is at -1/2 in both grids.
        scaled = matrix @ np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    warped = cv2.warpAffine(frame, scaled[:2], target, flags=cv2.INTER_LINEAR, borderMode=border, borderValue=_FILL)
    return warped, cv2.warpAffine(mask, matrix[:2], target, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)


def keep_objects(masks: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Keep some of the objects that are large enough in the first frame, numbered 1..K.

    Args:
        masks: `(T, H, W)` uint8 ids.
        most: K at most; which ones is drawn from `rng`.

    Returns:
        `(T, H, W)` uint8.
    """
    counts = np.bincount(masks[0].ravel(), minlength=256)
    counts[0] = 0
    present = np.flatnonzero(counts >= _SMALLEST_OBJECT * masks[0].size)
    kept = np.sort(rng.permutation(present)[:most])
    table = np.zeros(256, np.uint8)
    table[kept] = np.arange(1, len(kept) + 1)
    return table[masks]
