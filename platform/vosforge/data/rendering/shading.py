"""The colour and the mask of each pixel, from the visibility buffer.

Deferred: a pixel is shaded once for each distinct surface among its 2x2 samples, so anti-aliased edges cost little
more than plain ones. Lambert diffuse and Blinn-Phong gloss (Blinn, SIGGRAPH 1977) under point lights that fall off
with the squared distance, and an ambient light of which a quarter comes from below.

The kernels take arrays one by one: to take them out of a tuple, or to slice them, within a loop over pixels costs
more time than the arithmetic, for their reference counts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from vosforge.data.rendering.numerics import BYTE_OF_LINEAR, JIT, LINEAR_LEVELS
from vosforge.data.rendering.raster import SUBSAMPLE
from vosforge.data.rendering.shadows import ShadowMaps, lit_share

SAMPLES = 2
SMALLEST_LEVEL = 4
# Samples of one part whose inverse depths differ by more than this share belong to different surfaces.
_SAME_SURFACE = 0.02
_KNEE = 0.6


class Geometry(NamedTuple):
    """What is seen, after projection: the scene's own faces and vertices, then those that clipping made."""

    faces: np.ndarray  # (F, 3) int32
    face_part: np.ndarray  # (F,) int32
    face_uv_area: np.ndarray  # (F,) float64, twice the area in texture space
    vertices: np.ndarray  # (V, 8) float64: world position, world normal (not of unit length), u, v
    screen: np.ndarray  # (V, 2) int64, 1/256 sample
    inverse_depth: np.ndarray  # (V,) float64


class Materials(NamedTuple):
    """What parts are made of. The last texture is the background's."""

    parts: np.ndarray  # (P + 1, 4) int64: label, first texel, side of the texture, gloss doublings
    gloss: np.ndarray  # (P,) float64, strength of the highlight, whose exponent is 2 to the power of the doublings, x 2
    texels: np.ndarray  # float32 linear light, packed mip pyramids


class Lighting(NamedTuple):
    """What it is seen by."""

    eye: tuple[float, float, float]  # world position of the camera
    lamps: np.ndarray  # (L, 6) world positions, intensities
    ambient: tuple[float, float, float]  # irradiance from straight above
    plane: tuple[float, ...]  # 9 numbers, the homography from pixels to background texture coordinates
    background_gain: float
    shadows: ShadowMaps  # of the first lamps


@njit(**JIT, forceinline=True)
def _texture(texels, start, size, u, v):
    """Bilinear, repeating look-up in one mip level; linear-light RGB."""
    x = (u - math.floor(u)) * size - 0.5
    y = (v - math.floor(v)) * size - 0.5
    left, top = math.floor(x), math.floor(y)
    right_part, bottom_part = x - left, y - top
    last = size - 1
    row0, row1 = start + 3 * size * (top & last), start + 3 * size * ((top + 1) & last)
    column0, column1 = 3 * (left & last), 3 * ((left + 1) & last)
    w00, w01 = (1.0 - right_part) * (1.0 - bottom_part), right_part * (1.0 - bottom_part)
    w10, w11 = (1.0 - right_part) * bottom_part, right_part * bottom_part
    a, b, c, d = row0 + column0, row0 + column1, row1 + column0, row1 + column1
    return (
        texels[a] * w00 + texels[b] * w01 + texels[c] * w10 + texels[d] * w11,
        texels[a + 1] * w00 + texels[b + 1] * w01 + texels[c + 1] * w10 + texels[d + 1] * w11,
        texels[a + 2] * w00 + texels[b + 2] * w01 + texels[c + 2] * w10 + texels[d + 2] * w11,
    )


@njit(**JIT, forceinline=True)
def _unit(x, y, z):
    scale = 1.0 / math.sqrt(x * x + y * y + z * z + 1e-20)
    return x * scale, y * scale, z * scale


