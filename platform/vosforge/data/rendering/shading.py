"""The colour and the mask of each pixel, from the visibility buffer.

Deferred: a pixel is shaded once for each distinct object among its 2x2 samples, so anti-aliased edges cost little
more than plain ones. Lambert diffuse and Blinn-Phong gloss (Blinn, SIGGRAPH 1977) under one point light that falls
off with the squared distance, and an ambient light that is brightest from above.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from vosforge.data.rendering.numerics import BYTE_OF_LINEAR, JIT, LINEAR_LEVELS, LINEAR_OF_BYTE
from vosforge.data.rendering.raster import SUBSAMPLE

SAMPLES = 2
SMALLEST_LEVEL = 4


class Surfaces(NamedTuple):
    """What is seen: geometry after projection, and materials. Texture N is the background's."""

    faces: np.ndarray  # (F, 3) int32
    face_object: np.ndarray  # (F,) int32, from 0
    face_uv_area: np.ndarray  # (F,) float64, twice the area in texture space
    uvs: np.ndarray  # (V, 2) float64
    normals: np.ndarray  # (V, 3) float64, object space, outwards
    world: np.ndarray  # (V, 3) float64
    screen: np.ndarray  # (V, 2) int64, 1/256 sample
    inverse_depth: np.ndarray  # (V,) float64
    poses: np.ndarray  # (N, 3, 4) float64
    texels: np.ndarray  # uint8, packed mip pyramids
    texture_start: np.ndarray  # (N + 1,) int64
    texture_size: np.ndarray  # (N + 1,) int64, powers of two
    gloss: np.ndarray  # (N,) float64, strength of the highlight
    gloss_doublings: np.ndarray  # (N,) int64, the highlight's exponent is 2 to this power, doubled


class Lighting(NamedTuple):
    """What it is seen by."""

    eye: np.ndarray  # (3,) world position of the camera
    position: np.ndarray  # (3,) world position of the lamp
    colour: np.ndarray  # (3,) intensity
    ambient: np.ndarray  # (3,) irradiance from straight above
    plane: np.ndarray  # (3, 3) homography from pixels to background texture coordinates
    background_gain: float


@njit(**JIT, forceinline=True)
def _texture(texels, start, size, u, v, linear):
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
        linear[texels[a]] * w00 + linear[texels[b]] * w01 + linear[texels[c]] * w10 + linear[texels[d]] * w11,
        linear[texels[a + 1]] * w00
        + linear[texels[b + 1]] * w01
        + linear[texels[c + 1]] * w10
        + linear[texels[d + 1]] * w11,
        linear[texels[a + 2]] * w00
        + linear[texels[b + 2]] * w01
        + linear[texels[c + 2]] * w10
        + linear[texels[d + 2]] * w11,
    )


@njit(**JIT, forceinline=True)
def _unit(x, y, z):
    scale = 1.0 / math.sqrt(x * x + y * y + z * z + 1e-20)
    return x * scale, y * scale, z * scale


@njit(**JIT, forceinline=True)
def _light(lighting, position, normal, gloss, doublings):
    """Diffuse and highlight factors at a surface point, each RGB."""
    px, py, pz = position
    nx, ny, nz = normal
    above = 0.5 + 0.5 * nz
    red, green, blue = lighting.ambient[0] * above, lighting.ambient[1] * above, lighting.ambient[2] * above
    tx, ty, tz = lighting.position[0] - px, lighting.position[1] - py, lighting.position[2] - pz
    squared = tx * tx + ty * ty + tz * tz
    lx, ly, lz = _unit(tx, ty, tz)
    facing = nx * lx + ny * ly + nz * lz
    if facing <= 0.0:
        return red, green, blue, 0.0
    facing /= squared
    red += lighting.colour[0] * facing
    green += lighting.colour[1] * facing
    blue += lighting.colour[2] * facing
    vx, vy, vz = _unit(lighting.eye[0] - px, lighting.eye[1] - py, lighting.eye[2] - pz)
    hx, hy, hz = lx + vx, ly + vy, lz + vz
    along = nx * hx + ny * hy + nz * hz
    shine = along * along / (hx * hx + hy * hy + hz * hz + 1e-20)
    for _ in range(doublings):
        shine *= shine
    return red, green, blue, shine * gloss / squared


@njit(**JIT, forceinline=True)
def _blend(values, i, j, k, wi, wj, wk):
    return (
        values[i, 0] * wi + values[j, 0] * wj + values[k, 0] * wk,
        values[i, 1] * wi + values[j, 1] * wj + values[k, 1] * wk,
        values[i, 2] * wi + values[j, 2] * wj + values[k, 2] * wk,
    )


