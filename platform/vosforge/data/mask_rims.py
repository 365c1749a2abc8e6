"""Ids that interpolation made: values that line the edges between two others and fill no area of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import cv2
import numpy as np

from vosforge.clip import VOID

_RIM_SHARE = 0.02
# Of a rim's pixels, how many lie between a lower and a higher value.
_BETWEEN_SHARE = 0.9
# The rim of a disc three pixels in radius.
_FEWEST = 16
# An edge without the value is four pixels wide in windows of five, a rim one or two.
_MOST_BARE = 2
_CORE, _AROUND = np.ones((3, 3), np.uint8), np.ones((5, 5), np.uint8)


def rim_values(masks: Sequence[np.ndarray]) -> list[int]:
    """Values that are nothing but the rims of interpolated masks.

    Such a value has, over all masks, next to no pixel in the middle of 3x3 equal ones; lies between a lower and a
    higher value nearly everywhere, within two pixels; and lines, with others of its kind, most of the edge between
    those two in the masks that have it. A thin object may do the first two, and then leaves most of its neighbour's
    outline bare.

    Args:
        masks: `(H, W)` uint8 each, of one video. 255 is void and borders on nothing.

    Returns:
        Ascending values between 0 and 255; empty for sound masks.
    """
    counts = sum((_histogram(mask) for mask in masks), np.zeros(256, np.int64))
    levels = np.flatnonzero(counts[:VOID])
    inner = [int(k) for k in levels[1:-1] if counts[k] >= _FEWEST]
    if not inner:
        return []
    solid = sum((_histogram(mask, _solid(mask)) for mask in masks), np.zeros(256, np.int64))
    thin = [k for k in inner if solid[k] < _RIM_SHARE * counts[k]]
    if not thin:
        return []
    edges: dict[int, Counter[tuple[int, int]]] = {k: Counter() for k in thin}
    for mask in masks:
        low, high = _neighbours(mask)
        for k in thin:
            at = mask == k
            pairs, found = np.unique(low[at].astype(np.int64) << 8 | high[at], return_counts=True)
            edges[k].update({(p >> 8, p & 255): n for p, n in zip(pairs.tolist(), found.tolist(), strict=True)})
    lined: Counter[tuple[int, int]] = Counter()
    main: dict[int, tuple[int, int]] = {}
    for k in thin:
        between = Counter({(low, high): n for (low, high), n in edges[k].items() if low < k < high})
        if between.total() >= _BETWEEN_SHARE * counts[k]:
            main[k], found = between.most_common(1)[0]
            lined[main[k]] += found
    soft = set()
    for edge, found in lined.items():
        rims = [k for k in main if main[k] == edge]
        if sum(_bare(mask, *edge) for mask in masks if np.isin(mask, rims).any()) <= _MOST_BARE * found:
            soft.add(edge)
    return [k for k, edge in main.items() if edge in soft]


def without_rims(mask: np.ndarray, rims: Sequence[int]) -> np.ndarray:
    """A mask whose rims have the nearest other id.

    Rims are the pixels of values that `rim_values` names, and those of other ids that lie between a lower and a higher
    value and in no 3x3 of their own: there a rim's value is an id that exists elsewhere.

    Args:
        mask: `(H, W)` uint8.
        rims: values.
    """
    low, high = _neighbours(mask)
    # No two areas are so near to each other that one pixel's neighbours are in the middle of both.
    areas = cv2.dilate(np.where(_solid(mask), mask, 0).astype(np.uint8), _CORE)
    return filled(mask, ((areas != mask) & (low < mask) & (mask < high)) | np.isin(mask, rims))


def filled(mask: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """A mask whose lost pixels have the value of the nearest other one; as it is when all or none are lost.

    Args:
        mask: `(H, W)`.
        lost: `(H, W)` bool.
    """
    if lost.all() or not lost.any():
        return mask
    _, labels = cv2.distanceTransformWithLabels(lost.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    values = np.zeros(labels.max() + 1, mask.dtype)
    values[labels[~lost]] = mask[~lost]
    return values[labels]


def _histogram(mask: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    chosen = None if where is None else where.astype(np.uint8)
    return cv2.calcHist([mask], [0], chosen, [256], [0, 256]).ravel().astype(np.int64)


def _solid(mask: np.ndarray) -> np.ndarray:
    return cv2.erode(mask, _CORE) == cv2.dilate(mask, _CORE)


def _neighbours(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value within two pixels, void left out."""
    without = np.where(mask == VOID, 0, mask).astype(np.uint8)
    return cv2.erode(mask, _AROUND), cv2.dilate(without, _AROUND)


def _bare(mask: np.ndarray, low: int, high: int) -> int:
    """Pixels at the edge of two values where none between them is near."""
    lowest, highest = _neighbours(mask)
    near = cv2.dilate(((mask > low) & (mask < high)).astype(np.uint8), _AROUND)
    return int(((lowest == low) & (highest == high) & (near == 0)).sum())
