"""Meshes, and procedural solids: closed, outward-wound, with texture coordinates, watertight to the last bit.

Every solid is a sheet of (u, v): u runs round the solid and its last column repeats the first one's positions; v runs
from pole to pole, or round a tube.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vosforge.data.rendering.numerics import PI, cosines, cross, lengths, sines
from vosforge.data.rendering.random_streams import RandomStream

# Columns and rows at full detail: 2,000 to 20,480 triangles.
DENSITIES = ((40, 25), (64, 40), (100, 50), (128, 80))
COARSEST = (20, 12)
_KNOTS = ((1, 0), (2, 3), (3, 2), (1, 2))


@dataclass(frozen=True, slots=True)
class Mesh:
    """Triangles with normals and texture coordinates.

    Attributes:
        points: `(V, 3)` float64.
        normals: `(V, 3)` float64, on the side from which faces are counter-clockwise; not of unit length.
        uvs: `(V, 2)` float64; a texture repeats every 1.
        faces: `(F, 3)` int32.
        closed: faces bound a solid and are counter-clockwise seen from outside.
        look: `(size, size, 3)` uint8 texture of the mesh's own, or None.
    """

    points: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    faces: np.ndarray
    closed: bool
    look: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """Meshes that move as one, centred at the origin; their common bounding box has a diagonal of 1."""

    meshes: tuple[Mesh, ...]

    def radius(self, scale: np.ndarray) -> float:
        """Distance of the farthest vertex from the origin, with the axes scaled by `(3,)`."""
        return max(float(lengths(mesh.points * scale).max()) for mesh in self.meshes)

    @property
    def reach(self) -> float:
        """Greatest |z| of a vertex."""
        return max(float(np.abs(mesh.points[:, 2]).max()) for mesh in self.meshes)


def draw_mesh(stream: RandomStream, detail: float) -> Mesh:
    """A random solid; `detail` scales the number of vertices along either side of its sheet (1 is full)."""
    columns, rows = (max(int(n * detail), least) for n, least in zip(stream.choice(DENSITIES), COARSEST, strict=True))
    shape = stream.choice((_superquadric, _lathe, _extrusion, _blob, _tube))
    around, across = np.arange(columns + 1) / columns, np.arange(rows + 1) / rows
    if shape is _extrusion:
        across = _creased(across, rows)
    u, v = np.meshgrid(around, across, indexing="ij")
    points = shape(stream, u, v)
    points[-1] = points[0]
    if shape is _tube:
        points[:, -1] = points[:, 0]
    else:
        points[:, 0], points[:, -1] = points[0, 0], points[0, -1]
    repeats = np.array([stream.integer(1, 3), stream.integer(1, 2)], dtype=np.float64)
    return _from_sheet(points, np.stack([u, v], axis=-1) * repeats, tube=shape is _tube)


def _creased(across: np.ndarray, rows: int) -> np.ndarray:
    """Rows of an extrusion: the cap's rim twice, so that cap and wall do not share normals."""
    rim = 2.0 / rows
    return np.concatenate([[0.0, rim, rim], across[(across > rim) & (across < 1.0 - rim)], [1 - rim, 1 - rim, 1.0]])


def _from_sheet(points: np.ndarray, uvs: np.ndarray, tube: bool) -> Mesh:
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    points = (points - (low + high) / 2) / lengths(high - low)
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    first, second = cross(b - a, c - a), cross(c - a, d - a)
    normals = np.zeros_like(points)
    for corner, faced in (
        (np.s_[:-1, :-1], first + second),
        (np.s_[1:, :-1], first),
        (np.s_[1:, 1:], first + second),
        (np.s_[:-1, 1:], second),
    ):
        normals[corner] += faced
    normals[0] += normals[-1]
    normals[-1] = normals[0]
    if tube:
        normals[:, 0] += normals[:, -1]
        normals[:, -1] = normals[:, 0]
    else:
        for pole in (0, -1):
            normals[:, pole] = np.cumsum(normals[:-1, pole], axis=0)[-1]
    index = np.arange(points[..., 0].size, dtype=np.int32).reshape(points.shape[:2])
    corners = [part.reshape(-1) for part in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:])]
    faces = np.concatenate([np.stack([corners[n] for n in order], axis=1) for order in ((0, 1, 2), (0, 2, 3))])
    points, normals = points.reshape(-1, 3), normals.reshape(-1, 3)
    p, q, r = (points[faces[:, n]] for n in range(3))
    volume = np.cumsum(p * cross(q, r))[-1]
    if volume < 0:
        faces, normals = faces[:, ::-1], -normals
    return Mesh(points, normals, uvs.reshape(-1, 2), np.ascontiguousarray(faces), closed=True)


