"""Smooth motion through control points, or knots.

Knots lie `KNOT_FRAMES / speed` frames apart however long the clip is, and draws reach one segment beyond the clip,
which steers the last tangent. So a longer clip continues a shorter one.
"""

from __future__ import annotations

import numpy as np

from vosforge.data.rendering.numerics import PI, cosines, cross, lengths, product, sines
from vosforge.data.rendering.random_streams import RandomStream

KNOT_FRAMES = 40
# A polynomial of degree 4 goes through this many knots.
POLYNOMIAL_KNOTS = 5
# How long the shutter stays open, as a share of the time between frames.
_SHUTTER = 0.5


def segment_count(frames: int, speed: float) -> int:
    """Segments between knots that motion is drawn for: those of the clip, and at least those of one polynomial."""
    return max(int((frames - 1) * speed / KNOT_FRAMES) + 1, POLYNOMIAL_KNOTS - 1)


def frame_times(frames: int, speed: float, moments: int) -> np.ndarray:
    """`(frames, moments)` times in knot intervals; the frame's own time comes last, the others about it."""
    offsets = np.array([0.0])
    if moments > 1:
        offsets = _SHUTTER * ((np.arange(moments) + 0.5) / moments - 0.5)
        offsets = np.concatenate([np.delete(offsets, moments // 2), [0.0]])
    return (np.arange(frames)[:, None] + offsets) * speed / KNOT_FRAMES


def hermite(knots: np.ndarray, tangents: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Cubic Hermite curve.

    Args:
        knots: `(..., K, D)` positions at times 0, 1, ..., K - 1.
        tangents: `(..., K, D)` velocities there, per knot interval.
        times: `(T,)`, about 0 to K - 1.

    Returns:
        `(..., T, D)` positions.
    """
    segment = np.clip(times.astype(np.int64), 0, knots.shape[-2] - 2)
    t = (times - segment)[:, None]
    start, end = knots[..., segment, :], knots[..., segment + 1, :]
    leave, arrive = tangents[..., segment, :], tangents[..., segment + 1, :]
    step = end - start
    return start + t * (leave + t * (3 * step - 2 * leave - arrive + t * (leave + arrive - 2 * step)))


def polynomial(knots: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The polynomial of degree 4 through knots at times 0..4, by Newton's forward differences.

    Args:
        knots: `(..., 5, D)`.
        times: `(T,)`.

    Returns:
        `(..., T, D)`.
    """
    result = np.zeros(())
    differences, factor = knots, np.ones(len(times))
    for order in range(POLYNOMIAL_KNOTS):
        result = result + differences[..., :1, :] * factor[:, None]
        differences = differences[..., 1:, :] - differences[..., :-1, :]
        factor = factor * (times - order) / (order + 1)
    return result


def polynomial_arrival(knots: np.ndarray) -> np.ndarray:
    """Velocity `(..., D)` of `polynomial` at its last knot, per knot interval."""
    a, b, c, d, e = (knots[..., n, :] for n in range(POLYNOMIAL_KNOTS))
    return (25 * e - 48 * d + 36 * c - 16 * b + 3 * a) / 12


def pauses(stream: RandomStream, segments: int, enter: float, stay: float) -> np.ndarray:
    """`(segments,)` bool: True where something stands still (a two-state Markov chain)."""
    still = np.zeros(segments, dtype=bool)
    for segment in range(segments):
        still[segment] = stream.chance(stay if segment and still[segment - 1] else enter)
    return still


def hold(knots: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Knots `(K, D)` with each that ends a still segment, `(K - 1,)`, moved to the one before."""
    last = np.maximum.accumulate(np.where(np.append(False, still), 0, np.arange(len(knots))))
    return knots[last]


def accumulate(start: np.ndarray, steps: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Knots `(K, D)` of a walk from `start` `(D,)` by steps `(K - 1, D)`, none in a still segment."""
    return np.cumsum(np.concatenate([start[None], steps * ~still[:, None]]), axis=0)


def travel(paths: str, knots: np.ndarray, still: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Positions on the way through knots.

    Args:
        paths: "spline", a Catmull-Rom curve that comes to rest at pauses; or "polynomial", of degree 4 through the
            first 5 knots, which the spline continues.
        knots: `(K, D)`, K at least 6; the last one only steers the tangent before it.
        still: `(K - 1,)` bool segments in which the knots do not move.
        times: `(T,)`, about 0 to K - 2.

    Returns:
        `(T, D)` positions.
    """
    rests = still[1:] | still[:-1]
    tangents = np.concatenate([(knots[1:2] - knots[:1]) * ~still[:1, None], knots[2:] - knots[:-2]])
    tangents *= 0.5
    tangents[1:] *= ~rests[:, None]
    if paths == "polynomial":
        tangents[POLYNOMIAL_KNOTS - 1] = polynomial_arrival(knots[:POLYNOMIAL_KNOTS])
    return follow(paths, knots[:-1], tangents, times)


def follow(paths: str, knots: np.ndarray, tangents: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Positions `(..., T, D)` along `hermite`'s curve or, for "polynomial", until the fifth knot along a polynomial."""
    last = POLYNOMIAL_KNOTS - 1
    if paths == "spline":
        return hermite(knots, tangents, times)
    early = polynomial(knots[..., : last + 1, :], times)
    if knots.shape[-2] == POLYNOMIAL_KNOTS:
        return early
    late = hermite(knots[..., last:, :], tangents[..., last:, :], times - last)
    return np.where((times <= last)[:, None], early, late)


def swing(stream: RandomStream, times: np.ndarray) -> np.ndarray:
    """`(T, 3)` hinge angles in radians that swing about a random middle, once in 28 to 125 frames at speed 1."""
    draws = stream.uniforms((3, 4))
    rate = 2.0 + 6.8 * draws[:, 0]
    reach = 0.2 + 0.8 * draws[:, 1]
    return 2 * draws[:, 2] - 1 + reach * sines(times[:, None] * rate + 2 * PI * draws[:, 3])


def shake(stream: RandomStream, times: np.ndarray) -> np.ndarray:
    """`(T, 3)` sum of four sines of 8 to 64 rad a knot interval, of about unit size."""
    draws = stream.uniforms((4, 3, 3))
    total = np.zeros((len(times), 3))
    for strength, rate, phase in draws:
        total = total + (0.2 + 0.8 * strength) * sines(times[:, None] * (8 + 56 * rate) + 2 * PI * phase)
    return total


def rotations(angles: np.ndarray) -> np.ndarray:
    """`(T, 3, 3)` rotation matrices of `(T, 3)` angles in radians: about z first, then y, then x."""
    cos, sin = cosines(angles), sines(angles)
    zero, one = np.zeros(len(angles)), np.ones(len(angles))

    def matrices(*rows: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)

    about_x = matrices([one, zero, zero], [zero, cos[:, 0], -sin[:, 0]], [zero, sin[:, 0], cos[:, 0]])
    about_y = matrices([cos[:, 1], zero, sin[:, 1]], [zero, one, zero], [-sin[:, 1], zero, cos[:, 1]])
    about_z = matrices([cos[:, 2], -sin[:, 2], zero], [sin[:, 2], cos[:, 2], zero], [zero, zero, one])
    return product(about_x, product(about_y, about_z))


def look_at(eyes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`(T, 3, 4)` world-to-camera matrices (x right, y down, z forward; the world's z is up) of `(T, 3)` points."""
    forward = targets - eyes
    forward = forward / lengths(forward)
    right = cross(forward, np.broadcast_to(np.array([0.0, 0.0, 1.0]), forward.shape))
    right = right / lengths(right)
    axes = np.stack([right, cross(forward, right), forward], axis=1)
    return np.concatenate([axes, -product(axes, eyes[:, :, None])], axis=2)
