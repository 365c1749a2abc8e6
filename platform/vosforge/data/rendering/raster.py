"""Which triangle is seen where: vertices placed, projected and clipped, and the z-buffer.

Vertices are snapped to 1/256 of a sample and edges are tested in 64-bit integers with the top-left rule, so two
triangles that share an edge neither overlap nor leave a gap, on any machine.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from vosforge.data.rendering.numerics import JIT, PI, sine

NEAR = 0.05
SUBSAMPLE = 256
# Products of two differences of such coordinates, and their sums over a row, fit into 64 bits.
_FAR_AWAY = float(1 << 28)


@njit(**JIT, forceinline=True)
def _bend(x, y, z, nx, ny, nz, twist, curve, amplitude, phase):
    """A bent point and its normal, by the inverse transpose of the deformation's Jacobian."""
    cos, sin = sine(twist * z + PI / 2), sine(twist * z)
    nz -= twist * (x * ny - y * nx)
    x, y = cos * x - sin * y, sin * x + cos * y
    nx, ny = cos * nx - sin * ny, sin * nx + cos * ny
    x += curve * z * z + amplitude * sine(9.0 * z + phase)
    y += amplitude * sine(7.0 * z + 1.3 * phase)
    nz -= (2.0 * curve * z + 9.0 * amplitude * sine(9.0 * z + phase + PI / 2)) * nx
    nz -= 7.0 * amplitude * sine(7.0 * z + 1.3 * phase + PI / 2) * ny
    return x, y, z, nx, ny, nz


@njit(**JIT)
def place(points, normals, point_part, poses, normal_poses, bends, vertices):
    """Carry vertices and normals from their parts' spaces to world space.

    A deformed part is first twisted about its z axis by `bends[p, 0]` rad a unit, then its slices across z move along
    x by `bends[p, 1]` z^2 and along x and y in a wave of amplitude `bends[p, 2]` and phase `bends[p, 3]`.

    Args:
        points: `(V, 3)` in part space.
        normals: `(V, 3)` in part space.
        point_part: `(V,)` part of each vertex.
        poses: `(P, 3, 4)` part to world.
        normal_poses: `(P, 3, 3)` cofactors of the poses, which carry normals.
        bends: `(P, 4)`.
        vertices: `(>= V, 8)`; the first six columns of its first V rows are filled with world positions and world
            normals, which are not of unit length.
    """
    for v in range(points.shape[0]):
        part = point_part[v]
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        nx, ny, nz = normals[v, 0], normals[v, 1], normals[v, 2]
        twist, curve, amplitude = bends[part, 0], bends[part, 1], bends[part, 2]
        if twist != 0.0 or curve != 0.0 or amplitude != 0.0:
            x, y, z, nx, ny, nz = _bend(x, y, z, nx, ny, nz, twist, curve, amplitude, bends[part, 3])
        for axis in range(3):
            moved = poses[part, axis, 0] * x + poses[part, axis, 1] * y + poses[part, axis, 2] * z
            vertices[v, axis] = moved + poses[part, axis, 3]
            turned = normal_poses[part, axis, 0] * nx + normal_poses[part, axis, 1] * ny
            vertices[v, 3 + axis] = turned + normal_poses[part, axis, 2] * nz


@njit(**JIT, forceinline=True)
def _depth(camera, x, y, z):
    return camera[2, 0] * x + camera[2, 1] * y + camera[2, 2] * z + camera[2, 3]


@njit(**JIT, forceinline=True)
def _snap(camera, view, x, y, z, inverse):
    """Column and row, in 1/256 sample, of a point with this inverse depth; `view` is focal, centre x and y, samples."""
    right = camera[0, 0] * x + camera[0, 1] * y + camera[0, 2] * z + camera[0, 3]
    down = camera[1, 0] * x + camera[1, 1] * y + camera[1, 2] * z + camera[1, 3]
    column = (right * view[0] * inverse + view[1]) * (view[3] * SUBSAMPLE)
    row = (down * view[0] * inverse + view[2]) * (view[3] * SUBSAMPLE)
    return (
        math.floor(min(max(column, -_FAR_AWAY), _FAR_AWAY) + 0.5),
        math.floor(min(max(row, -_FAR_AWAY), _FAR_AWAY) + 0.5),
    )


@njit(**JIT)
def project(vertices, count, camera, view, screen, inverse_depth):
    """Carry vertices from world space to the sample grid.

    Args:
        vertices: `(>= count, 8)`, world positions first.
        count: vertices to project.
        camera: `(3, 4)` world to camera (x right, y down, z forward).
        view: focal length in pixels, column and row of the optical axis in pixels, samples a pixel side.
        screen: `(>= count, 2)` int64, filled with column and row in 1/256 sample; untouched before the near plane.
        inverse_depth: `(>= count,)` float64, filled with 1 / depth, or -1 for vertices nearer than `NEAR`.

    Returns:
        Whether any vertex is nearer than `NEAR`.
    """
    hidden = False
    for v in range(count):
        x, y, z = vertices[v, 0], vertices[v, 1], vertices[v, 2]
        depth = _depth(camera, x, y, z)
        if depth < NEAR:
            inverse_depth[v] = -1.0
            hidden = True
            continue
        inverse_depth[v] = 1.0 / depth
        screen[v, 0], screen[v, 1] = _snap(camera, view, x, y, z, inverse_depth[v])
    return hidden


