"""Thin-plate splines: smooth random bends of a frame.

A spline takes a place in the bent frame to the place in the flat one whose colour it shows, as resampling wants it.
It is evaluated on a grid of every few pixels and interpolated between them: maps that follow it can be applied to the
few nodes, and the error stays far below what the bend itself moves.
"""

from __future__ import annotations

import cv2
import numpy as np

from vosforge.errors import UserError

# Pixels between nodes.
STRIDE = 4
_TRIALS = 50
# Below this share of its area a part of the frame counts as folded.
_THINNEST = 0.1
_NOTHING = np.float32(1e-12)


class ThinPlate:
    """The smoothest map that takes given places to given places, in shares of the frame's width and height.

    Args:
        bent: `(K, 2)` places (x, y) in the bent frame, K >= 3 and not all on one line.
        flat: `(K, 2)` where they came from.
    """

    def __init__(self, bent: np.ndarray, flat: np.ndarray):
        count = len(bent)
        system = np.zeros((count + 3, count + 3))
        system[:count, :count] = _kernel(np.square(bent[:, None] - bent[None]).sum(axis=-1))
        system[:count, count] = system[count, :count] = 1
        system[:count, count + 1 :] = bent
        system[count + 1 :, :count] = bent.T
        self.centres = bent
        self.weights = np.linalg.solve(system, np.vstack([flat - bent, np.zeros((3, 2))]))

    @classmethod
    def draw(cls, rng: np.random.Generator, points: int, spread: float) -> ThinPlate:
        """A random bend, as in the STCN family's training on static images.

        Control points lie anywhere in the frame and move by normal draws. Points that lie close together may pull
        the frame over itself, so that a part of it is seen twice and mirrored; such a bend is drawn again.

        Args:
            rng: every draw comes from it.
            points: number of control points, at least 3.
            spread: standard deviation of their displacement, as a share of the frame's size.

        Raises:
            UserError: when every draw folds.
        """
        for _ in range(_TRIALS):
            flat = rng.uniform(0, 1, (points, 2))
            bend = cls(flat + rng.normal(0, spread, (points, 2)), flat)
            if bend.thinnest() > _THINNEST:
                return bend
        raise UserError(
            f"thin-plate spline: {_TRIALS} draws of {points} points all fold the frame at a spread of {spread}; "
            "the field's is 0.02"
        )

    def thinnest(self, cells: int = 32) -> float:
        """The smallest factor by which the map scales an area, found on a grid; negative where it folds."""
        places = np.linspace(0, 1, cells + 1, dtype=np.float32)
        grid = self._on_grid(places, places)
        right, down = cells * np.diff(grid, axis=1)[:-1], cells * np.diff(grid, axis=0)[:, :-1]
        return float((right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]).min())

    def exactly(self, places: np.ndarray) -> np.ndarray:
        """`(N, 2)` places in the bent frame to `(N, 2)` in the flat one, by the closed form."""
        kernel = _kernel(np.square(places[:, None] - self.centres[None]).sum(axis=-1))
        affine = np.hstack([np.ones((len(places), 1)), places])
        return places + kernel @ self.weights[:-3] + affine @ self.weights[-3:]

    def nodes(self, size: tuple[int, int]) -> np.ndarray:
        """`(h + 2, w + 2, 2)` float32 pixels (x, y) at the centres of squares of `STRIDE` pixels.

        One row and column of nodes lies outside the frame on every side.
        """
        height, width = size
        # Places of control points are shares of the frame with its corner at 0; pixel centres are whole numbers.
        ys, xs = (((np.arange(-1, -(-side // STRIDE) + 1) + 0.5) * STRIDE / side).astype(np.float32) for side in size)
        return self._on_grid(xs, ys) * np.float32([width, height]) - np.float32(0.5)

    def _on_grid(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """`(len(ys), len(xs), 2)` float32."""
        centres, weights = self.centres.astype(np.float32), self.weights.astype(np.float32)
        across, down = np.square(xs - centres[:, :1]), np.square(ys - centres[:, 1:])
        squares = (down[:, :, None] + across[:, None, :]).reshape(len(centres), -1)
        kernel = _kernel(squares)
        # No matrix product: its rounding may depend on the number of threads.
        bends = np.einsum("kn,kc->cn", kernel, weights[:-3]).reshape(2, len(ys), len(xs)).transpose(1, 2, 0)
        flat = np.stack(np.broadcast_arrays(xs[None, :], ys[:, None]), axis=-1)
        constant, along_x, along_y = weights[-3:]
        return flat + bends + constant + xs[None, :, None] * along_x + ys[:, None, None] * along_y


def _kernel(squares: np.ndarray) -> np.ndarray:
    """r^2 log r of squared distances."""
    return 0.5 * squares * cv2.log(squares + _NOTHING).reshape(squares.shape)


def between_nodes(nodes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(H, W, 2)` float32: nodes of `ThinPlate.nodes`, or a map of them, interpolated to every pixel."""
    fine = cv2.resize(nodes, None, fx=STRIDE, fy=STRIDE, interpolation=cv2.INTER_LINEAR)
    return fine[STRIDE : STRIDE + size[0], STRIDE : STRIDE + size[1]]
