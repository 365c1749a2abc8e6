"""Arithmetic with the same bits on every machine: only IEEE + - * / and square roots, integers and tables.

Library sines and powers differ in the last bit between C libraries and vector widths, and one bit can move an edge
by a pixel. All kernels keep to this rule, and to one thread, so that a clip is the same wherever it is rendered.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

JIT = {"cache": True, "nogil": True, "fastmath": False, "error_model": "numpy"}
PI = 3.141592653589793
LINEAR_LEVELS = 8192


@njit(**JIT)
def sine(angle: float) -> float:
    """Sine of an angle in radians, within 1e-11 for |angle| < 1e4 (Taylor series to the 15th power)."""
    turns = math.floor(angle / PI + 0.5)
    x = angle - turns * PI
    square = x * x
    series = 1.0 - square / 210.0
    series = 1.0 - square / 156.0 * series
    series = 1.0 - square / 110.0 * series
    series = 1.0 - square / 72.0 * series
    series = 1.0 - square / 42.0 * series
    series = 1.0 - square / 20.0 * series
    series = 1.0 - square / 6.0 * series
    return -x * series if turns & 1 else x * series


@njit(**JIT)
def _fill_sines(angles: np.ndarray, out: np.ndarray) -> None:
    for index in range(angles.size):
        out[index] = sine(angles[index])


def sines(angles: np.ndarray) -> np.ndarray:
    """Sines of an array of any shape, in radians, as float64."""
    flat = np.ascontiguousarray(angles, dtype=np.float64).reshape(-1)
    out = np.empty_like(flat)
    _fill_sines(flat, out)
    return out.reshape(np.shape(angles))


def cosines(angles: np.ndarray) -> np.ndarray:
    """Cosines of an array of any shape, in radians, as float64."""
    return sines(np.asarray(angles, dtype=np.float64) + PI / 2)


def lengths(vectors: np.ndarray) -> np.ndarray:
    """Euclidean lengths of `(..., 3)` vectors, `(..., 1)`; explicit sums, because reductions may reorder."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.sqrt(x * x + y * y + z * z)[..., None]


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Product of `(..., I, 3)` and `(..., 3, J)` matrices without BLAS, whose order of sums is not fixed."""
    terms = left[..., :, :, None] * right[..., None, :, :]
    return terms[..., 0, :] + terms[..., 1, :] + terms[..., 2, :]


def cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cross products of `(..., 3)` vectors."""
    (a, b, c), (d, e, f) = np.moveaxis(left, -1, 0), np.moveaxis(right, -1, 0)
    return np.stack([b * f - c * e, c * d - a * f, a * e - b * d], axis=-1)


def srgb_to_linear(encoded: np.ndarray) -> np.ndarray:
    """Linear light in [0, 1] of sRGB values in [0, 1] (IEC 61966-2-1), its power 12/5 as a Newton fifth root."""
    base = (encoded + 0.055) / 1.055
    square = base * base
    root = np.ones_like(base)
    for _ in range(60):
        fourth = (root * root) * (root * root)
        root = (4.0 * root + square / fourth) / 5.0
    return np.where(encoded <= 0.04045, encoded / 12.92, square * root)


LINEAR_OF_BYTE = srgb_to_linear(np.arange(256) / 255.0)
BYTE_OF_LINEAR = np.searchsorted(
    srgb_to_linear((np.arange(255) + 0.5) / 255.0), np.arange(LINEAR_LEVELS + 1) / LINEAR_LEVELS, side="right"
).astype(np.uint8)