@njit(**JIT)
def count_crossing(faces, count, inverse_depth):
    """How many of the first `count` faces have corners on both sides of the near plane."""
    crossing = 0
    for t in range(count):
        near = 0
        for corner in range(3):
            near += inverse_depth[faces[t, corner]] < 0.0
        crossing += 0 < near < 3
    return crossing


@njit(**JIT)
def clip_near(geometry, points, count, camera, view, origins, shares):
    """Append what lies beyond the near plane of the faces that cross it, two faces and two vertices at most each.

    Corners of a face that is cut lie where its edges meet the near plane. An edge is always cut from its vertex with
    the smaller number to the other, so faces that share it share the cut.

    Args:
        geometry: `shading.Geometry`, with room after the scene's own faces and vertices.
        points: vertices of the scene.
        count: faces of the scene.
        camera: as for `project`.
        view: as for `project`.
        origins: `(room, 2)` int32, filled with the ends of the edge on which each new vertex lies.
        shares: `(room,)` float64, filled with how far along it lies.

    Returns:
        Faces in all.
    """
    faces, face_part, face_uv_area, vertices, screen, inverse_depth = geometry
    polygon = np.zeros(4, np.int32)
    last, total = points, count
    for t in range(count):
        hidden = 0
        for corner in range(3):
            hidden += inverse_depth[faces[t, corner]] < 0.0
        if hidden == 0 or hidden == 3:
            continue
        size = 0
        for corner in range(3):
            a, b = faces[t, corner], faces[t, (corner + 1) % 3]
            if inverse_depth[a] >= 0.0:
                polygon[size] = a
                size += 1
            if (inverse_depth[a] < 0.0) != (inverse_depth[b] < 0.0):
                a, b = min(a, b), max(a, b)
                origins[last - points, 0], origins[last - points, 1] = a, b
                shares[last - points] = _cut(vertices, screen, inverse_depth, a, b, last, camera, view)
                polygon[size] = last
                size += 1
                last += 1
        for fan in range(2, size):
            i, j, k = polygon[0], polygon[fan - 1], polygon[fan]
            faces[total, 0], faces[total, 1], faces[total, 2] = i, j, k
            face_part[total] = face_part[t]
            face_uv_area[total] = abs(
                (vertices[j, 6] - vertices[i, 6]) * (vertices[k, 7] - vertices[i, 7])
                - (vertices[j, 7] - vertices[i, 7]) * (vertices[k, 6] - vertices[i, 6])
            )
            total += 1
    return total


@njit(**JIT)
def _cut(vertices, screen, inverse_depth, a, b, new, camera, view):
    """Make vertex `new` where the edge from a to b meets the near plane; returns how far from a that is."""
    start = _depth(camera, vertices[a, 0], vertices[a, 1], vertices[a, 2])
    end = _depth(camera, vertices[b, 0], vertices[b, 1], vertices[b, 2])
    share = (NEAR - start) / (end - start)
    for column in range(vertices.shape[1]):
        vertices[new, column] = vertices[a, column] + (vertices[b, column] - vertices[a, column]) * share
    inverse_depth[new] = 1.0 / NEAR
    screen[new, 0], screen[new, 1] = _snap(
        camera, view, vertices[new, 0], vertices[new, 1], vertices[new, 2], 1.0 / NEAR
    )
    return share


@njit(**JIT)
def _owns_edge(step_x, step_y):
    """0 where samples on the edge belong to the triangle (top or left edge), else 1."""
    return 0 if step_x > 0 or (step_x == 0 and step_y > 0) else 1


@njit(**JIT)
def rasterise(faces, first, last, face_part, closed, screen, inverse_depth, triangle, nearest):
    """Add faces to the visibility buffer, whose start is -1 and 0.

    Faces of closed parts that face away are skipped, and so are faces with a corner before the near plane; what
    `clip_near` left of those comes after the scene's own faces.

    Args:
        faces: `(F, 3)` vertex indices.
        first: first face to draw.
        last: face to stop before.
        face_part: `(F,)`.
        closed: `(P,)` bool.
        screen: `(V, 2)` from `project`.
        inverse_depth: `(V,)` from `project`.
        triangle: `(rows, columns)` int32 of the sample grid, receives the face seen.
        nearest: `(rows, columns)` float32, receives 1 / depth of that face.
    """
    rows, columns = triangle.shape
    half = SUBSAMPLE // 2
    for t in range(first, last):
        # The three corners in the order that turns clockwise on the screen, which is how front faces arrive.
        i, j, k = faces[t, 0], faces[t, 2], faces[t, 1]
        if inverse_depth[i] < 0.0 or inverse_depth[j] < 0.0 or inverse_depth[k] < 0.0:
            continue
        area = (screen[j, 0] - screen[i, 0]) * (screen[k, 1] - screen[i, 1])
        area -= (screen[j, 1] - screen[i, 1]) * (screen[k, 0] - screen[i, 0])
        if area < 0 and not closed[face_part[t]]:
            j, k, area = k, j, -area
        if area <= 0:
            continue
        xi, yi, xj, yj, xk, yk = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1], screen[k, 0], screen[k, 1]
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
