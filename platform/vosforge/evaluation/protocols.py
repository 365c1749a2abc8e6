"""Which objects and which frames count: the protocols under which J and F are published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vosforge.clip import VOID
from vosforge.errors import UserError
from vosforge.evaluation.metrics import boundary_f, jaccard, statistics

Scores = dict[int, dict[str, dict[str, Any]]]
"""Object id -> `"J"` or `"F"` -> floats `mean`, `recall`, `decay`, and `frames`, the list of per-frame values."""

Listed = Mapping[int, Sequence[int]]
"""Object id -> positions of the frames that a data set lists for it, ascending; its mask is given in the first."""

_Pairs = Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]


def score(truth: np.ndarray, prediction: np.ndarray, protocol: str = "davis2017") -> Scores:
    """J and F of every object of one video.

    Protocols (void, 255 in the truth, is background in all of them):

    - `davis2017`: the semi-supervised rules of the official DAVIS 2017 evaluation. The objects are 1 to the highest
      id of the *first* truth frame, ids missing in between included; the first and the last frame are dropped; an
      object that was not predicted is scored against an empty mask; truth of later ids is ignored.
    - `davis2016`: all ids merged into object 1; first and last frame dropped. Masks that know only 0 and 255, as
      the DAVIS 2016 annotations are stored, have 255 for their object.
    - `youtube`: the rules of YouTube-VOS as far as they are known. The objects are the ids of the truth, in any
      frame; every frame counts after the one in which the truth first shows the object, where its mask is given.
      Where the data set lists frames, `score_at` counts those alone.
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
    return score_at(truth, prediction, protocol)[0]


def score_at(
    truth: np.ndarray, prediction: np.ndarray, protocol: str = "davis2017", listed: Listed | None = None
) -> tuple[Scores, dict[int, list[int]]]:
    """`score`, and where the values stand.

    Args:
        truth, prediction, protocol: as in `score`.
        listed: under `youtube`, the objects that count and the frames listed for each; other protocols ignore it.

    Returns:
        The scores, and object id -> the positions in the video of its counted frames, as many as it has values.

    Raises:
        UserError: as `score`.
    """
    check_protocol(protocol)
    _check(truth, prediction)
    scores: Scores = {}
    positions: dict[int, list[int]] = {}
    for k, at, wanted, given in PROTOCOLS[protocol](truth, prediction, listed):
        scores[k] = {"J": _measure(jaccard(wanted, given)), "F": _measure(boundary_f(wanted, given))}
        positions[k] = at.tolist()
    return scores, positions


