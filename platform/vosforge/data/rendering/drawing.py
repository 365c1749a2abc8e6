"""One frame of a scene in linear light: place, project, clip, rasterise, shade."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vosforge.data.rendering import raster, shading
from vosforge.data.rendering.numerics import LINEAR_OF_BYTE, cross, product
from vosforge.data.rendering.shadows import ShadowBuffers
from vosforge.data.rendering.textures import pack_pyramids

if TYPE_CHECKING:
    from vosforge.data.rendering.scene import Scene

# The background plane stands across the y axis; one texture covers a square of twice this half side.
BACKGROUND_DEPTH = 12.0
BACKGROUND_HALF_SIDE = 8.0
# Texels of a shadow map a pixel of the frame's longer side; a map sees more than the frame does.
_SHADOW_FINENESS = 4 / 3


class Buffers:
    """A scene made ready for drawing, with working memory that is kept from frame to frame."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        samples = (shading.SAMPLES * scene.height, shading.SAMPLES * scene.width)
        self.triangle = np.empty(samples, np.int32)
        self.nearest = np.empty(samples, np.float32)
        self.light = np.empty((scene.height, scene.width, 3), np.float32)
        self.ids = np.empty((scene.height, scene.width), np.uint8)
        self.faces_drawn = 0
        self.seen: tuple[int, int] | None = None
        self.closed = scene.closed
        self.origins, self.shares = np.empty((0, 2), np.int32), np.empty(0)
        vertices, faces = len(scene.points), len(scene.faces)
        self.geometry = shading.Geometry(
            scene.faces,
            scene.face_part,
            uv_areas(scene.uvs, scene.faces),
            np.concatenate([np.zeros((vertices, 6)), scene.uvs], axis=1),
            np.zeros((vertices, 2), np.int64),
            np.empty(vertices),
        )
        self.materials = _materials(scene)
        side = max(int(max(scene.height, scene.width) * _SHADOW_FINENESS), 16)
        self.shadows = ShadowBuffers(scene.lamps[: scene.shadows], side, vertices)
        self.make_room(faces // 64)

    def make_room(self, crossing: int) -> None:
        """Make the arrays long enough to clip this many faces."""
        scene, room = self.scene, 2 * crossing
        vertices, faces = len(scene.points) + room, len(scene.faces) + room
        lengths = (faces, faces, faces, vertices, vertices, vertices)
        self.geometry = shading.Geometry(*map(_lengthened, self.geometry, lengths))
        self.origins, self.shares = np.zeros((room, 2), np.int32), np.zeros(room)


def _materials(scene: Scene) -> shading.Materials:
    texels, starts, sizes = pack_pyramids(scene.textures)
    texture = scene.part_texture
    parts = np.stack([scene.labels, starts[texture], sizes[texture], scene.gloss_doublings], axis=1)
    background = np.array([[0, starts[-1], sizes[-1], 0]])
    return shading.Materials(
        np.concatenate([parts.astype(np.int64), background]), scene.gloss, LINEAR_OF_BYTE.astype(np.float32)[texels]
    )


def _lengthened(array: np.ndarray, length: int) -> np.ndarray:
    out = np.zeros((length, *array.shape[1:]), array.dtype)
    out[: len(array)] = array[:length]
    return out


def place(scene: Scene, t: int, moment: int, vertices: np.ndarray) -> None:
    """Fill the first rows of `(>= V, 8)` vertices with world positions and normals at a moment of frame `t`."""
    poses = scene.poses[t, moment]
    raster.place(
        scene.points,
        scene.normals,
        scene.point_part,
        poses,
        _cofactors(poses[..., :3]),
        scene.bends[t, moment],
        vertices,
    )


def see(scene: Scene, t: int, buffers: Buffers, moment: int = -1) -> None:
    """Place, project, clip and rasterise a moment of frame `t`: fills all of the buffers but `light` and `ids`."""
    place(scene, t, moment, buffers.geometry.vertices)
    project(scene, t, buffers, moment)
    buffers.triangle[:], buffers.nearest[:] = -1, 0.0
    rasterise(buffers, 0, buffers.faces_drawn)
    buffers.seen = (t, moment % scene.moments)


def project(scene: Scene, t: int, buffers: Buffers, moment: int = -1) -> None:
    """Project what is placed, and clip it at the near plane."""
    geometry, camera, points, faces = buffers.geometry, scene.cameras[t, moment], len(scene.points), len(scene.faces)
    view = (float(scene.focal), scene.width / 2, scene.height / 2, shading.SAMPLES)
    buffers.faces_drawn = faces
    buffers.closed = scene.closed
    if not raster.project(geometry.vertices, points, camera, view, geometry.screen, geometry.inverse_depth):
        return
    # Of a solid that is cut open one sees the inside.
    buffers.closed = scene.closed.copy()
    buffers.closed[scene.point_part[geometry.inverse_depth[:points] < 0]] = False
    crossing = raster.count_crossing(geometry.faces, faces, geometry.inverse_depth)
    if 2 * crossing > len(buffers.shares):
        buffers.make_room(crossing)
    buffers.faces_drawn = raster.clip_near(
        buffers.geometry, points, faces, camera, view, buffers.origins, buffers.shares
    )


def rasterise(buffers: Buffers, first: int, last: int) -> None:
    """Add projected faces to the visibility buffer."""
    geometry = buffers.geometry
    raster.rasterise(
        geometry.faces,
        first,
        last,
        geometry.face_part,
        buffers.closed,
        geometry.screen,
        geometry.inverse_depth,
        buffers.triangle,
        buffers.nearest,
    )


def draw(scene: Scene, t: int, buffers: Buffers) -> None:
    """Draw frame `t`: fills `buffers.light`, linear RGB, and `buffers.ids`; the rest holds the mask's moment."""
    buffers.light[:] = 0.0
    for moment in range(scene.moments):
        see(scene, t, buffers, moment)
        geometry, eye = buffers.geometry, camera_position(scene.cameras[t, moment])
        buffers.shadows.fill(geometry.faces, len(scene.faces), geometry.face_part, scene.closed, geometry.vertices)
        lighting = shading.Lighting(
            tuple(eye.tolist()),
            np.concatenate([scene.lamps, scene.lamp_colours], axis=1),
            tuple(scene.ambient.tolist()),
            tuple(_background_plane(scene, scene.cameras[t, moment], eye).reshape(-1).tolist()),
            float(scene.background_gain),
            buffers.shadows.maps,
        )
        weight = 1.0 / scene.moments
        shading.shade(
            geometry,
            buffers.materials,
            buffers.closed,
            lighting,
            buffers.triangle,
            buffers.nearest,
            weight,
            buffers.light,
        )
    label(buffers, buffers.ids)


def label(buffers: Buffers, ids: np.ndarray) -> None:
    """Fill `(H, W)` uint8 with the objects that the visibility buffer shows."""
    shading.label_pixels(buffers.geometry.face_part, buffers.materials.parts, buffers.triangle, ids)


def camera_position(camera: np.ndarray) -> np.ndarray:
    """World position `(3,)` of a `(3, 4)` world-to-camera matrix."""
    return -product(camera[:, :3].T, camera[:, 3:])[:, 0]


def pixel_rays(scene: Scene, camera: np.ndarray) -> np.ndarray:
    """`(3, 3)` matrix from (x, y, 1) in pixels to world directions of unit depth."""
    focal = scene.focal
    ray = np.array([[1 / focal, 0, -scene.width / 2 / focal], [0, 1 / focal, -scene.height / 2 / focal], [0, 0, 1.0]])
    return product(np.ascontiguousarray(camera[:, :3].T), ray)


def _background_plane(scene: Scene, camera: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """Homography `(3, 3)` from pixels to texture coordinates of the background, which repeats every 1."""
    towards = pixel_rays(scene, camera)
    ahead, span = BACKGROUND_DEPTH - eye[1], 2 * BACKGROUND_HALF_SIDE
    across = (eye[0] * towards[1] + ahead * towards[0]) / span + 0.5 * towards[1]
    down = -(eye[2] * towards[1] + ahead * towards[2]) / span + 0.5 * towards[1]
    return np.stack([across, down, towards[1]])


def _cofactors(matrices: np.ndarray) -> np.ndarray:
    """Cofactors of `(P, 3, 3)` matrices: the inverse transpose times the determinant."""
    a, b, c = matrices[..., 0], matrices[..., 1], matrices[..., 2]
    return np.stack([cross(b, c), cross(c, a), cross(a, b)], axis=-1)


def uv_areas(uvs: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Twice the area of each face in texture space, `(F,)`."""
    corners = np.concatenate([uvs, np.zeros((len(uvs), 1))], axis=1)
    first = corners[faces[:, 0]]
    return np.abs(cross(corners[faces[:, 1]] - first, corners[faces[:, 2]] - first)[:, 2])
