"""Where objects go: paths that keep clear of one another and of the camera, from places where each object is seen.

Only the past decides: the start is judged by the first frame alone, and each segment of a path is chosen, once and
for all, before the next. So the choice does not depend on the length of the clip.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vosforge.data.rendering.motion import hermite
from vosforge.data.rendering.numerics import lengths
from vosforge.data.rendering.random_streams import RandomStream

# The camera stays behind y = -5.2 and the background stands at y = 12.
DEPTHS = (-1.5, 4.0)
_NEAREST, _FARTHEST = -3.7, 9.0
_CANDIDATES = 32
_STARTS = 16
_CHECKS = 9


@dataclass(frozen=True, slots=True)
class View:
    """Half the width and height of the view at unit distance from a camera at y = -6."""

    half_width: float
    half_height: float

    def places(self, stream: RandomStream, count: int, exits: float) -> np.ndarray:
        """`(count, 3)` points in the view, with probability `exits` well outside it to one side."""
        draws = stream.uniforms((count, 4))
        depth = DEPTHS[0] + (DEPTHS[1] - DEPTHS[0]) * draws[:, 0]
        across = (2 * draws[:, 1] - 1) * 0.85
        # The share of the draw beyond `exits` is not needed again, so it may also choose the side.
        across = np.where(draws[:, 3] < exits, np.where(across < 0, -2.0, 2.0), across)
        up = (2 * draws[:, 2] - 1) * 0.8
        return np.stack([across * self.half_width * (depth + 6), depth, up * self.half_height * (depth + 6)], axis=-1)


def draw_starts(
    streams: list[RandomStream],
    radii: np.ndarray,
    view: View,
    visible_shares: Callable[[np.ndarray], np.ndarray],
    least_visible: float,
) -> np.ndarray:
    """First positions, `(N, 3)`.

    Args:
        streams: one an object.
        radii: `(N,)` radii of the objects' bounding spheres in the first frame.
        view: the camera's frustum.
        visible_shares: gives each object's share of the frame, `(N,)`, for positions `(N, 3)`.
        least_visible: the share wanted; objects below it are placed again, 16 times at most, and the best try stays.
    """
    count = len(streams)
    places = np.zeros((count, 3))
    best, best_share = places, -1.0
    hidden = np.ones(count, dtype=bool)
    for _ in range(_STARTS):
        placed = ~hidden
        for index in np.flatnonzero(hidden):
            candidates = view.places(streams[index], _CANDIDATES, exits=0.0)
            gaps = _gaps(candidates[:, None], radii[index], places[placed, None], radii[placed, None])
            places[index] = candidates[_first_clear(gaps)]
            placed[index] = True
        shares = visible_shares(places)
        if shares.min() > best_share:
            best, best_share = places.copy(), float(shares.min())
        hidden = shares < least_visible
        if not hidden.any():
            break
    return best


def draw_paths(
    streams: list[RandomStream], starts: np.ndarray, radii: np.ndarray, still: np.ndarray, view: View, exits: float
) -> tuple[np.ndarray, np.ndarray]:
    """Knots of the objects' paths.

    Args:
        streams: one an object.
        starts: `(N, 3)` first positions.
        radii: `(N,)` largest radii of the objects' bounding spheres.
        still: `(N, S + 1)` bool, the segments in which each object stands still.
        view: the camera's frustum.
        exits: probability that a knot lies outside the view.

    Returns:
        Positions and tangents, each `(N, S + 1, 3)`. In each segment an object takes the first of 32 drawn ways on
        which it touches neither those before it nor the camera, or else the one that comes least close.
    """
    knots, tangents = np.zeros((2, *still.shape, 3))
    knots[:, 0] = starts
    tangents[:, 0] = np.stack([stream.uniforms((3,), -1.0, 1.0) for stream in streams]) * ~still[:, :1]
    times = np.arange(_CHECKS) / (_CHECKS - 1)
    for segment in range(still.shape[1] - 1):
        tracks: list[np.ndarray] = []
        order = np.argsort(~still[:, segment], kind="stable")
        for index in order:
            here, leave = knots[index, segment], tangents[index, segment]
            ends, arrivals = _ways(streams[index], here, view, exits)
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
            choice = _first_clear(_gaps(ways, radii[index], others, radii[order[: len(tracks)], None]))
            knots[index, segment + 1], tangents[index, segment + 1] = ends[choice], arrivals[choice]
            tracks.append(ways[choice])
    return knots, tangents


def _ways(stream: RandomStream, here: np.ndarray, view: View, exits: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends and final velocities, each `(32, 3)`, of ways that lead three quarters of the way to a random place."""
    goals = view.places(stream, _CANDIDATES, exits)
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
