"""What a renderer knows beside colours and ids: optical flow, depth, amodal masks, visible shares.

All belong to the mask's moment. A pixel's flow and depth are those of the first of its 2x2 samples, in reading order,
that shows what its mask names.
"""

from __future__ import annotations

from copy import copy

import numpy as np
from numba import njit

from vosforge.data.rendering import raster
from vosforge.data.rendering.drawing import (
    BACKGROUND_DEPTH,
    Buffers,
    camera_position,
    label,
    pixel_rays,
    place,
    rasterise,
    see,
)
from vosforge.data.rendering.numerics import JIT
from vosforge.data.rendering.scene import Scene
from vosforge.data.rendering.shading import blend, corner_weights

OUTPUTS = ("flow", "depth", "amodal", "visible")
"""Names of what else can be rendered."""


def depth(scene: Scene, t: int, buffers: Buffers) -> np.ndarray:
    """`(H, W)` float32 distance from the camera along its axis, in scene units; positive everywhere."""
    _show(scene, t, buffers)
    camera = scene.cameras[t, -1]
    out = np.empty((scene.height, scene.width), np.float32)
    ahead = float(BACKGROUND_DEPTH - camera_position(camera)[1])
    towards = tuple(pixel_rays(scene, camera)[1].tolist())
    _fill_depth(
        buffers.geometry.face_part, scene.labels, buffers.triangle, buffers.nearest, buffers.ids, ahead, towards, out
    )
    return out


def flow(scene: Scene, t: int, buffers: Buffers) -> tuple[np.ndarray, np.ndarray]:
    """How far in pixels what is seen moves until frame t + 1, whether or not it is still in sight there.

    Returns:
        `(H, W, 2)` float32 steps to the right and down; `(H, W)` bool, False where the point goes behind the camera.
        In the last frame nothing is valid.
    """
    steps = np.zeros((scene.height, scene.width, 2), np.float32)
    valid = np.zeros(steps.shape[:2], bool)
    if t + 1 >= scene.frames:
        return steps, valid
    _show(scene, t, buffers)
    geometry, camera, following = buffers.geometry, scene.cameras[t, -1], scene.cameras[t + 1, -1]
    moved = np.zeros_like(geometry.vertices)
    place(scene, t + 1, -1, moved)
    first = len(scene.points)
    a, b = moved[buffers.origins[:, 0]], moved[buffers.origins[:, 1]]
    moved[first : first + len(a)] = a + (b - a) * buffers.shares[:, None]
    _fill_flow(
        geometry.faces,
        geometry.face_part,
        scene.labels,
        geometry.screen,
        geometry.inverse_depth,
        moved,
        buffers.triangle,
        buffers.ids,
        camera_position(camera),
        pixel_rays(scene, camera),
        following,
        (float(scene.focal), scene.width / 2, scene.height / 2),
        steps,
        valid,
    )
    return steps, valid


def amodal(scene: Scene, t: int, buffers: Buffers) -> np.ndarray:
    """`(N, H, W)` bool: what each object, from id 1 on, would cover of the frame alone. Contains what it does cover."""
    _show(scene, t, buffers)
    own = copy(buffers)
    own.triangle, own.nearest = np.empty_like(buffers.triangle), np.empty_like(buffers.nearest)
    alone = np.empty_like(buffers.ids)
    masks = np.empty((scene.objects, scene.height, scene.width), bool)
    labels = scene.labels[buffers.geometry.face_part[: buffers.faces_drawn]]
    for number in range(scene.objects):
        own.triangle[:], own.nearest[:] = -1, 0.0
        for first, last in _runs(labels == number + 1):
            rasterise(own, first, last)
        label(own, alone)
        masks[number] = (alone == number + 1) | (buffers.ids == number + 1)
    return masks


def visible_shares(ids: np.ndarray, masks: np.ndarray) -> list[float]:
    """For each object in `(H, W)` ids, ascending, the share of its `(N, H, W)` amodal mask that is seen."""
    seen = np.bincount(ids.reshape(-1), minlength=len(masks) + 1)
    return [float(seen[n] / np.count_nonzero(masks[n - 1])) for n in range(1, len(masks) + 1) if seen[n]]


def _show(scene: Scene, t: int, buffers: Buffers) -> None:
    """See frame `t`, unless that was the last that the buffers saw."""
    if buffers.seen != (t, scene.moments - 1):
        see(scene, t, buffers)
    label(buffers, buffers.ids)


def _runs(chosen: np.ndarray) -> list[tuple[int, int]]:
    """Starts and ends of runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


@njit(**JIT, forceinline=True)
def _named_sample(face_part, labels, triangle, named, x, y):
    """Column and row of the first sample of a pixel that shows what the mask names."""
    for s in range(4):
        column, row = 2 * x + (s & 1), 2 * y + (s >> 1)
        t = triangle[row, column]
        if (labels[face_part[t]] if t >= 0 else 0) == named:
            return column, row
    return 2 * x, 2 * y


@njit(**JIT)
def _fill_depth(face_part, labels, triangle, nearest, ids, ahead, towards, out):
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            column, row = _named_sample(face_part, labels, triangle, ids[y, x], x, y)
            if triangle[row, column] >= 0:
                out[y, x] = 1.0 / nearest[row, column]
            else:
                px, py = 0.5 * column + 0.25, 0.5 * row + 0.25
                out[y, x] = ahead / (towards[0] * px + towards[1] * py + towards[2])


@njit(**JIT)
def _fill_flow(
    faces, face_part, labels, screen, inverse_depth, moved, triangle, ids, eye, rays, camera, view, steps, valid
):
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            column, row = _named_sample(face_part, labels, triangle, ids[y, x], x, y)
            px, py = 0.5 * column + 0.25, 0.5 * row + 0.25
            t = triangle[row, column]
            if t >= 0:
                i, j, k = faces[t, 0], faces[t, 1], faces[t, 2]
                wi, wj, wk, _ = corner_weights(screen, inverse_depth, i, j, k, column, row)
                wx, wy, wz = blend(moved, 0, i, j, k, wi, wj, wk)
            else:
                rx = rays[0, 0] * px + rays[0, 1] * py + rays[0, 2]
                ry = rays[1, 0] * px + rays[1, 1] * py + rays[1, 2]
                rz = rays[2, 0] * px + rays[2, 1] * py + rays[2, 2]
                far = (BACKGROUND_DEPTH - eye[1]) / ry
                wx, wy, wz = eye[0] + far * rx, eye[1] + far * ry, eye[2] + far * rz
            away = camera[2, 0] * wx + camera[2, 1] * wy + camera[2, 2] * wz + camera[2, 3]
            if away < raster.NEAR:
                continue
            right = camera[0, 0] * wx + camera[0, 1] * wy + camera[0, 2] * wz + camera[0, 3]
            down = camera[1, 0] * wx + camera[1, 1] * wy + camera[1, 2] * wz + camera[1, 3]
            steps[y, x, 0] = right / away * view[0] + view[1] - px
            steps[y, x, 1] = down / away * view[0] + view[2] - py
            valid[y, x] = True