def _signed_power(values: np.ndarray, exponent: float) -> np.ndarray:
    """|x| to the power of 1/4, 1/2, 1 or 2, with the sign of x, by exact square roots."""
    size = np.abs(values)
    if exponent == 2.0:
        size = size * size
    while exponent < 1.0:
        size, exponent = np.sqrt(size), exponent * 2
    return np.sign(values) * size


def _sphere(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cosine and sine of longitude, then of latitude."""
    longitude, latitude = u * 2 * PI, (v - 0.5) * PI
    return cosines(longitude), sines(longitude), cosines(latitude), sines(latitude)


def _superquadric(stream: RandomStream, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Boxes, cylinders, balls, octahedra and pinched shapes (Barr, IEEE CG&A 1981)."""
    cos_u, sin_u, cos_v, sin_v = _sphere(u, v)
    upright, round_about = stream.choice((0.25, 0.5, 1.0, 2.0)), stream.choice((0.25, 0.5, 1.0, 2.0))
    ring = _signed_power(cos_v, upright)
    sides = ring * _signed_power(cos_u, round_about), ring * _signed_power(sin_u, round_about)
    return np.stack([*sides, _signed_power(sin_v, upright)], axis=-1) * stream.uniforms((3,), 0.4, 1.0)


def _lathe(stream: RandomStream, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A turned profile: vases, spindles, bowls."""
    cos_u, sin_u, _, _ = _sphere(u, v)
    profile = stream.uniforms((9,), 0.2, 1.0)
    profile[[0, -1]] = 0.0
    step = np.minimum((v * 8).astype(np.int64), 7)
    part = v * 8 - step
    part = part * part * (3 - 2 * part)
    radius = profile[step] * (1 - part) + profile[step + 1] * part
    return np.stack([radius * cos_u, radius * sin_u, (v - 0.5) * stream.uniform(1.2, 3.0)], axis=-1)


def _extrusion(stream: RandomStream, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A twisted prism over a star, with flat caps."""
    rim = float(v[0, 1])
    arms, depth, twist = stream.integer(2, 6), stream.uniform(0.1, 0.5), stream.uniform(-1.5, 1.5)
    angle, height = u * 2 * PI, np.clip((v - rim) / (1 - 2 * rim), 0.0, 1.0)
    radius = (1 + depth * cosines(arms * angle)) * np.minimum(np.minimum(v, 1 - v) / rim, 1.0)
    turned = angle + twist * height
    return np.stack([radius * cosines(turned), radius * sines(turned), (height - 0.5) * stream.uniform(0.5, 3)], -1)


def _blob(stream: RandomStream, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A ball swollen and dented by six smooth waves."""
    cos_u, sin_u, cos_v, sin_v = _sphere(u, v)
    direction = np.stack([cos_v * cos_u, cos_v * sin_u, sin_v], axis=-1)
    relief = np.zeros_like(u)
    for frequency, phase in zip(stream.uniforms((6, 3), 1.0, 5.0), stream.uniforms((6, 3), 0.0, 2 * PI), strict=True):
        wave = sines(direction * frequency + phase)
        relief = relief + wave[..., 0] * wave[..., 1] * wave[..., 2]
    return direction * np.maximum(1 + stream.uniform(0.15, 0.4) * relief, 0.25)[..., None]


def _tube(stream: RandomStream, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A ring or a torus knot."""
    turns, waves = stream.choice(_KNOTS)
    thickness = stream.uniform(0.15, 0.27)

    def centre(angle: np.ndarray) -> np.ndarray:
        radius = 1 + 0.4 * cosines(waves * angle)
        return np.stack(
            [radius * cosines(turns * angle), radius * sines(turns * angle), 0.4 * sines(waves * angle)], axis=-1
        )

    angle, round_tube = u * 2 * PI, v * 2 * PI
    along = centre(angle + 1e-3) - centre(angle - 1e-3)
    sideways = cross(along, np.broadcast_to(np.array([0.13, 0.21, 1.0]), along.shape))
    upwards = cross(along, sideways)
    sideways, upwards = sideways / lengths(sideways), upwards / lengths(upwards)
    ring = cosines(round_tube)[..., None] * sideways + sines(round_tube)[..., None] * upwards
    return centre(angle) + thickness * ring
