"""A rasteriser in plain NumPy, written apart from the library's: the tests' oracle and the benchmark's baseline.

Every (triangle, sample) pair within a bounding box becomes one row of an array; rows outside the triangle go, and of
the others the nearest for each sample stays. Both sides of a triangle are drawn.
"""

from __future__ import annotations

import numpy as np

PAIRS_AT_ONCE = 1 << 21
PER_SAMPLE = 256


def sample_ids(scene, t: int, samples: int = 2) -> np.ndarray:
    """`(samples * H, samples * W)` object ids of frame `t`, 0 where the background is seen."""
    corners, inverse_depth = _corners(scene, t, samples)
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
        place, seen = (row * columns + column)[inside], scene.face_object[triangle[inside]] + 1
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


def _corners(scene, t: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """`(F, 3, 2)` corners in 1/256 sample and their `(F, 3)` inverse depths, of the triangles beyond the near plane."""
    homogeneous = np.concatenate([scene.points, np.ones((len(scene.points), 1))], axis=1)
    world = np.einsum("vij,vj->vi", scene.poses[t][scene.point_object], homogeneous)
    view = world @ scene.cameras[t][:, :3].T + scene.cameras[t][:, 3]
    depth = view[:, 2]
    middle = np.array([scene.width / 2, scene.height / 2])
    pixel = view[:, :2] * scene.focal / np.maximum(depth, 0.05)[:, None] + middle
    snapped = np.floor(pixel * samples * PER_SAMPLE + 0.5).astype(np.int64)[scene.faces]
    beyond = (depth[scene.faces] >= 0.05).all(axis=1)
    # A dropped triangle keeps its place, as a point outside the image that covers no sample.
    snapped[~beyond] = -PER_SAMPLE
    return snapped, 1.0 / np.maximum(depth, 0.05)[scene.faces]


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
