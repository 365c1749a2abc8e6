"""Square, tileable textures and cluttered backgrounds, drawn or made from the user's pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit

from vosforge.data.rendering.numerics import JIT, PI, cosines, sine, sines
from vosforge.data.rendering.random_streams import RandomStream
from vosforge.data.rendering.shading import SMALLEST_LEVEL

PATTERNS = ("stripes", "checker", "cells", "clouds", "dots", "bricks")
_FREQUENCIES = (2, 3, 4, 6, 8, 12, 16)
_OCTAVES = (4, 8, 16, 32, 64)


def draw_texture(stream: RandomStream, size: int, patterns: Sequence[str]) -> np.ndarray:
    """A random pattern, warped and mottled by fractal noise: `(size, size, 3)` uint8, tileable; size a power of 2."""
    kind, frequency = PATTERNS.index(stream.choice(patterns)), stream.choice(_FREQUENCIES)
    warp = stream.uniform(0.0, 0.25)
    colours = stream.uniforms((4, 3))
    if stream.chance(0.5):
        colours[1] = 1.0 - colours[0]
    # Uniform draws are gaudier than most things are, so each texture gets its own saturation.
    grey = (colours[:, :1] + colours[:, 1:2] + colours[:, 2:]) / 3.0
    colours = grey + (colours - grey) * stream.uniform(0.15, 1.0)
    noise = np.zeros((size, size))
    for octave, frequency_of_noise in enumerate(_OCTAVES):
        lattice = stream.uniforms((frequency_of_noise, frequency_of_noise))
        if frequency_of_noise <= size:
            _add_noise(noise, lattice, 0.5 / (1 << octave))
    cells = stream.uniforms((frequency, frequency, 3))
    out = np.empty((size, size, 3), np.uint8)
    _paint_pattern(kind, frequency, warp, noise, cells, colours, out)
    return out


def draw_background(stream: RandomStream, size: int, patterns: Sequence[str]) -> np.ndarray:
    """A "dead leaves" image: `(size, size, 3)` uint8, tileable.

    Textured shapes of power-law sizes that occlude one another have edges and spectra like those of photographs (Lee,
    Mumford and Huang, "Occlusion models for natural images", IJCV 2001).
    """
    image = draw_texture(stream, size, patterns)
    leaves = [draw_texture(stream, max(size // 4, 16), patterns) for _ in range(stream.integer(3, 6))]
    count = stream.integer(25, 160)
    for n in range(count):
        texture = stream.choice(leaves)
        centre = stream.uniforms((2,)) * size
        length = size * 0.25 / (1.0 + 0.15 * n) * stream.uniform(0.4, 1.3) + 2.0
        axes = np.array([length * stream.uniform(0.3, 1.0) + 1.0, length])
        angle = np.array([stream.uniform(0.0, 2 * PI)])
        turn = np.array([cosines(angle)[0], sines(angle)[0]])
        _paint_leaf(image, texture, centre, axes, turn, stream.integer(0, 2), stream.uniform(0.6, 1.0))
    return image


@njit(**JIT)
def _add_noise(noise, lattice, weight):
    """Add a smooth, periodic interpolation of the lattice's values."""
    size, frequency = noise.shape[0], lattice.shape[0]
    for row in range(size):
        y = row * frequency / size
        top = math.floor(y)
        below = y - top
        below = below * below * (3.0 - 2.0 * below)
        bottom = (top + 1) % frequency
        for column in range(size):
            x = column * frequency / size
            left = math.floor(x)
            beside = x - left
            beside = beside * beside * (3.0 - 2.0 * beside)
            right = (left + 1) % frequency
            upper = lattice[top, left] + (lattice[top, right] - lattice[top, left]) * beside
            lower = lattice[bottom, left] + (lattice[bottom, right] - lattice[bottom, left]) * beside
            noise[row, column] += weight * (upper + (lower - upper) * below)


@njit(**JIT)
def _cell_pattern(x, y, frequency, cells):
    """Voronoi cells with dark borders."""
    column, row = math.floor(x), math.floor(y)
    closest, second, value = 9.0, 9.0, 0.0
    for down in range(-1, 2):
        for along in range(-1, 2):
            cell = cells[(row + down) % frequency, (column + along) % frequency]
            dx, dy = column + along + cell[0] - x, row + down + cell[1] - y
            distance = dx * dx + dy * dy
            if distance < closest:
                closest, second, value = distance, closest, cell[2]
            elif distance < second:
                second = distance
    return value if second - closest > 0.05 else 0.0


@njit(**JIT)
def _pattern(kind, x, y, frequency, cells, grain, warp):
    """Value in [0, 1] of one of `PATTERNS` at (x, y) in cells."""
    if kind == 0:
        return 0.5 + 0.5 * sine(2 * PI * x + 8.0 * warp * grain)
    if kind == 1:
        # An odd number of squares would not tile, so there are two to a cell.
        return float((math.floor(2.0 * x) + math.floor(2.0 * y)) & 1)
    if kind == 2:
        return _cell_pattern(x, y, frequency, cells)
    if kind == 3:
        return min(max(3.0 * (grain - 0.5) + 0.5, 0.0), 1.0)
    if kind == 4:
        dx, dy = x - math.floor(x) - 0.5, y - math.floor(y) - 0.5
        return 1.0 if dx * dx + dy * dy < 0.1 else 0.0
    row = math.floor(2.0 * y)
    along = x + 0.5 * (row & 1)
    column = math.floor(along)
    if along - column < 0.04 or 2.0 * y - row < 0.08:
        return 0.0
    return 0.4 + 0.6 * cells[row % frequency, column % frequency, row & 1]


