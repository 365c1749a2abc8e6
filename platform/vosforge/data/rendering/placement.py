"""Where bodies go: paths that keep clear of one another and of the camera, from places where each object is seen.

Only the past decides: the start is judged by the first frame alone, and each part of a path is chosen, once and for
all, before the next. So the choice does not depend on the length of the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vosforge.data.rendering.motion import POLYNOMIAL_KNOTS, hermite, polynomial, polynomial_arrival
from vosforge.data.rendering.numerics import lengths
from vosforge.data.rendering.random_streams import RandomStream

# The camera stays about y = -6 to -5 and the background stands at y = 12.
_NEAREST, _FARTHEST = -3.7, 9.0
_CANDIDATES = 32
_POLYNOMIALS = 50
_STARTS = 16
_CHECKS = 9
# Standard deviation of the longest step of a polynomial path along an axis between control points.
_STEP = 1.2


@dataclass(frozen=True, slots=True)
class Frustum:
    """Where bodies are placed: a pyramid before a camera at y = -6, which sees 0.38 of the depth to either side.

    Attributes:
        depths: least and greatest y.
        half_width: of the pyramid at unit distance.
        half_height: likewise.
    """

    depths: tuple[float, float]
    half_width: float
    half_height: float

    def places(self, stream: RandomStream, count: int, exits: float = 0.0) -> np.ndarray:
        """`(count, 3)` points inside, with probability `exits` well outside of the view to one side."""
        draws = stream.uniforms((count, 4))
        depth = self.depths[0] + (self.depths[1] - self.depths[0]) * draws[:, 0]
        across = 2 * draws[:, 1] - 1
        # The share of the draw beyond `exits` is not needed again, so it may also choose the side.
        across = np.where(draws[:, 3] < exits, np.where(across < 0, -2.35, 2.35), across)
        up = 2 * draws[:, 2] - 1
        return np.stack([across * self.half_width * (depth + 6), depth, up * self.half_height * (depth + 6)], axis=-1)


def frustum(paths: str, height: int, width: int) -> Frustum:
    """BL30K's own for polynomial paths; for splines one a little larger, but nearer the middle of the depth."""
    wide, high = width / max(height, width), height / max(height, width)
    if paths == "polynomial":
        return Frustum((-2.0, 5.0), 0.2625 * wide, 0.2625 * 1.5 * high)
    return Frustum((-1.5, 4.0), 0.323 * wide, 0.304 * high)


def draw_starts(
    streams: list[RandomStream],
    radii: np.ndarray,
    space: Frustum,
    visible_shares: Callable[[np.ndarray], np.ndarray],
    least_visible: np.ndarray,
) -> tuple[np.ndarray, float]:
    """First positions, `(N, 3)`, and by how much the least visible body exceeds its share, below 0 if it does not.

    Args:
        streams: one a body.
        radii: `(N,)` radii of the bodies' bounding spheres in the first frame.
        space: where to place them.
        visible_shares: gives each body's share of the frame, `(N,)`, for positions `(N, 3)`.
        least_visible: `(N,)` shares wanted; bodies below theirs are placed again, 16 times at most, and the best try
            stays.
    """
    count = len(streams)
    places = np.zeros((count, 3))
    best, best_margin = places, -np.inf
    hidden = np.ones(count, dtype=bool)
    for _ in range(_STARTS):
        placed = ~hidden
        for index in np.flatnonzero(hidden):
            candidates = space.places(streams[index], _CANDIDATES)
            gaps = _gaps(candidates[:, None], radii[index], places[placed, None], radii[placed, None])
            places[index] = candidates[_first_clear(gaps)]
            placed[index] = True
        margins = visible_shares(places) - least_visible
        if margins.min() > best_margin:
            best, best_margin = places.copy(), float(margins.min())
        hidden = margins < 0
        if not hidden.any():
            break
    return best, best_margin


