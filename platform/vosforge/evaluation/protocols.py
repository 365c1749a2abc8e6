"""Which objects and which frames count: the protocols under which J and F are published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vosforge.errors import UserError
from vosforge.evaluation.metrics import boundary_f, jaccard, statistics

VOID = 255

Scores = dict[int, dict[str, dict[str, Any]]]
"""Object id -> `"J"` or `"F"` -> floats `mean`, `recall`, `decay`, and `frames`, the list of per-frame values."""

_Pairs = Iterator[tuple[int, np.ndarray, np.ndarray]]


def score(truth: np.ndarray, prediction: np.ndarray, protocol: str = "davis2017") -> Scores:
    """J and F of every object of one video.

    Protocols (void, 255 in the truth, is background in all of them):

    - `davis2017`: the semi-supervised rules of the official DAVIS 2017 evaluation. The objects are 1 to the highest
      id of the *first* truth frame, ids missing in between included; the first and the last frame are dropped; an
      object that was not predicted is scored against an empty mask; truth of later ids is ignored.
    - `davis2016`: all ids merged into object 1; first and last frame dropped. A truth that knows only 0 and 255, as
      the DAVIS 2016 annotations are stored, has 255 for its object.
    - `all-frames`: the rules of vos-benchmark, first and last frame included. The objects are the ids of the truth,
      in any frame; every frame counts from the first in which truth or prediction shows the object; predicted ids
      unknown to the truth are ignored.

    Args:
        truth: `(T, H, W)` uint8 index masks, 0 is background and k object k.
        prediction: `(T, H, W)` uint8 index masks, likewise.
        protocol: one of `PROTOCOLS`.

    Returns:
        `{object id: {"J": {"mean", "recall", "decay", "frames"}, "F": {...}}}`, ids ascending, values in [0, 1].
        `frames` lists the counted frames only. Where no frame counts (a DAVIS clip of 2 frames), `frames` is empty
        and the statistics are NaN. Empty when the truth has no object.

    Raises:
        UserError: when the protocol is unknown; when the masks are no uint8 `(T, H, W)` of one shape with at least
            one frame; under `davis2017`, when a counted frame of the prediction holds an id that is not scored.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {protocol!r}; choose one of these")
    _check(truth, prediction)
    return {
        k: {"J": _measure(jaccard(wanted, given)), "F": _measure(boundary_f(wanted, given))}
        for k, wanted, given in PROTOCOLS[protocol](truth, prediction)
    }


def _davis2017(truth: np.ndarray, prediction: np.ndarray) -> _Pairs:
    first = truth[0]
    count = int(first.max(where=first != VOID, initial=0))
    # Objects that the truth has later are not scored here, and a method that was given them is not to blame.
    later = set(_ids(truth))
    truth, prediction = truth[1:-1], prediction[1:-1]
    extra = [k for k in _ids(prediction) if k > count and k not in later]
    if extra:
        raise UserError(
            f"prediction: expected ids 0 to {count}, the highest of the first truth frame, found {_words(extra)}; "
            "map the predicted ids to those of the first mask, or score with protocol all-frames"
        )
    for k in range(1, count + 1):
        yield k, truth == k, prediction == k


def _davis2016(truth: np.ndarray, prediction: np.ndarray) -> _Pairs:
    merged = truth != 0
    if set(_ids(truth)) != {VOID}:
        merged &= truth != VOID
    if merged.any():
        yield 1, merged[1:-1], prediction[1:-1] != 0


def _all_frames(truth: np.ndarray, prediction: np.ndarray) -> _Pairs:
    for k in _ids(truth):
        if k != VOID:
            wanted, given = truth == k, prediction == k
            start = int(np.argmax((wanted | given).reshape(len(truth), -1).any(axis=1)))
            yield k, wanted[start:], given[start:]


PROTOCOLS: dict[str, Callable[[np.ndarray, np.ndarray], _Pairs]] = {
    "davis2017": _davis2017,
    "davis2016": _davis2016,
    "all-frames": _all_frames,
}


def _check(truth: np.ndarray, prediction: np.ndarray) -> None:
    for field, masks in (("truth", truth), ("prediction", prediction)):
        if masks.ndim != 3 or masks.dtype != np.uint8 or not masks.size:
            raise UserError(
                f"{field}: expected (T, H, W) uint8 index masks of at least one frame, "
                f"found {masks.shape} {masks.dtype}; read palette PNGs without converting them to RGB"
            )
    if truth.shape != prediction.shape:
        raise UserError(
            f"prediction: expected {truth.shape}, the (T, H, W) of the truth, found {prediction.shape}; "
            "write a mask for every frame, at the frame's own size"
        )


def _measure(values: np.ndarray) -> dict[str, Any]:
    return {**statistics(values), "frames": values.tolist()}


def _ids(masks: np.ndarray) -> list[int]:
    """Ids other than background, ascending."""
    # Counting beats sorting: np.unique would sort every pixel of the video.
    counts = np.zeros(256, dtype=np.int64)
    for mask in masks:
        counts += np.bincount(mask.ravel(), minlength=256)
    return [int(k) for k in np.flatnonzero(counts) if k]


def _words(ids: list[int]) -> str:
    return f"id {ids[0]}" if len(ids) == 1 else f"ids {', '.join(map(str, ids))}"