@njit(**JIT, forceinline=True)
def corner_weights(screen, inverse_depth, i, j, k, column, row):
    """Perspective-correct weights of a face's corners at the centre of a sample, and twice its area on the screen."""
    x, y = column * SUBSAMPLE + SUBSAMPLE // 2, row * SUBSAMPLE + SUBSAMPLE // 2
    xi, yi, xj, yj, xk, yk = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1], screen[k, 0], screen[k, 1]
    area = float((xj - xi) * (yk - yi) - (yj - yi) * (xk - xi))
    per_area = 1.0 / area
    wj = float((xi - xk) * (y - yk) - (yi - yk) * (x - xk)) * per_area
    wk = float((xj - xi) * (y - yi) - (yj - yi) * (x - xi)) * per_area
    wi = (1.0 - wj - wk) * inverse_depth[i]
    wj *= inverse_depth[j]
    wk *= inverse_depth[k]
    scale = 1.0 / (wi + wj + wk)
    return wi * scale, wj * scale, wk * scale, abs(area)


@njit(**JIT, forceinline=True)
def blend(vertices, first, i, j, k, wi, wj, wk):
    """Weighted mean of three consecutive columns of three vertices."""
    return (
        vertices[i, first] * wi + vertices[j, first] * wj + vertices[k, first] * wk,
        vertices[i, first + 1] * wi + vertices[j, first + 1] * wj + vertices[k, first + 1] * wk,
        vertices[i, first + 2] * wi + vertices[j, first + 2] * wj + vertices[k, first + 2] * wk,
    )


@njit(**JIT, forceinline=True)
def _leaves_unseen_side(vertices, i, j, k, eye, position, normal):
    """Whether the interpolated normal leaves the face on the side that the camera does not see.

    Decided by the flat face: near silhouettes an interpolated normal may rightly point away from the camera.
    """
    ax, ay, az = vertices[j, 0] - vertices[i, 0], vertices[j, 1] - vertices[i, 1], vertices[j, 2] - vertices[i, 2]
    bx, by, bz = vertices[k, 0] - vertices[i, 0], vertices[k, 1] - vertices[i, 1], vertices[k, 2] - vertices[i, 2]
    fx, fy, fz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    seen = fx * (eye[0] - position[0]) + fy * (eye[1] - position[1]) + fz * (eye[2] - position[2])
    return seen * (fx * normal[0] + fy * normal[1] + fz * normal[2]) < 0.0


@njit(**JIT, forceinline=True)
def _surface(faces, vertices, screen, inverse_depth, t, column, row, two_sided, eye):
    """Position, unit normal, u and v of face `t` where the centre of a sample meets it, and its area in pixels."""
    i, j, k = faces[t, 0], faces[t, 1], faces[t, 2]
    wi, wj, wk, area = corner_weights(screen, inverse_depth, i, j, k, column, row)
    position = blend(vertices, 0, i, j, k, wi, wj, wk)
    nx, ny, nz = blend(vertices, 3, i, j, k, wi, wj, wk)
    nx, ny, nz = _unit(nx, ny, nz)
    if two_sided and _leaves_unseen_side(vertices, i, j, k, eye, position, (nx, ny, nz)):
        nx, ny, nz = -nx, -ny, -nz
    u = vertices[i, 6] * wi + vertices[j, 6] * wj + vertices[k, 6] * wk
    v = vertices[i, 7] * wi + vertices[j, 7] * wj + vertices[k, 7] * wk
    return position, (nx, ny, nz), u, v, area / (SAMPLES * SUBSAMPLE * SAMPLES * SUBSAMPLE)


@njit(**JIT, forceinline=True)
def _albedo(texels, start, size, u, v, texels_per_pixel):
    """Colour of a texture, from the mip level whose texels are about as large as a pixel."""
    while texels_per_pixel > 2.0 and size > SMALLEST_LEVEL:
        start += 3 * size * size
        size >>= 1
        texels_per_pixel *= 0.25
    return _texture(texels, start, size, u, v)


