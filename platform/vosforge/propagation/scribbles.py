"""Scribbles: what a user draws on a frame, from DAVIS's JSON or from arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vosforge.clip import MAX_OBJECTS
from vosforge.errors import UserError

NOTHING = -1
"""Where nothing is drawn in a map of ids."""

Scribbles = Mapping[str, Any] | Sequence[Mapping[str, Any]] | np.ndarray | Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Drawn:
    """What is drawn on one frame.

    A stroke for an object is positive for that one and negative for all others; a stroke for the background is negative
    for all.

    Attributes:
        ids: `(H, W)` int16, the object or 0 for background, `NOTHING` where nothing is drawn.
        denied: object -> `(H, W)` bool, where it is said not to be, without saying what is there.
    """

    ids: np.ndarray
    denied: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def objects(self) -> list[int]:
        """Objects that have a positive stroke, ascending."""
        return [int(k) for k in np.unique(self.ids) if k > 0]

    def over(self, earlier: Drawn | None) -> Drawn:
        """Both drawings; where they disagree this one, the later, holds."""
        if earlier is None:
            return self
        ids = np.where(self.ids == NOTHING, earlier.ids, self.ids)
        denied = {}
        for k in {*earlier.denied, *self.denied}:
            old, new = (drawn.denied.get(k, np.zeros(ids.shape, bool)) for drawn in (earlier, self))
            ids = np.where(new & (self.ids != k) & (ids == k), NOTHING, ids)
            denied[k] = (old & (self.ids != k)) | new
        return Drawn(ids, denied)

    def planes(self, objects: Sequence[int]) -> np.ndarray:
        """Positive and negative scribbles of each object, `(K, 2, H, W)` bool (STM unified, 2.1)."""
        positive = np.stack([self.ids == k for k in objects])
        negative = (self.ids != NOTHING) & ~positive
        for plane, k in zip(negative, objects, strict=True):
            plane |= self.denied.get(k, False)
        return np.stack([positive, negative & ~positive], axis=1)

    def resized(self, size: tuple[int, int]) -> Drawn:
        """The drawing at another size, with every pixel drawn kept."""
        if self.ids.shape == size:
            return self

        def moved(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rows, columns = np.nonzero(drawn)
            height, width = drawn.shape
            return rows * size[0] // height, columns * size[1] // width

        ids = np.full(size, NOTHING, np.int16)
        ids[moved(self.ids != NOTHING)] = self.ids[self.ids != NOTHING]
        denied = {k: np.zeros(size, bool) for k in self.denied}
        for k, plane in self.denied.items():
            denied[k][moved(plane)] = True
        return Drawn(ids, denied)


def read_scribbles(path: str | Path) -> dict[str, Any]:
    """A scribble file of DAVIS interactive.

    Raises:
        UserError: naming the file, when it is missing, no JSON, or has no list of strokes for each frame.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: expected JSON, found something else ({error})") from error
    strokes_by_frame(content, str(path))
    return content


def strokes_by_frame(scribbles: Any, name: str = "scribbles") -> dict[int, list[Mapping[str, Any]]]:
    """The strokes of each frame that has any, from the content of a DAVIS scribble file.

    Args:
        scribbles: `{"scribbles": [strokes of frame 0, strokes of frame 1, ...], ...}`.
        name: for messages.

    Raises:
        UserError: for content of another form.
    """
    frames = scribbles.get("scribbles") if isinstance(scribbles, Mapping) else None
    if not isinstance(frames, list) or not all(isinstance(strokes, list) for strokes in frames):
        raise UserError(f"{name}: expected {{'scribbles': [[stroke, ...] for each frame]}} as DAVIS interactive has it")
    return {t: strokes for t, strokes in enumerate(frames) if strokes}


def draw(scribbles: Scribbles, frame: int, frames: int, size: tuple[int, int], width: int = 1) -> Drawn:
    """Bring scribbles of any form onto a frame.

    Args:
        scribbles: the content of a DAVIS scribble file, of which the strokes of `frame` are taken; or these strokes,
            `{"path": [[x, y], ...], "object_id": k}` with coordinates in [0, 1] and 0 for background; or a map
            `(H, W)` of ids, signed, -1 where nothing is drawn; or object -> `(2, H, W)`, where it is and where not.
        frame, frames: position on which is drawn, and how many frames there are.
        size: (H, W) of the frame.
        width: of strokes, in pixels.

    Raises:
        UserError: naming the frame and the stroke, for scribbles of another form, outside the frame, or none.
    """
    name = f"scribbles on frame {frame}"
    if isinstance(scribbles, np.ndarray):
        drawn = _from_map(scribbles, size, name)
    elif isinstance(scribbles, Mapping) and scribbles and not any(isinstance(key, str) for key in scribbles):
        drawn = _from_planes(scribbles, size, name)
    else:
        drawn = _from_strokes(_strokes_at(scribbles, frame, frames, name), size, width, name)
    if not (drawn.ids != NOTHING).any() and not any(plane.any() for plane in drawn.denied.values()):
        raise UserError(f"{name}: nothing is drawn there")
    return drawn