@njit(**JIT)
def _paint_pattern(kind, frequency, warp, noise, cells, colours, out):
    size = out.shape[0]
    for row in range(size):
        for column in range(size):
            grain = noise[row, column]
            other = noise[(row + size // 3) % size, (column + size // 2) % size]
            x = (column / size + warp * (grain - 0.5)) * frequency
            y = (row / size + warp * (other - 0.5)) * frequency
            value = _pattern(kind, x, y, frequency, cells, grain, warp)
            mottle = 0.5 * (0.35 + 0.65 * grain)
            for channel in range(3):
                drawn = colours[0, channel] * value + colours[1, channel] * (1.0 - value)
                stained = colours[2, channel] * grain + colours[3, channel] * (1.0 - grain)
                out[row, column, channel] = int((drawn * (1.0 - mottle) + stained * mottle) * 255.0 + 0.5)


@njit(**JIT)
def _paint_leaf(image, texture, centre, axes, turn, outline, gain):
    """Paint an ellipse (outline 0), rectangle (1) or rhombus (2) that wraps round the image's borders."""
    size, period = image.shape[0], texture.shape[0]
    reach = int(max(axes[0], axes[1]) * 1.4143) + 1
    middle_x, middle_y = int(centre[0]), int(centre[1])
    for dy in range(-reach, reach + 1):
        row = (middle_y + dy) % size
        for dx in range(-reach, reach + 1):
            u = abs(turn[0] * dx + turn[1] * dy) / axes[0]
            v = abs(turn[0] * dy - turn[1] * dx) / axes[1]
            inside = u * u + v * v if outline == 0 else (max(u, v) if outline == 1 else u + v)
            if inside < 1.0:
                column = (middle_x + dx) % size
                for channel in range(3):
                    value = texture[(dy + middle_x) % period, (dx + middle_y) % period, channel]
                    image[row, column, channel] = int(value * gain)


def fit_picture(picture: np.ndarray, size: int) -> np.ndarray:
    """The central square of a picture as a tileable texture.

    Args:
        picture: `(H, W, 3)` uint8 RGB of any size.
        size: side of the texture in pixels, a power of two.

    Returns:
        `(size, size, 3)` uint8. The first eighth of the rows and columns fades in from what lies beyond the last, so
        that the repeat shows no seam.
    """
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    margin = size // 8
    fade = ((np.arange(margin) + 0.5) / margin)[:, None, None]
    square = picture[top : top + side, left : left + side].astype(np.float64)
    for _ in range(2):
        rows = _resized_rows(square, size + margin)
        rows[:margin] = rows[:margin] * fade + rows[size:] * (1 - fade)
        square = rows[:size].transpose(1, 0, 2)
    return np.ascontiguousarray((square + 0.5).astype(np.uint8))


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """The whole of an `(H, W, 3)` uint8 picture as `(size, size, 3)` uint8."""
    rows = _resized_rows(picture.astype(np.float64), size)
    square = _resized_rows(rows.transpose(1, 0, 2), size).transpose(1, 0, 2)
    return np.ascontiguousarray((square + 0.5).astype(np.uint8))


def _resized_rows(image: np.ndarray, rows: int) -> np.ndarray:
    """`(rows, W, 3)` float64: pairs of rows averaged while there are more than twice as many, then bilinear."""
    while len(image) >= 2 * rows:
        image = (image[0 : len(image) // 2 * 2 : 2] + image[1::2]) / 2
    where = np.clip((np.arange(rows) + 0.5) * len(image) / rows - 0.5, 0.0, len(image) - 1.0)
    low = np.minimum(where.astype(np.int64), max(len(image) - 2, 0))
    high = np.minimum(low + 1, len(image) - 1)
    part = (where - low)[:, None, None]
    return image[low] * (1 - part) + image[high] * part


def fit_look(look: np.ndarray, size: int) -> np.ndarray:
    """A mesh's own square texture, halved until it is no larger than `size`."""
    while len(look) > size:
        look = _halved(look)
    return look


def _halved(level: np.ndarray) -> np.ndarray:
    wide = level.astype(np.uint16)
    wide = wide[::2, ::2] + wide[1::2, ::2] + wide[::2, 1::2] + wide[1::2, 1::2]
    return ((wide + 2) >> 2).astype(np.uint8)


def pack_pyramids(textures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Textures with their box-filtered halvings, down to 4x4, in one array.

    Args:
        textures: `(size, size, 3)` uint8 arrays; sizes are powers of two of at least 4.

    Returns:
        texels, flat uint8; the start of each texture in it, `(N,)` int64; their sizes, `(N,)` int64.
    """
    parts, starts, total = [], [], 0
    for texture in textures:
        starts.append(total)
        level = texture
        while True:
            parts.append(level.reshape(-1))
            total += level.size
            if len(level) <= SMALLEST_LEVEL:
                break
            level = _halved(level)
    return np.concatenate(parts), np.array(starts), np.array([len(texture) for texture in textures])