@njit(**JIT, forceinline=True)
def _light(lamps, ambient, eye, cameras, focals, nearest, position, normal, gloss, doublings):
    """Diffuse and highlight factors at a surface point, each RGB."""
    px, py, pz = position
    nx, ny, nz = normal
    above = 0.625 + 0.375 * nz
    red, green, blue = ambient[0] * above, ambient[1] * above, ambient[2] * above
    shine_red = shine_green = shine_blue = 0.0
    vx, vy, vz = _unit(eye[0] - px, eye[1] - py, eye[2] - pz)
    for lamp in range(lamps.shape[0]):
        tx, ty, tz = lamps[lamp, 0] - px, lamps[lamp, 1] - py, lamps[lamp, 2] - pz
        facing = nx * tx + ny * ty + nz * tz
        if facing <= 0.0:
            continue
        arriving = 1.0 / (tx * tx + ty * ty + tz * tz)
        nearness = math.sqrt(arriving)
        lx, ly, lz = tx * nearness, ty * nearness, tz * nearness
        facing *= nearness
        if lamp < nearest.shape[0]:
            arriving *= lit_share(cameras, focals, nearest, lamp, px, py, pz, nx, ny, nz, facing)
            if arriving <= 0.0:
                continue
        facing *= arriving
        red += lamps[lamp, 3] * facing
        green += lamps[lamp, 4] * facing
        blue += lamps[lamp, 5] * facing
        hx, hy, hz = lx + vx, ly + vy, lz + vz
        along = nx * hx + ny * hy + nz * hz
        shine = along * along / (hx * hx + hy * hy + hz * hz + 1e-20)
        for _ in range(doublings):
            shine *= shine
        shine *= arriving * gloss
        shine_red += lamps[lamp, 3] * shine
        shine_green += lamps[lamp, 4] * shine
        shine_blue += lamps[lamp, 5] * shine
    return red, green, blue, shine_red, shine_green, shine_blue


@njit(**JIT, forceinline=True)
def _soften(light):
    """Light above a knee compressed to stay below white: edges of what is too bright would alias if it were cut."""
    if light <= _KNEE:
        return light
    excess = (light - _KNEE) / (1.0 - _KNEE)
    return _KNEE + (1.0 - _KNEE) * excess / (1.0 + excess)


@njit(**JIT, forceinline=True)
def majority(a, b, c, d):
    """The commonest of four labels, and on a tie the one met first."""
    if a in (b, c, d):
        return a
    if b in (c, d):
        return b
    return c if c == d else a


@njit(**JIT, forceinline=True)
def _same_surface(face_part, triangle, nearest, s, x, y):
    """Bits of the samples of pixel (x, y), from the s-th on, that show the surface which the s-th shows."""
    row, column = 2 * y + (s >> 1), 2 * x + (s & 1)
    t, depth = triangle[row, column], nearest[row, column]
    bits = 0
    for other in range(s, 4):
        row, column = 2 * y + (other >> 1), 2 * x + (other & 1)
        u = triangle[row, column]
        if t == u or (t >= 0 and u >= 0 and face_part[t] == face_part[u]):
            bits |= (abs(nearest[row, column] - depth) <= _SAME_SURFACE * depth) << other
    return bits


@njit(**JIT, forceinline=True)
def _bits_set(bits):
    return (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3 & 1)