def draw_paths(
    paths: str,
    streams: list[RandomStream],
    starts: np.ndarray,
    radii: np.ndarray,
    still: np.ndarray,
    space: Frustum,
    exits: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Knots of the bodies' paths.

    Args:
        paths: "polynomial" or "spline".
        streams: one a body.
        starts: `(N, 3)` first positions.
        radii: `(N,)` largest radii of the bodies' bounding spheres.
        still: `(N, S + 1)` bool, the segments in which each body stands still.
        space: where to go.
        exits: probability that a knot of a spline lies outside the view.

    Returns:
        Positions and tangents, each `(N, S + 1, 3)`, for `motion.follow`; and the smallest gap between two bodies, or
        one and the camera, until the fifth knot, below 0 where spheres overlap.
    """
    knots, tangents = np.zeros((2, *still.shape, 3))
    knots[:, 0] = starts
    if paths == "spline":
        tangents[:, 0] = np.stack([stream.uniforms((3,), -1.0, 1.0) for stream in streams]) * ~still[:, :1]
        return knots, tangents, _draw_splines(streams, knots, tangents, 0, radii, still, space, exits)
    last = POLYNOMIAL_KNOTS - 1
    gap = _draw_polynomials(streams, knots[:, : last + 1], radii, still, space)
    tangents[:, last] = polynomial_arrival(knots[:, : last + 1])
    _draw_splines(streams, knots, tangents, last, radii, still, space, exits)
    return knots, tangents, gap


def _draw_polynomials(
    streams: list[RandomStream], knots: np.ndarray, radii: np.ndarray, still: np.ndarray, space: Frustum
) -> float:
    """Fill knots 1 to 4 of `(N, 5, 3)`: steps towards random places, none longer along an axis than a normal draw.

    BL30K bounds steps in the positive direction alone, which drives its objects to one corner; here both directions
    are alike. A body takes the first of 50 paths on which it touches neither those before it nor the camera, or else
    the one that comes least close; BL30K keeps centres 0.75 apart, whatever the objects' size. Returns the smallest
    gap.
    """
    times = np.arange(4 * _CHECKS - 3) / (_CHECKS - 1)
    tracks: list[np.ndarray] = []
    smallest = np.inf
    for index, stream in enumerate(streams):
        goals = space.places(stream, _POLYNOMIALS * (POLYNOMIAL_KNOTS - 1)).reshape(_POLYNOMIALS, -1, 3)
        longest = np.abs(stream.normals(goals.shape)) * _STEP
        ways = np.repeat(knots[index : index + 1], _POLYNOMIALS, axis=0)
        for n in range(1, POLYNOMIAL_KNOTS):
            step = np.clip(goals[:, n - 1] - ways[:, n - 1], -longest[:, n - 1], longest[:, n - 1])
            ways[:, n] = ways[:, n - 1] + step * ~still[index, n - 1]
        followed = polynomial(ways, times)
        others = np.array(tracks).reshape(-1, len(times), 3)
        gaps = _gaps(followed, radii[index], others, radii[: len(tracks), None])
        choice = _first_clear(gaps)
        smallest = min(smallest, float(gaps[choice]))
        knots[index] = ways[choice]
        tracks.append(followed[choice])
    return smallest


def _draw_splines(
    streams: list[RandomStream],
    knots: np.ndarray,
    tangents: np.ndarray,
    first: int,
    radii: np.ndarray,
    still: np.ndarray,
    space: Frustum,
    exits: float,
) -> float:
    """Fill knots and tangents after the first.

    In each segment a body takes the first of 32 drawn ways on which it touches neither those before it nor the
    camera, or else the one that comes least close. Returns the smallest gap until the fifth knot.
    """
    smallest = np.inf
    times = np.arange(_CHECKS) / (_CHECKS - 1)
    for segment in range(first, still.shape[1] - 1):
        tracks: list[np.ndarray] = []
        order = np.argsort(~still[:, segment], kind="stable")
        for index in order:
            here, leave = knots[index, segment], tangents[index, segment]
            ends, arrivals = _ways(streams[index], here, space, exits)
            if still[index, segment]:
                ends, arrivals = here[None], np.zeros((1, 3))
            elif still[index, segment + 1]:
                arrivals = np.zeros_like(ends)
            ways = hermite(
                np.stack([np.broadcast_to(here, ends.shape), ends], axis=1),
                np.stack([np.broadcast_to(leave, ends.shape), arrivals], axis=1),
                times,
            )
            others = np.array(tracks).reshape(-1, _CHECKS, 3)
            gaps = _gaps(ways, radii[index], others, radii[order[: len(tracks)], None])
            choice = _first_clear(gaps)
            if segment < POLYNOMIAL_KNOTS - 1:
                smallest = min(smallest, float(gaps[choice]))
            knots[index, segment + 1], tangents[index, segment + 1] = ends[choice], arrivals[choice]
            tracks.append(ways[choice])
    return smallest


def _ways(stream: RandomStream, here: np.ndarray, space: Frustum, exits: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends and final velocities, each `(32, 3)`, of ways that lead three quarters of the way to a random place."""
    goals = space.places(stream, _CANDIDATES, exits)
    ends = here + 0.75 * (goals - here)
    return ends, 0.5 * (ends - here) + stream.uniforms((_CANDIDATES, 3), -0.6, 0.6)


def _gaps(ways: np.ndarray, radius: float, others: np.ndarray, other_radii: np.ndarray) -> np.ndarray:
    """Smallest gap, `(C,)`, of spheres on ways `(C, S, 3)` to spheres on `(M, S, 3)`, the camera and the background."""
    depth = ways[..., 1]
    gaps = np.minimum(depth - radius - _NEAREST, _FARTHEST - radius - depth).min(axis=1)
    if len(others):
        apart = lengths(ways[:, None] - others[None])[..., 0] - radius - other_radii
        gaps = np.minimum(gaps, apart.min(axis=(1, 2)))
    return gaps


def _first_clear(gaps: np.ndarray) -> int:
    clear = np.flatnonzero(gaps > 0.0)
    return int(clear[0] if len(clear) else gaps.argmax())