def _strokes_at(scribbles: Any, frame: int, frames: int, name: str) -> Sequence[Any]:
    if isinstance(scribbles, str | Path):
        raise UserError(
            f"{name}: expected the content of a file, found the path {scribbles}; give read_scribbles(path)"
        )
    if isinstance(scribbles, Sequence):
        return scribbles
    found = strokes_by_frame(scribbles, name)
    if len(scribbles["scribbles"]) != frames:
        raise UserError(f"{name}: expected lists for {frames} frames, found {len(scribbles['scribbles'])}")
    if frame not in found:
        raise UserError(f"{name}: nothing is drawn there, but on frames {list(found)}")
    return found[frame]


def _from_strokes(strokes: Sequence[Any], size: tuple[int, int], width: int, name: str) -> Drawn:
    ids = np.full(size, NOTHING, np.int16)
    for i, stroke in enumerate(strokes):
        points, k = _checked(stroke, f"{name}, stroke {i}")
        # A tolerance keeps whole pixels, divided and multiplied, the pixels that they were.
        pixels = np.minimum((points * size[::-1] + 1e-6).astype(np.int32), np.array(size[::-1], np.int32) - 1)
        # OpenCV draws no line of one point.
        pixels = np.repeat(pixels, 2, axis=0) if len(pixels) == 1 else pixels
        cv2.polylines(ids, [pixels[:, None]], isClosed=False, color=k, thickness=width)
    return Drawn(ids)


def _checked(stroke: Any, name: str) -> tuple[np.ndarray, int]:
    """A stroke's points `(N, 2)` and object, or a `UserError`."""
    if not isinstance(stroke, Mapping) or not {"path", "object_id"} <= {*stroke}:
        raise UserError(f"{name}: expected {{'path': [[x, y], ...], 'object_id': k}}, found {_short(stroke)}")
    k, path = stroke["object_id"], stroke["path"]
    if not isinstance(k, Integral) or isinstance(k, bool) or not 0 <= k <= MAX_OBJECTS:
        raise UserError(f"{name}: object_id must be a whole number 0..{MAX_OBJECTS}, found {k!r}")
    pairs = isinstance(path, (list, tuple, np.ndarray)) and all(_is_point(point) for point in path)
    if not pairs or not len(path):
        raise UserError(f"{name}: path must be a list of [x, y], at least one, found {_short(path)}")
    points = np.array(path, float)
    outside = ~((points >= 0) & (points <= 1)).all(axis=1)
    if outside.any():
        raise UserError(f"{name}: expected coordinates in [0, 1], found {points[outside][0].tolist()}")
    return points, int(k)


def _is_point(point: Any) -> bool:
    return isinstance(point, (list, tuple, np.ndarray)) and len(point) == 2 and all(isinstance(x, Real) for x in point)


def _from_map(ids: np.ndarray, size: tuple[int, int], name: str) -> Drawn:
    if ids.shape != size or not np.issubdtype(ids.dtype, np.signedinteger):
        found = f"{ids.shape} {ids.dtype}"
        raise UserError(f"{name}: a map must be {size} of signed ids, -1 where nothing is drawn, found {found}")
    if not NOTHING <= ids.min() <= ids.max() <= MAX_OBJECTS:
        raise UserError(f"{name}: ids must be -1..{MAX_OBJECTS}, found {ids.min()}..{ids.max()}")
    return Drawn(ids.astype(np.int16))


def _from_planes(planes: Mapping[Any, Any], size: tuple[int, int], name: str) -> Drawn:
    ids, denied = np.full(size, NOTHING, np.int16), {}
    for k, pair in planes.items():
        if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= MAX_OBJECTS:
            raise UserError(f"{name}: expected objects 1..{MAX_OBJECTS} as keys, found {_short(k)}")
        if not isinstance(pair, np.ndarray) or pair.shape != (2, *size):
            found = pair.shape if isinstance(pair, np.ndarray) else type(pair).__name__
            raise UserError(f"{name}: object {k} needs its positive and negative planes {(2, *size)}, found {found}")
        positive, negative = pair > 0
        if (positive & (negative | (ids != NOTHING))).any():
            raise UserError(f"{name}: object {k} is drawn positive where it is negative, or where another object is")
        ids[positive] = k
        denied[int(k)] = negative
    return Drawn(ids, denied)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
