"""Shadow maps: what each lamp sees, as 1 / depth (Williams, "Casting curved shadows on curved surfaces", 1978)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from vosforge.data.rendering import motion, raster
from vosforge.data.rendering.numerics import JIT, lengths

# A map sees a ball of this radius about this point; what lies beyond is lit.
_MIDDLE = np.array([0.0, 1.5, 0.0])
_RADIUS = 6.0


class ShadowMaps(NamedTuple):
    """Maps of K lamps, each `size` texels wide and high."""

    cameras: np.ndarray  # (K, 3, 4) world to lamp
    focals: np.ndarray  # (K,) texels
    nearest: np.ndarray  # (K, size, size) float32, 1 / depth; 0 where nothing is


class ShadowBuffers:
    """Working memory for the maps of a scene."""

    def __init__(self, lamps: np.ndarray, size: int, vertices: int) -> None:
        distance = lengths(lamps - _MIDDLE)[:, 0]
        focals = size / 2 * np.sqrt(np.maximum(distance * distance - _RADIUS * _RADIUS, 1.0)) / _RADIUS
        cameras = motion.look_at(lamps, np.broadcast_to(_MIDDLE, lamps.shape))
        self.maps = ShadowMaps(cameras, focals, np.zeros((len(lamps), size, size), np.float32))
        self.triangle = np.empty((size, size), np.int32)
        self.screen = np.zeros((vertices, 2), np.int64)
        self.inverse_depth = np.empty(vertices)

    def fill(
        self, faces: np.ndarray, count: int, face_part: np.ndarray, closed: np.ndarray, vertices: np.ndarray
    ) -> None:
        """Draw the first `count` faces as each lamp sees them."""
        size = len(self.triangle)
        for camera, focal, nearest in zip(*self.maps, strict=True):
            view = (float(focal), size / 2, size / 2, 1)
            raster.project(vertices, len(self.screen), camera, view, self.screen, self.inverse_depth)
            nearest[:] = 0.0
            raster.rasterise(
                faces, 0, count, face_part, closed, self.screen, self.inverse_depth, self.triangle, nearest
            )


@njit(**JIT, forceinline=True)
def lit_share(cameras, focals, maps, lamp, x, y, z, nx, ny, nz, facing):
    """Share in [0, 1] of a lamp's light that reaches a point, from the four texels about it.

    The point is first moved off its surface, along the normal and the more the lamp grazes it, by about the width of
    a texel, lest surfaces shade themselves.
    """
    focal, size = focals[lamp], maps.shape[1]
    depth = cameras[lamp, 2, 0] * x + cameras[lamp, 2, 1] * y + cameras[lamp, 2, 2] * z + cameras[lamp, 2, 3]
    offset = (2.5 - 1.5 * facing) * depth / focal
    x, y, z = x + nx * offset, y + ny * offset, z + nz * offset
    depth = cameras[lamp, 2, 0] * x + cameras[lamp, 2, 1] * y + cameras[lamp, 2, 2] * z + cameras[lamp, 2, 3]
    right = cameras[lamp, 0, 0] * x + cameras[lamp, 0, 1] * y + cameras[lamp, 0, 2] * z + cameras[lamp, 0, 3]
    down = cameras[lamp, 1, 0] * x + cameras[lamp, 1, 1] * y + cameras[lamp, 1, 2] * z + cameras[lamp, 1, 3]
    inverse = 1.0 / depth
    column = right * focal * inverse + 0.5 * size - 0.5
    row = down * focal * inverse + 0.5 * size - 0.5
    left, top = math.floor(column), math.floor(row)
    if left < 0 or top < 0 or left >= size - 1 or top >= size - 1:
        return 1.0
    across, below = column - left, row - top
    limit = inverse * (1.0 + 1.0 / focal)
    share = 0.0
    if maps[lamp, top, left] <= limit:
        share += (1.0 - across) * (1.0 - below)
    if maps[lamp, top, left + 1] <= limit:
        share += across * (1.0 - below)
    if maps[lamp, top + 1, left] <= limit:
        share += (1.0 - across) * below
    if maps[lamp, top + 1, left + 1] <= limit:
        share += across * below
    return share