def check_protocol(protocol: str) -> None:
    """Refuse an unknown protocol.

    Raises:
        UserError: naming those that there are.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol: expected one of {', '.join(PROTOCOLS)}, found {protocol!r}; choose one of these")


def needed(truth: np.ndarray, protocol: str, listed: Listed | None = None) -> np.ndarray:
    """Which frames of a prediction a protocol looks at: `(T,)` bool. The others need not exist.

    Args:
        truth: `(T, H, W)` uint8 index masks.
        protocol: one of `PROTOCOLS`.
        listed: as in `score_at`.
    """
    frames = np.ones(len(truth), dtype=bool)
    if protocol.startswith("davis"):
        frames[[0, -1]] = False
    elif protocol == "youtube":
        frames[:] = False
        for _, at in _youtube_frames(truth, listed):
            frames[at] = True
    return frames


def known_ids(truth: np.ndarray, protocol: str, listed: Listed | None = None) -> set[int]:
    """Ids that a prediction may hold without being refused; background is not among them.

    Args:
        truth: `(T, H, W)` uint8 index masks.
        protocol: one of `PROTOCOLS`; `davis2016` merges whatever there is.
        listed: as in `score_at`.
    """
    if protocol == "davis2016":
        return set(range(1, 256))
    known = set(ids(truth)) - {VOID} | set(listed or ())
    if protocol == "davis2017":
        known |= set(range(1, _highest(truth[0]) + 1))
    return known


def _davis2017(truth: np.ndarray, prediction: np.ndarray, _: Listed | None) -> _Pairs:
    count = _highest(truth[0])
    # Objects that the truth has later are not scored here, and a method that was given them is not to blame.
    later = set(ids(truth))
    at = np.arange(1, max(1, len(truth) - 1))
    truth, prediction = truth[1:-1], prediction[1:-1]
    extra = [k for k in ids(prediction) if k > count and k not in later]
    if extra:
        raise UserError(
            f"prediction: expected ids 0 to {count}, the highest of the first truth frame, found {words(extra)}; "
            "map the predicted ids to those of the first mask, or score with protocol all-frames"
        )
    for k in range(1, count + 1):
        yield k, at, truth == k, prediction == k


def _davis2016(truth: np.ndarray, prediction: np.ndarray, _: Listed | None) -> _Pairs:
    wanted, given = _merged(truth), _merged(prediction)
    if wanted.any():
        yield 1, np.arange(1, max(1, len(truth) - 1)), wanted[1:-1], given[1:-1]


def _merged(masks: np.ndarray) -> np.ndarray:
    """All objects as one; 255 is one where there is no other id."""
    return (masks != 0) if set(ids(masks)) == {VOID} else (masks != 0) & (masks != VOID)


def _youtube(truth: np.ndarray, prediction: np.ndarray, listed: Listed | None) -> _Pairs:
    for k, at in _youtube_frames(truth, listed):
        yield k, at, truth[at] == k, prediction[at] == k


def _youtube_frames(truth: np.ndarray, listed: Listed | None) -> Iterator[tuple[int, np.ndarray]]:
    """Each object and the positions at which it counts."""
    for k in ids(truth):
        if k == VOID or (listed is not None and k not in listed):
            continue
        first = int(np.argmax((truth == k).reshape(len(truth), -1).any(axis=1)))
        at = np.arange(len(truth)) if listed is None else np.asarray(listed[k], dtype=np.int64)
        # The first frame that is listed and the first that shows the object should be one; nothing counts before both.
        start = first if listed is None or not len(at) else max(first, int(at[0]))
        yield k, at[at > start]


def _all_frames(truth: np.ndarray, prediction: np.ndarray, _: Listed | None) -> _Pairs:
    for k in ids(truth):
        if k != VOID:
            wanted, given = truth == k, prediction == k
            start = int(np.argmax((wanted | given).reshape(len(truth), -1).any(axis=1)))
            yield k, np.arange(start, len(truth)), wanted[start:], given[start:]


PROTOCOLS: dict[str, Callable[[np.ndarray, np.ndarray, Listed | None], _Pairs]] = {
    "davis2017": _davis2017,
    "davis2016": _davis2016,
    "youtube": _youtube,
    "all-frames": _all_frames,
}


def _check(truth: np.ndarray, prediction: np.ndarray) -> None:
    for field, masks in (("truth", truth), ("prediction", prediction)):
        wanted = "(T, H, W) uint8 index masks of at least one frame"
        if not isinstance(masks, np.ndarray):
            raise UserError(f"{field}: expected an array, {wanted}, found {type(masks).__name__}")
        if masks.ndim == 3 and masks.size and masks.dtype != np.uint8:
            raise UserError(
                f"{field}: expected masks of dtype uint8, found {masks.dtype}; convert with astype(np.uint8)"
            )
        if masks.ndim != 3 or not masks.size:
            raise UserError(
                f"{field}: expected {wanted}, "
                f"found {masks.shape} {masks.dtype}; read palette PNGs without converting them to RGB"
            )
    if truth.shape != prediction.shape:
        raise UserError(
            f"prediction: expected {truth.shape}, the (T, H, W) of the truth, found {prediction.shape}; "
            "write a mask for every frame, at the frame's own size"
        )


def _measure(values: np.ndarray) -> dict[str, Any]:
    return {**statistics(values), "frames": values.tolist()}


def _highest(mask: np.ndarray) -> int:
    return int(mask.max(where=mask != VOID, initial=0))


def ids(masks: np.ndarray) -> list[int]:
    """Ids of `(T, H, W)` masks other than background, ascending."""
    # Counting beats sorting: np.unique would sort every pixel of the video.
    counts = np.zeros(256, dtype=np.int64)
    for mask in masks:
        counts += np.bincount(mask.ravel(), minlength=256)
    return [int(k) for k in np.flatnonzero(counts) if k]


def words(found: list[int]) -> str:
    """Ids as a message says them."""
    return f"id {found[0]}" if len(found) == 1 else f"ids {', '.join(map(str, found))}"
