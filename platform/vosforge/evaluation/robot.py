"""The robot of DAVIS interactive: it draws scribbles where a prediction is wrong, as a user would.

S. Caelles et al.: "The 2018 DAVIS Challenge on Video Object Segmentation", 2018, section 3; what the paper leaves open
(sizes, numbers of points, which ids are drawn) follows the official service's behaviour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import skimage
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.special import gammaln, xlog1py, xlogy

from vosforge.clip import VOID
from vosforge.errors import UserError

Stroke = dict[str, Any]
"""One line drawn on a frame: `path`, a list of [x, y] in [0, 1], and `object_id`, 0 for background."""


@dataclass(frozen=True)
class Robot:
    """Draws where a prediction is wrong.

    The error of an id is where the truth has it and the prediction does not; the background is an id too, so a false
    positive is crossed by a background stroke. Every error is opened with a disc, thinned to its medial axis, and the
    longest line through each connected part of that becomes a smooth stroke, a Bézier curve with the line's pixels as
    control points; a curve that would leave the error is drawn as the line itself, which the official robot does not
    do. Void is no id and never crossed.

    Attributes:
        kernel: diameter of the disc as a share of the square root of the error's area. Where nothing is left, the
            disc shrinks by a tenth until something is; up to a radius of 1 pixel there is no opening.
        largest_radius: of the disc, in pixels.
        least_pixels: parts of the medial axis with fewer pixels are not drawn.
        points: of a stroke; longer lines stay as they are.

    Raises:
        UserError: for numbers out of range.
    """

    kernel: float = 0.2
    largest_radius: float = 16.0
    least_pixels: int = 4
    points: int = 1000

    def __post_init__(self) -> None:
        if not 0 <= self.kernel < 1 or not 0 <= self.largest_radius < math.inf:
            found = f"kernel {self.kernel} and largest_radius {self.largest_radius}"
            raise UserError(f"robot: expected a kernel in [0, 1) and a radius of at least 0, found {found}")
        if self.least_pixels < 1 or self.points < 2:
            found = f"least_pixels {self.least_pixels} and points {self.points}"
            raise UserError(f"robot: expected at least 1 pixel and 2 points, found {found}")

    def draw(self, truth: np.ndarray, prediction: np.ndarray, objects: Sequence[int]) -> list[Stroke]:
        """Strokes over the errors of one frame.

        Args:
            truth: `(H, W)` uint8 ids; 255 is void unless it is among the objects.
            prediction: `(H, W)` uint8 ids.
            objects: ids that the video has; the background is drawn too.

        Returns:
            Strokes, background first, then objects in their order; empty where there is no error worth a stroke.

        Raises:
            UserError: when the masks are not of one size.
        """
        if truth.ndim != 2 or truth.shape != prediction.shape:
            raise UserError(f"robot: expected two masks (H, W) of one size, found {truth.shape} and {prediction.shape}")
        seen = np.ones(truth.shape, bool) if VOID in objects else truth != VOID
        size = np.array(truth.shape[::-1], float)
        strokes = []
        for k in (0, *objects):
            error = (truth == k) & (prediction != k) & seen
            for line in self.lines(error):
                strokes.append({"path": (self._smooth(line, error) / size).tolist(), "object_id": int(k)})
        return strokes

    def _smooth(self, line: np.ndarray, error: np.ndarray) -> np.ndarray:
        """The line as a curve; as it is where the curve would cut a corner of the error and mark what is right."""
        curve = bezier(line, self.points)
        columns, rows = np.rint(curve).astype(int).T
        return curve if error[rows, columns].all() else line.astype(float)

    def lines(self, error: np.ndarray) -> list[np.ndarray]:
        """The lines through an error: pixels (x, y), `(N, 2)` each.

        Args:
            error: `(H, W)` bool.
        """
        if not error.any():
            return []
        # Ties between pixels are broken at random: a fixed seed makes the strokes a function of the error. The
        # margin keeps the frame's border a border of the error.
        opened = np.pad(self._opened(error), 1)
        return longest_lines(skimage.morphology.medial_axis(opened, rng=0)[1:-1, 1:-1], self.least_pixels)

    def _opened(self, error: np.ndarray) -> np.ndarray:
        """The error without what the disc does not fit into."""
        image = error.astype(np.uint8)
        radius = min(self.kernel * math.sqrt(np.count_nonzero(error)) / 2, self.largest_radius)
        while radius > 1:
            opened = cv2.morphologyEx(image, cv2.MORPH_OPEN, _disc(radius))
            if opened.any():
                return opened > 0
            radius *= 0.9
        return error


def longest_lines(skeleton: np.ndarray, least_pixels: int = 1) -> list[np.ndarray]:
    """The longest line through each connected part of a skeleton.

    Pixels that touch are joined, over corners too; cycles are opened at a longest edge (a minimum spanning tree), and
    the longest line is the path of most pixels between two ends of the tree.

    Args:
        skeleton: `(H, W)` bool.
        least_pixels: smaller parts are left out.

    Returns:
        Pixels (x, y) in the order of the line, `(N, 2)` int each.
    """
    rows, columns = np.nonzero(skeleton)
    if not len(rows):
        return []
    tree = minimum_spanning_tree(_neighbours(skeleton, rows, columns))
    tree = tree + tree.T
    count, part = connected_components(tree, directed=False)
    sizes = np.bincount(part, minlength=count)
    lines = []
    for p in np.flatnonzero(sizes >= least_pixels):
        far, _ = _farthest(tree, int(np.argmax(part == p)))
        end, before = _farthest(tree, far)
        path = [end]
        while path[-1] != far:
            path.append(int(before[path[-1]]))
        lines.append(np.stack([columns[path], rows[path]], axis=1))
    return lines


def bezier(points: np.ndarray, count: int = 1000) -> np.ndarray:
    """The Bézier curve whose control points are given, `(count, 2)`; `(N, 2)` points with N above count stay."""
    if len(points) > count:
        return points.astype(float)
    n = len(points) - 1
    i, t = np.arange(n + 1)[None], np.linspace(0, 1, count)[:, None]
    # Bernstein's polynomials by their logarithms: the binomials of long lines exceed a float.
    weights = np.exp(gammaln(n + 1) - gammaln(i + 1) - gammaln(n - i + 1) + xlogy(i, t) + xlog1py(n - i, -t))
    return weights @ points


def _disc(radius: float) -> np.ndarray:
    reach = np.arange(-int(radius), int(radius) + 1)
    return (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.uint8)


def _neighbours(skeleton: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> csr_array:
    """Distances between pixels that touch, `(N, N)`."""
    index = np.full(np.add(skeleton.shape, 2), -1)
    index[rows + 1, columns + 1] = np.arange(len(rows))
    starts, ends, lengths = [], [], []
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other = index[rows + 1 + dy, columns + 1 + dx]
        starts.append(np.flatnonzero(other >= 0))
        ends.append(other[other >= 0])
        lengths.append(np.full(len(ends[-1]), math.hypot(dy, dx)))
    edges = np.concatenate(lengths), (np.concatenate(starts), np.concatenate(ends))
    return coo_array(edges, shape=(len(rows), len(rows))).tocsr()


def _farthest(tree: csr_array, start: int) -> tuple[int, np.ndarray]:
    """The pixel of most steps from another one, and each pixel's step before it."""
    order, before = breadth_first_order(tree, start, directed=False)
    # Breadth first, those reached last are farthest.
    return int(order[-1]), before
