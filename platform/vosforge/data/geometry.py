"""Geometry of clips: maps of the plane, one-interpolation warps, and the choice of objects."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from vosforge.data.thin_plate import between_nodes

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
    frame, enlarge = reduced(frame, float(np.sqrt(abs(np.linalg.det(matrix[:2, :2])))))
    scaled = matrix if enlarge is None else matrix @ enlarge
    warped = cv2.warpAffine(frame, scaled[:2], target, flags=cv2.INTER_LINEAR, borderMode=border, borderValue=_FILL)
    return warped, cv2.warpAffine(mask, matrix[:2], target, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)


def reduced(frame: np.ndarray, shrink: float) -> tuple[np.ndarray, np.ndarray | None]:
    """A frame made smaller by area where a map shrinks it to less than half; interpolation alone would alias.

    Args:
        frame: `(H, W, 3)` uint8.
        shrink: the length in the target of one pixel.

    Returns:
        The frame, and the `(3, 3)` map from its pixels to those of the one given; None where nothing changed.
    """
    if shrink >= 0.5:
        return frame, None
    height, width = frame.shape[:2]
    small = (max(round(width * shrink), 1), max(round(height * shrink), 1))
    x, y = width / small[0], height / small[1]
    # Pixel centres lie at whole numbers, so the corner of the picture is at -1/2 in both grids.
    enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return cv2.resize(frame, small, interpolation=cv2.INTER_AREA), enlarge


def resample(
    picture: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    interpolation: int,
    bend: np.ndarray | None = None,
    border: int = cv2.BORDER_CONSTANT,
    window: tuple[slice, slice] | None = None,
) -> np.ndarray:
    """A picture through all of its geometry at once: one sampling grid, one interpolation.

    Args:
        picture: `(H, W, 3)` uint8 RGB, or `(H, W)` uint8 ids.
        matrix: `(3, 3)` map, source to target pixels; affine or projective.
        size: (height, width) of the target.
        interpolation: OpenCV's mode.
        bend: nodes of a thin-plate spline that bends the target after the map, for its whole size.
        border: OpenCV's border mode; outside a constant border lies the mean colour of photographs, or id 0.
        window: rows and columns of the target to make; all of them when left out.

    Returns:
        `(height, width, 3)` or `(height, width)` uint8, or the window of it.
    """
    rows, columns = window or (slice(0, size[0]), slice(0, size[1]))
    outside = {"borderMode": border, "borderValue": _FILL if picture.ndim == 3 else 0}
    if bend is not None:
        backward = np.linalg.inv(matrix)
        grid = between_nodes(cv2.perspectiveTransform(bend, backward / backward[2, 2]), size)
        return cv2.remap(picture, grid[rows, columns], None, interpolation, **outside)
    target = (columns.stop - columns.start, rows.stop - rows.start)
    matrix = affine(shift=(-columns.start, -rows.start)) @ matrix
    if np.array_equal(matrix[2], (0, 0, 1)):
        return cv2.warpAffine(picture, matrix[:2], target, flags=interpolation, **outside)
    return cv2.warpPerspective(picture, matrix, target, flags=interpolation, **outside)


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points `(N, 2)` (x, y) through a `(3, 3)` map."""
    ends = np.hstack([points, np.ones((len(points), 1))]) @ matrix.T
    return ends[:, :2] / ends[:, 2:]


def box_corners(box: tuple[int, int, int, int]) -> np.ndarray:
    """`(4, 2)` corners (x, y) of a box (x, y, width, height)."""
    x, y, width, height = box
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], float)


def only_ids(masks: np.ndarray, ids: Iterable[int]) -> np.ndarray:
    """Masks `(..., H, W)` uint8 in which all but the given ids is background, so that void is no object."""
    table = np.zeros(256, np.uint8)
    kept = np.fromiter(ids, np.uint8)
    table[kept] = kept
    return table[masks]


def keep_objects(
    masks: np.ndarray, most: int, rng: np.random.Generator, smallest: float = _SMALLEST_OBJECT
) -> np.ndarray:
    """Keep some of the objects that are large enough in the first frame, numbered 1..K.

    Args:
        masks: `(T, H, W)` uint8 ids.
        most: K at most; which ones is drawn from `rng`.
        smallest: least share of the first frame that an object covers.

    Returns:
        `(T, H, W)` uint8.
    """
    counts = cv2.calcHist([np.ascontiguousarray(masks[0])], [0], None, [256], [0, 256]).ravel()
    counts[0] = 0
    present = np.flatnonzero(counts >= max(smallest * masks[0].size, 1))
    kept = np.sort(rng.permutation(present)[:most])
    table = np.zeros(256, np.uint8)
    table[kept] = np.arange(1, len(kept) + 1)
    return cv2.LUT(np.ascontiguousarray(masks).reshape(len(masks), -1), table).reshape(masks.shape)