@njit(**JIT)
def _shade(geometry, materials, closed, lighting, triangle, nearest, weight, light):
    faces, face_part, face_uv_area, vertices, screen, inverse_depth = geometry
    parts, gloss, texels = materials
    eye, lamps, ambient, plane, background_gain, shadows = lighting
    cameras, focals, maps = shadows
    background = parts.shape[0] - 1
    for y in range(light.shape[0]):
        for x in range(light.shape[1]):
            a, b = triangle[2 * y, 2 * x], triangle[2 * y, 2 * x + 1]
            c, d = triangle[2 * y + 1, 2 * x], triangle[2 * y + 1, 2 * x + 1]
            uniform = a == b and a == c and a == d
            red = green = blue = 0.0
            taken = 0
            for s in range(4):
                if taken >> s & 1:
                    continue
                bits = 15 if uniform else _same_surface(face_part, triangle, nearest, s, x, y) & ~taken
                taken |= bits
                share = _bits_set(bits) * 0.25
                column, row = 2 * x + (s & 1), 2 * y + (s >> 1)
                t = triangle[row, column]
                if t < 0:
                    scale = 1.0 / (plane[6] * (x + 0.5) + plane[7] * (y + 0.5) + plane[8])
                    u = (plane[0] * (x + 0.5) + plane[1] * (y + 0.5) + plane[2]) * scale
                    v = (plane[3] * (x + 0.5) + plane[4] * (y + 0.5) + plane[5]) * scale
                    r, g, b = _texture(texels, parts[background, 1], parts[background, 2], u, v)
                    share *= background_gain
                else:
                    part = face_part[t]
                    position, normal, u, v, area = _surface(
                        faces, vertices, screen, inverse_depth, t, column, row, not closed[part], eye
                    )
                    size = parts[part, 2]
                    fineness = face_uv_area[t] * size * size / area
                    r, g, b = _albedo(texels, parts[part, 1], size, u, v, fineness)
                    lit_r, lit_g, lit_b, shine_r, shine_g, shine_b = _light(
                        lamps, ambient, eye, cameras, focals, maps, position, normal, gloss[part], parts[part, 3]
                    )
                    r, g, b = _soften(r * lit_r + shine_r), _soften(g * lit_g + shine_g), _soften(b * lit_b + shine_b)
                red += r * share
                green += g * share
                blue += b * share
                if taken == 15:
                    break
            light[y, x, 0] += red * weight
            light[y, x, 1] += green * weight
            light[y, x, 2] += blue * weight


def shade(
    geometry: Geometry,
    materials: Materials,
    closed: np.ndarray,
    lighting: Lighting,
    triangle: np.ndarray,
    nearest: np.ndarray,
    weight: float,
    light: np.ndarray,
) -> None:
    """Shade every pixel of the visibility buffer.

    Args:
        geometry: what is seen.
        materials: of the parts.
        closed: `(P,)` bool parts of which only the outside is seen.
        lighting: lamps, shadows, ambient light, background.
        triangle: `(2H, 2W)` int32 face seen by each sample, -1 for none.
        nearest: `(2H, 2W)` float32 inverse depth there.
        weight: of this moment in the frame.
        light: `(H, W, 3)` float32, to which weighted linear RGB is added; 1 = white.
    """
    _shade(geometry, materials, closed, lighting, triangle, nearest, weight, light)


@njit(**JIT)
def label_pixels(face_part, parts, triangle, ids):
    """Masks from visibility.

    Args:
        face_part: `(F,)` part of each face.
        parts: `Materials.parts`.
        triangle: `(2H, 2W)` face seen by each sample, -1 for none.
        ids: `(H, W)` uint8, filled with the object (from 1; 0 = background) that most of the four samples see; a
            tie goes to the one met first in reading order.
    """
    seen = np.zeros(4, np.int64)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            for s in range(4):
                t = triangle[2 * y + (s >> 1), 2 * x + (s & 1)]
                seen[s] = parts[face_part[t], 0] if t >= 0 else 0
            ids[y, x] = majority(seen[0], seen[1], seen[2], seen[3])


@njit(**JIT)
def _encode(light, levels, table, out):
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for channel in range(3):
                level = min(max(light[y, x, channel], 0.0), 1.0) * levels
                out[y, x, channel] = table[int(level + 0.5)]


def encode(light: np.ndarray) -> np.ndarray:
    """`(H, W, 3)` uint8 sRGB of `(H, W, 3)` float32 linear light; values outside [0, 1] are clipped."""
    out = np.empty(light.shape, np.uint8)
    _encode(light, LINEAR_LEVELS, BYTE_OF_LINEAR, out)
    return out
