"""One frame of a scene in linear light: project, rasterise, shade."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vosforge.data.rendering import raster, shading
from vosforge.data.rendering.numerics import cross, product

if TYPE_CHECKING:
    from vosforge.data.rendering.scene import Scene

# The background plane stands across the y axis; one texture covers a square of twice this half side.
BACKGROUND_DEPTH = 12.0
BACKGROUND_HALF_SIDE = 8.0


class Buffers:
    """Working memory for frames of one size and vertex count, to be kept from frame to frame."""

    def __init__(self, height: int, width: int, vertices: int) -> None:
        samples = (shading.SAMPLES * height, shading.SAMPLES * width)
        self.triangle = np.empty(samples, np.int32)
        self.nearest = np.empty(samples, np.float32)
        self.light = np.empty((height, width, 3), np.float32)
        self.ids = np.empty((height, width), np.uint8)
        self.world = np.empty((vertices, 3))
        self.screen = np.zeros((vertices, 2), np.int64)
        self.inverse_depth = np.empty(vertices)


def see(scene: Scene, t: int, buffers: Buffers) -> None:
    """Project and rasterise frame `t`: fills all of the buffers but `light` and `ids`."""
    raster.project(
        scene.points,
        scene.point_object,
        scene.poses[t],
        scene.cameras[t],
        scene.focal,
        scene.width / 2,
        scene.height / 2,
        shading.SAMPLES,
        buffers.world,
        buffers.screen,
        buffers.inverse_depth,
    )
    raster.rasterise(scene.faces, buffers.screen, buffers.inverse_depth, buffers.triangle, buffers.nearest)


def draw(scene: Scene, t: int, buffers: Buffers) -> None:
    """Draw frame `t`: fills `buffers.light`, linear RGB, and `buffers.ids`."""
    see(scene, t, buffers)
    eye = camera_position(scene.cameras[t])
    surfaces = shading.Surfaces(
        scene.faces,
        scene.face_object,
        scene.face_uv_area,
        scene.uvs,
        scene.normals,
        buffers.world,
        buffers.screen,
        buffers.inverse_depth,
        scene.poses[t],
        scene.texels,
        scene.texture_start,
        scene.texture_size,
        scene.gloss,
        scene.gloss_doublings,
    )
    lighting = shading.Lighting(
        eye, scene.lamp, scene.lamp_colour, scene.ambient, _background_plane(scene, t, eye), scene.background_gain
    )
    shading.shade(surfaces, lighting, buffers.triangle, buffers.light, buffers.ids)


def camera_position(camera: np.ndarray) -> np.ndarray:
    """World position `(3,)` of a `(3, 4)` world-to-camera matrix."""
    return -product(camera[:, :3].T, camera[:, 3:])[:, 0]


def _background_plane(scene: Scene, t: int, eye: np.ndarray) -> np.ndarray:
    """Homography `(3, 3)` from pixels to texture coordinates of the background, which repeats every 1."""
    focal = scene.focal
    ray = np.array([[1 / focal, 0, -scene.width / 2 / focal], [0, 1 / focal, -scene.height / 2 / focal], [0, 0, 1.0]])
    towards = product(np.ascontiguousarray(scene.cameras[t][:, :3].T), ray)
    ahead, span = BACKGROUND_DEPTH - eye[1], 2 * BACKGROUND_HALF_SIDE
    across = (eye[0] * towards[1] + ahead * towards[0]) / span + 0.5 * towards[1]
    down = -(eye[2] * towards[1] + ahead * towards[2]) / span + 0.5 * towards[1]
    return np.stack([across, down, towards[1]])


def uv_areas(uvs: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Twice the area of each face in texture space, `(F,)`."""
    corners = np.concatenate([uvs, np.zeros((len(uvs), 1))], axis=1)
    first = corners[faces[:, 0]]
    return np.abs(cross(corners[faces[:, 1]] - first, corners[faces[:, 2]] - first)[:, 2])
