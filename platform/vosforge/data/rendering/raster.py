"""Which triangle is seen where: projection and the z-buffer.

Vertices are snapped to 1/256 of a sample and edges are tested in 64-bit integers with the top-left rule, so two
triangles that share an edge neither overlap nor leave a gap, on any machine.
"""

from __future__ import annotations

import math

from numba import njit

from vosforge.data.rendering.numerics import JIT

NEAR = 0.05
SUBSAMPLE = 256
_FAR_AWAY = 1e7


@njit(**JIT)
def project(points, point_object, poses, camera, focal, centre_x, centre_y, samples, world, screen, inverse_depth):
    """Carry vertices from object space to world space and to the sample grid.

    Args:
        points: `(V, 3)` vertices in object space.
        point_object: `(V,)` index of each vertex's object.
        poses: `(N, 3, 4)` object to world.
        camera: `(3, 4)` world to camera (x right, y down, z forward).
        focal: focal length in pixels.
        centre_x: column of the optical axis in pixels.
        centre_y: row of the optical axis in pixels.
        samples: samples a pixel side.
        world: `(V, 3)` float64, filled with world positions.
        screen: `(V, 2)` int64, filled with column and row in 1/256 sample; untouched before the near plane.
        inverse_depth: `(V,)` float64, filled with 1 / depth, or -1 for vertices nearer than `NEAR`.
    """
    scale = samples * SUBSAMPLE
    for v in range(points.shape[0]):
        pose = poses[point_object[v]]
        for axis in range(3):
            world[v, axis] = (
                pose[axis, 0] * points[v, 0] + pose[axis, 1] * points[v, 1] + pose[axis, 2] * points[v, 2]
            ) + pose[axis, 3]
        x, y, z = world[v, 0], world[v, 1], world[v, 2]
        depth = camera[2, 0] * x + camera[2, 1] * y + camera[2, 2] * z + camera[2, 3]
        if depth < NEAR:
            inverse_depth[v] = -1.0
            continue
        inverse = 1.0 / depth
        inverse_depth[v] = inverse
        right = camera[0, 0] * x + camera[0, 1] * y + camera[0, 2] * z + camera[0, 3]
        down = camera[1, 0] * x + camera[1, 1] * y + camera[1, 2] * z + camera[1, 3]
        column = (right * focal * inverse + centre_x) * scale
        row = (down * focal * inverse + centre_y) * scale
        screen[v, 0] = math.floor(min(max(column, -_FAR_AWAY), _FAR_AWAY) + 0.5)
        screen[v, 1] = math.floor(min(max(row, -_FAR_AWAY), _FAR_AWAY) + 0.5)


@njit(**JIT)
def _owns_edge(step_x, step_y):
    """0 where samples on the edge belong to the triangle (top or left edge), else 1."""
    return 0 if step_x > 0 or (step_x == 0 and step_y > 0) else 1


@njit(**JIT)
def rasterise(faces, screen, inverse_depth, triangle, nearest):
    """Fill the visibility buffer.

    Meshes must be closed and wound outwards: triangles that face away are skipped. A triangle with a vertex nearer
    than the near plane is dropped whole, not clipped.

    Args:
        faces: `(F, 3)` vertex indices.
        screen: `(V, 2)` from `project`.
        inverse_depth: `(V,)` from `project`.
        triangle: `(rows, columns)` int32 of the sample grid, filled with the face seen, -1 for none.
        nearest: `(rows, columns)` float32, filled with 1 / depth of that face, 0 for none.
    """
    rows, columns = triangle.shape
    triangle[:] = -1
    nearest[:] = 0.0
    half = SUBSAMPLE // 2
    for t in range(faces.shape[0]):
        # The three corners in the order that turns clockwise on the screen, which is how front faces arrive.
        i, j, k = faces[t, 0], faces[t, 2], faces[t, 1]
        if inverse_depth[i] < 0.0 or inverse_depth[j] < 0.0 or inverse_depth[k] < 0.0:
            continue
        xi, yi, xj, yj, xk, yk = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1], screen[k, 0], screen[k, 1]
        area = (xj - xi) * (yk - yi) - (yj - yi) * (xk - xi)
        if area <= 0:
            continue
        left = max((min(xi, xj, xk) + half - 1) >> 8, 0)
        right = min((max(xi, xj, xk) - half) >> 8, columns - 1)
        top = max((min(yi, yj, yk) + half - 1) >> 8, 0)
        bottom = min((max(yi, yj, yk) - half) >> 8, rows - 1)
        if left > right or top > bottom:
            continue
        x, y = (left << 8) + half, (top << 8) + half
        ijx, ijy, jkx, jky, kix, kiy = yi - yj, xj - xi, yj - yk, xk - xj, yk - yi, xi - xk
        ij_row = ijx * (x - xi) + ijy * (y - yi) - _owns_edge(ijx, ijy)
        jk_row = jkx * (x - xj) + jky * (y - yj) - _owns_edge(jkx, jky)
        ki_row = kix * (x - xk) + kiy * (y - yk) - _owns_edge(kix, kiy)
        per_area = 1.0 / area
        to_j, to_k = inverse_depth[j] - inverse_depth[i], inverse_depth[k] - inverse_depth[i]
        slope_x = (kix * to_j + ijx * to_k) * per_area
        slope_y = (kiy * to_j + ijy * to_k) * per_area
        near_row = inverse_depth[i] + slope_x * (x - xi) + slope_y * (y - yi)
        for row in range(top, bottom + 1):
            ij, jk, ki, near = ij_row, jk_row, ki_row, near_row
            for column in range(left, right + 1):
                if (ij | jk | ki) >= 0 and near > nearest[row, column]:
                    nearest[row, column] = near
                    triangle[row, column] = t
                ij += ijx << 8
                jk += jkx << 8
                ki += kix << 8
                near += slope_x * SUBSAMPLE
            ij_row += ijy << 8
            jk_row += jky << 8
            ki_row += kiy << 8
            near_row += slope_y * SUBSAMPLE
