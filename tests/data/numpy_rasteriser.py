"""A rasteriser in plain NumPy, written apart from the library's: the tests' oracle and the benchmark's baseline.

Every (triangle, sample) pair within a bounding box becomes one row of an array; rows outside the triangle go, and of
the others the nearest for each sample stays. Both sides of a triangle are drawn, and what is nearer than the near
plane is cut off, triangle by triangle.
"""

from __future__ import annotations

import numpy as np

PAIRS_AT_ONCE = 1 << 21
PER_SAMPLE = 256
NEAR = 0.05


def sample_ids(scene, t: int, samples: int = 2) -> np.ndarray:
    """`(samples * H, samples * W)` object ids of frame `t`, 0 where the background or a distractor is seen."""
    corners, inverse_depth, labels = _corners(scene, t, samples)
    rows, columns = samples * scene.height, samples * scene.width
    limits = np.array([columns, rows])
    first = np.clip(-(-(corners.min(axis=1) - PER_SAMPLE // 2) // PER_SAMPLE), 0, limits)
    last = np.clip((corners.max(axis=1) - PER_SAMPLE // 2) // PER_SAMPLE, -1, limits - 1)
    extent = np.maximum(last - first + 1, 0)
    pairs = extent[:, 0] * extent[:, 1]
    ids, nearest = np.zeros(rows * columns, np.uint8), np.zeros(rows * columns)
    part = np.cumsum(pairs) // PAIRS_AT_ONCE
    for number in np.unique(part):
        chosen = np.flatnonzero((part == number) & (pairs > 0))
        triangle = np.repeat(chosen, pairs[chosen])
        within = np.arange(len(triangle)) - np.repeat(np.cumsum(pairs[chosen]) - pairs[chosen], pairs[chosen])
        column = first[triangle, 0] + within % extent[triangle, 0]
        row = first[triangle, 1] + within // extent[triangle, 0]
        weights = _barycentric(corners[triangle], np.stack([column, row], axis=1) * PER_SAMPLE + PER_SAMPLE // 2)
        inside = (weights >= 0).all(axis=1)
        depth = (weights[inside] * inverse_depth[triangle[inside]]).sum(axis=1)
        place, seen = (row * columns + column)[inside], labels[triangle[inside]]
        closer = depth > nearest[place]
        order = np.argsort(depth[closer], kind="stable")
        place, depth, seen = place[closer][order], depth[closer][order], seen[closer][order]
        nearest[place], ids[place] = depth, seen
    return ids.reshape(rows, columns)


def pixel_ids(scene, t: int) -> np.ndarray:
    """`(H, W)` ids: the commonest of each pixel's 2x2 samples, on a tie the first in reading order."""
    samples = sample_ids(scene, t)
    four = np.stack([samples[0::2, 0::2], samples[0::2, 1::2], samples[1::2, 0::2], samples[1::2, 1::2]])
    votes = (four[:, None] == four[None]).sum(axis=1)
    return np.take_along_axis(four, votes.argmax(axis=0)[None], axis=0)[0]


def _corners(scene, t: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(F, 3, 2)` corners in 1/256 sample, their `(F, 3)` inverse depths and `(F,)` labels, beyond the near plane."""
    points = _bent(scene.points, scene.bends[t, -1][scene.point_part])
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    world = np.einsum("vij,vj->vi", scene.poses[t, -1][scene.point_part], homogeneous)
    camera = scene.cameras[t, -1]
    view = (world @ camera[:, :3].T + camera[:, 3])[scene.faces]
    labels = scene.labels[scene.face_part]
    hidden = (view[..., 2] < NEAR).sum(axis=1)
    pieces, owners = [view[hidden == 0]], [labels[hidden == 0]]
    for face in np.flatnonzero((hidden > 0) & (hidden < 3)):
        polygon = _beyond(view[face], scene.faces[face])
        for n in range(2, len(polygon)):
            pieces.append(np.array([[polygon[0], polygon[n - 1], polygon[n]]]))
            owners.append(labels[face : face + 1])
    view = np.concatenate(pieces)
    middle = np.array([scene.width / 2, scene.height / 2])
    pixel = view[..., :2] * scene.focal / view[..., 2:] + middle
    snapped = np.floor(pixel * samples * PER_SAMPLE + 0.5).astype(np.int64)
    return snapped, 1.0 / view[..., 2], np.concatenate(owners)


def _bent(points: np.ndarray, bends: np.ndarray) -> np.ndarray:
    """Points twisted about z, then slid along x by curvature, and along x and y in a wave."""
    x, y, z = points.T
    twist, curve, amplitude, phase = bends.T
    turn = x + 1j * y
    turn = turn * np.exp(1j * twist * z)
    along = curve * z**2 + amplitude * np.sin(9 * z + phase)
    return np.stack([turn.real + along, turn.imag + amplitude * np.sin(7 * z + 1.3 * phase), z], axis=1)


def _beyond(triangle: np.ndarray, vertices: np.ndarray) -> list[np.ndarray]:
    """Corners of the part of a triangle `(3, 3)` that lies beyond the near plane (Sutherland and Hodgman, 1974)."""
    polygon = []
    for n in range(3):
        m = (n + 1) % 3
        if triangle[n, 2] >= NEAR:
            polygon.append(triangle[n])
        if (triangle[n, 2] < NEAR) != (triangle[m, 2] < NEAR):
            # From the same end for both faces at the edge, lest rounding part them.
            low, high = (n, m) if vertices[n] < vertices[m] else (m, n)
            share = (NEAR - triangle[low, 2]) / (triangle[high, 2] - triangle[low, 2])
            cut = triangle[low] + (triangle[high] - triangle[low]) * share
            polygon.append(np.array([cut[0], cut[1], NEAR]))
    return polygon


def _barycentric(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`(P, 3)` weights of points in triangles; negative where the triangle does not own the point."""
    area = _turn(corners[:, 0], corners[:, 1], corners[:, 2])
    weights = np.full((len(points), 3), -1.0)
    for corner in range(3):
        start, end = corners[:, (corner + 1) % 3], corners[:, (corner + 2) % 3]
        flipped = (area < 0)[:, None]
        start, end = np.where(flipped, end, start), np.where(flipped, start, end)
        opposite = _turn(start, end, points)
        step = end - start
        # Clockwise on the screen: a top edge runs right, a left edge runs up.
        owned = (step[:, 1] < 0) | ((step[:, 1] == 0) & (step[:, 0] > 0))
        kept = (area != 0) & ((opposite > 0) | ((opposite == 0) & owned))
        weights[kept, corner] = opposite[kept] / np.abs(area[kept])
    return weights


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