@njit(**JIT, forceinline=True)
def _surface_colour(surfaces, lighting, linear, t, sample_x, sample_y):
    """Linear RGB of face `t` where the sample (in 1/256) meets it."""
    i, j, k = surfaces.faces[t, 0], surfaces.faces[t, 1], surfaces.faces[t, 2]
    screen, part = surfaces.screen, surfaces.face_object[t]
    xi, yi, xj, yj, xk, yk = screen[i, 0], screen[i, 1], screen[j, 0], screen[j, 1], screen[k, 0], screen[k, 1]
    area = float((xj - xi) * (yk - yi) - (yj - yi) * (xk - xi))
    wj = float((xi - xk) * (sample_y - yk) - (yi - yk) * (sample_x - xk)) / area
    wk = float((xj - xi) * (sample_y - yi) - (yj - yi) * (sample_x - xi)) / area
    wi = (1.0 - wj - wk) * surfaces.inverse_depth[i]
    wj *= surfaces.inverse_depth[j]
    wk *= surfaces.inverse_depth[k]
    scale = 1.0 / (wi + wj + wk)
    wi, wj, wk = wi * scale, wj * scale, wk * scale

    u = surfaces.uvs[i, 0] * wi + surfaces.uvs[j, 0] * wj + surfaces.uvs[k, 0] * wk
    v = surfaces.uvs[i, 1] * wi + surfaces.uvs[j, 1] * wj + surfaces.uvs[k, 1] * wk
    size, start = surfaces.texture_size[part], surfaces.texture_start[part]
    pixel_area = abs(area) / (SAMPLES * SUBSAMPLE * SAMPLES * SUBSAMPLE)
    texels_per_pixel = surfaces.face_uv_area[t] * size * size / pixel_area
    while texels_per_pixel > 2.0 and size > SMALLEST_LEVEL:
        start += 3 * size * size
        size >>= 1
        texels_per_pixel *= 0.25
    red, green, blue = _texture(surfaces.texels, start, size, u, v, linear)

    position = _blend(surfaces.world, i, j, k, wi, wj, wk)
    nx, ny, nz = _blend(surfaces.normals, i, j, k, wi, wj, wk)
    pose = surfaces.poses[part]
    normal = _unit(
        pose[0, 0] * nx + pose[0, 1] * ny + pose[0, 2] * nz,
        pose[1, 0] * nx + pose[1, 1] * ny + pose[1, 2] * nz,
        pose[2, 0] * nx + pose[2, 1] * ny + pose[2, 2] * nz,
    )
    lit_red, lit_green, lit_blue, shine = _light(
        lighting, position, normal, surfaces.gloss[part], surfaces.gloss_doublings[part]
    )
    return (
        red * lit_red + lighting.colour[0] * shine,
        green * lit_green + lighting.colour[1] * shine,
        blue * lit_blue + lighting.colour[2] * shine,
    )


@njit(**JIT, forceinline=True)
def _background_colour(surfaces, lighting, linear, x, y):
    """Linear RGB of the background plane behind pixel (x, y)."""
    plane, last = lighting.plane, surfaces.texture_size.shape[0] - 1
    px, py = x + 0.5, y + 0.5
    scale = 1.0 / (plane[2, 0] * px + plane[2, 1] * py + plane[2, 2])
    u = (plane[0, 0] * px + plane[0, 1] * py + plane[0, 2]) * scale
    v = (plane[1, 0] * px + plane[1, 1] * py + plane[1, 2]) * scale
    red, green, blue = _texture(
        surfaces.texels, surfaces.texture_start[last], surfaces.texture_size[last], u, v, linear
    )
    gain = lighting.background_gain
    return red * gain, green * gain, blue * gain


@njit(**JIT)
def _shade(surfaces, lighting, triangle, linear, light, ids):
    found = np.empty(4, np.int64)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            for s in range(4):
                t = triangle[2 * y + (s >> 1), 2 * x + (s & 1)]
                found[s] = surfaces.face_object[t] + 1 if t >= 0 else 0
            red = green = blue = 0.0
            most = 0
            for s in range(4):
                count, first = 0, True
                for other in range(4):
                    if found[other] == found[s]:
                        first = first and other >= s
                        count += 1
                if not first:
                    continue
                if count > most:
                    most = count
                    ids[y, x] = found[s]
                if found[s] == 0:
                    r, g, b = _background_colour(surfaces, lighting, linear, x, y)
                else:
                    column, row = 2 * x + (s & 1), 2 * y + (s >> 1)
                    half = SUBSAMPLE // 2
                    r, g, b = _surface_colour(
                        surfaces,
                        lighting,
                        linear,
                        triangle[row, column],
                        column * SUBSAMPLE + half,
                        row * SUBSAMPLE + half,
                    )
                red += r * count * 0.25
                green += g * count * 0.25
                blue += b * count * 0.25
                if count == 4:
                    break
            light[y, x, 0], light[y, x, 1], light[y, x, 2] = red, green, blue


def shade(surfaces: Surfaces, lighting: Lighting, triangle: np.ndarray, light: np.ndarray, ids: np.ndarray) -> None:
    """Shade every pixel of the visibility buffer.

    Args:
        surfaces: projected geometry and materials.
        lighting: lamp, ambient light, background.
        triangle: `(2H, 2W)` int32 face seen by each sample, -1 for none.
        light: `(H, W, 3)` float32, filled with linear RGB, 1 = white.
        ids: `(H, W)` uint8, filled with the object (from 1; 0 = background) that most of the four samples see; a
            tie goes to the one met first in reading order.
    """
    _shade(surfaces, lighting, triangle, LINEAR_OF_BYTE, light, ids)


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
