"""Smooth motion through knots.

Knots lie `KNOT_FRAMES / speed` frames apart however long the clip is, and draws reach one segment beyond the clip,
which steers the last tangent. So a longer clip continues a shorter one.
"""

from __future__ import annotations

import numpy as np

from vosforge.data.rendering.numerics import PI, cosines, cross, lengths, product, sines
from vosforge.data.rendering.random_streams import RandomStream

KNOT_FRAMES = 40


def segment_count(frames: int, speed: float) -> int:
    """Segments between knots that the clip touches, at least 1."""
    return int((frames - 1) * speed / KNOT_FRAMES) + 1


def hermite(knots: np.ndarray, tangents: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Cubic Hermite curve.

    Args:
        knots: `(..., K, D)` positions at times 0, 1, ..., K - 1.
        tangents: `(..., K, D)` velocities there, per knot interval.
        times: `(T,)` in [0, K - 1].

    Returns:
        `(..., T, D)` positions.
    """
    segment = np.minimum(times.astype(np.int64), knots.shape[-2] - 2)
    t = (times - segment)[:, None]
    start, end = knots[..., segment, :], knots[..., segment + 1, :]
    leave, arrive = tangents[..., segment, :], tangents[..., segment + 1, :]
    step = end - start
    return start + t * (leave + t * (3 * step - 2 * leave - arrive + t * (leave + arrive - 2 * step)))


def frame_times(frames: int, speed: float) -> np.ndarray:
    """`(frames,)` times of the frames in knot intervals."""
    return np.arange(frames) * speed / KNOT_FRAMES


def pauses(stream: RandomStream, segments: int, enter: float, stay: float) -> np.ndarray:
    """`(segments,)` bool: True where something stands still (a two-state Markov chain)."""
    still = np.zeros(segments, dtype=bool)
    for segment in range(segments):
        still[segment] = stream.chance(stay if segment and still[segment - 1] else enter)
    return still


def moving_knots(still: np.ndarray) -> np.ndarray:
    """`(S + 1,)` bool for `(S + 1,)` segments: True for each knot that neither ends nor begins a pause."""
    return ~(np.append(False, still[:-1]) | still)


def wander(start: np.ndarray, steps: np.ndarray, still: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Smooth random walk, a Catmull-Rom curve that comes to rest at pauses.

    Args:
        start: `(D,)` first knot.
        steps: `(S + 1, D)` to the next knot; the last one only steers the tangent before it.
        still: `(S + 1,)` bool segments, whose steps are left out.
        times: `(T,)` in [0, S].

    Returns:
        `(T, D)` positions.
    """
    knots = np.cumsum(np.concatenate([start[None], steps * ~still[:, None]]), axis=0)
    before = np.concatenate([knots[:1], knots[:-2]])
    tangents = (knots[1:] - before) * 0.5 * moving_knots(still)[:, None]
    return hermite(knots[:-1], tangents, times)


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


def tumble(stream: RandomStream, still: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`(T, 3, 3)` orientations that start anywhere and turn by up to 1.6 rad about each axis between knots."""
    start = stream.uniforms((3,), 0.0, 2 * PI)
    return rotations(wander(start, stream.uniforms((len(still), 3), -1.6, 1.6), still, times))


def look_at(eyes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`(T, 3, 4)` world-to-camera matrices (x right, y down, z forward; the world's z is up) of `(T, 3)` points."""
    forward = targets - eyes
    forward = forward / lengths(forward)
    right = cross(forward, np.broadcast_to(np.array([0.0, 0.0, 1.0]), forward.shape))
    right = right / lengths(right)
    axes = np.stack([right, cross(forward, right), forward], axis=1)
    return np.concatenate([axes, -product(axes, eyes[:, :, None])], axis=2)
