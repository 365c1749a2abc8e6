"""COCO's run lengths and polygons as masks.

Runs go down the columns and begin with background. A string packs them in digits of 6 bits, 5 of value and one that
says whether more follow, least first, offset by the character "0"; from the fourth run on it holds the difference to
the run before the last (cocoapi, common/maskApi.c, `rleFrString`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage.draw import polygon

from vosforge.errors import UserError


def unpack_counts(text: str) -> list[int]:
    """A compressed string of runs -> run lengths.

    Raises:
        UserError: when the string ends within a number or holds other characters.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise UserError(f"run lengths: expected characters '0' to 'o', found {character!r}")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise UserError("run lengths: expected whole numbers, found a string that ends within one")
    return counts


def decode_runs(runs: dict[str, Any]) -> np.ndarray:
    """`{"size": [H, W], "counts": string or list}` -> `(H, W)` bool.

    Raises:
        UserError: when the runs do not fill the size.
    """
    try:
        height, width = (int(n) for n in runs["size"])
        stored = runs["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"run lengths: expected size and counts, found {sorted(runs)}") from error
    counts = np.array(unpack_counts(stored) if isinstance(stored, str) else stored, np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise UserError(f"run lengths: expected {height * width} pixels, found runs of {int(counts.sum())}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def draw_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Polygons of one object, x0, y0, x1, y1 ... in pixels from the picture's corner -> `(H, W)` bool.

    A pixel belongs to a polygon when its centre lies inside.

    Raises:
        UserError: when a polygon has fewer than three corners, half a corner, or one that is nowhere.
    """
    mask = np.zeros(size, bool)
    for corners in polygons:
        points = np.asarray(corners, np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise UserError(f"polygon: expected at least 3 corners x, y, found {points.size} numbers")
        if not np.isfinite(points).all():
            raise UserError(f"polygon: expected finite numbers, found {points[~np.isfinite(points)][0]}")
        mask[polygon(points[1::2] - 0.5, points[0::2] - 0.5, size)] = True
    return mask
