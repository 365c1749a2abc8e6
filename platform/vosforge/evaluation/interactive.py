"""The protocol of DAVIS interactive: a robot draws, a method segments, round after round, against the clock.

S. Caelles et al.: "The 2018 DAVIS Challenge on Video Object Segmentation", 2018, sections 3 and 4. Where the paper is
silent, which frame comes next, what weighs how much and when time is up are as in the official service.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from vosforge.clip import VOID, Clip
from vosforge.errors import UserError
from vosforge.evaluation.metrics import boundary_f, jaccard
from vosforge.evaluation.robot import Robot, Stroke
from vosforge.propagation.scribbles import read_scribbles, strokes_by_frame

Measure = Literal["J&F", "J", "F"]


class InteractiveMethod(Protocol):
    """What is evaluated: one video's session."""

    def interact(self, frame: int, scribbles: list[Stroke], /) -> np.ndarray:
        """Masks `(T, H, W)` uint8 of all frames, after these strokes on one of them and all strokes before."""


class Row(NamedTuple):
    """How well one object was segmented after one interaction: means over all annotated frames.

    Attributes:
        interaction: from 1.
        sequence: the clip's name.
        scribble: which of the sequence's first scribbles, from 1.
        object: id.
        J, F: in [0, 1].
        seconds: that the method took for the interaction, the same in all objects' rows.
    """

    interaction: int
    sequence: str
    scribble: int
    object: int
    J: float
    F: float
    seconds: float


class Curve(NamedTuple):
    """Quality over time.

    Attributes:
        auc: area under the curve, divided by its length in time.
        at: the value at the threshold.
        seconds, values: the curve's points, from (0, 0) to the end of the time allowed.
    """

    auc: float
    at: float
    seconds: list[float]
    values: list[float]


class Rules(NamedTuple):
    """What the protocol allows, and how it counts.

    Attributes:
        interactions: rounds a video.
        seconds: for an interaction and object; a video with K objects has K times as much for each, and what is
            answered after all its rounds' time together is dropped.
        at: threshold in seconds where the curve is read.
        measure: what makes the curve, and whose lowest value says where to draw next: "J&F", "J" or "F".
    """

    interactions: int = 8
    seconds: float = 30.0
    at: float = 60.0
    measure: Measure = "J&F"


OFFICIAL = Rules()
ROBOT = Robot()


def evaluate_interactive(
    make_session: Callable[[Clip], InteractiveMethod],
    clips: Iterable[Clip | UserError],
    scribbles: Mapping[str, Sequence[Mapping[str, Any]] | UserError] | None = None,
    rules: Rules = OFFICIAL,
    robot: Robot = ROBOT,
    clock: Callable[[], float] = time.perf_counter,
    on_video: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Play the protocol over annotated clips.

    The first scribbles of a clip are those of the data set, one session for each of its files, or, where it has none,
    the robot's on the first frame that shows an object. After every interaction the robot draws on the annotated frame
    of the lowest mean over objects that it has not drawn on before (any again, when it has drawn on all); as
    in the official service, the frame of the data set's own scribbles counts as not drawn on. Where it finds
    nothing worth a stroke, the masks stay for this interaction, which then takes no time. Only the
    method's time counts, its start included.

    Args:
        make_session: gives a fresh session; of the clip's masks it must know nothing.
        clips: annotated videos; all annotated frames count, 255 is void beside other ids. An error in the place of a
            video says why it cannot be read.
        scribbles: clip name -> contents of its DAVIS scribble files, or why they cannot be read, as `find_scribbles`
            gives them.
        rules: of the protocol.
        robot: who draws.
        clock: seconds, read before and after each interaction.
        on_video: hears how many videos are finished.

    Returns:
        `{"auc", "at", "curve": {"seconds", "values"}, "interactions": [{"J", "F", "J&F", "seconds"}, ...], "objects",
        "videos", "rows": [Row as a dict, ...], "skipped": [reason, ...]}`. Rows of interactions that were not answered
        in time repeat the ones before at no time, zeros in the first. Videos without object or annotated frame, with
        scribbles that do not fit, or for which the method fails or answers masks of another form are skipped.

    Raises:
        UserError: for rules out of range, no clip, or when all are skipped, with the first one's reason.
    """
    _check(rules)
    rows: list[Row] = []
    skipped: list[str] = []
    for done, clip in enumerate(clips, 1):
        try:
            if isinstance(clip, UserError):
                raise clip
            truth = _Truth(clip)
            files = (scribbles or {}).get(clip.name) or [None]
            if isinstance(files, UserError):
                raise files
            # A video counts with all its first scribbles or not at all.
            rows += [
                row
                for number, first in enumerate(files, 1)
                for row in _play(make_session, truth, number, first, rules, robot, clock)
            ]
        except UserError as error:
            skipped.append(str(error) if error is clip else f"video {clip.name}: {error}")
        on_video(done)
    if skipped and not rows:
        raise UserError(skipped[0])
    return {**summarise_interactions(rows, rules), "skipped": skipped}


def find_scribbles(folder: str | Path) -> dict[str, list[dict[str, Any]] | UserError]:
    """The scribble files of a data set, `<folder>/<video>/<number>.json`, in the files' order.

    In place of the files of a video of which one is malformed, the error that names it.

    Raises:
        UserError: when there are none.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(Path(folder).glob("*/*.json")):
        files[path.parent.name].append(path)
    if not files:
        raise UserError(f"{folder}: expected scribble files <video>/<number>.json, found none")
    found: dict[str, list[dict[str, Any]] | UserError] = {}
    for video, paths in files.items():
        try:
            found[video] = [read_scribbles(path) for path in paths]
        except UserError as error:
            found[video] = error
    return found


def summarise_interactions(rows: Sequence[Row], rules: Rules = OFFICIAL) -> dict[str, Any]:
    """The curve and what stands beside it, from the rows of all interactions.

    Every row weighs the same in an interaction's mean, and so every object, however few its video has. The time of
    an interaction is the mean over videos and their first scribbles. The curve ends where the time allowed for the
    mean number of objects does.

    Args:
        rows: for every interaction, sequence, first scribbles and object one.
        rules: of the protocol.

    Returns:
        As `evaluate_interactive`, without what was skipped.

    Raises:
        UserError: when there is no row.
    """
    if not rows:
        raise UserError("interactive evaluation: expected at least one annotated video, found none")
    means = []
    for i in range(1, rules.interactions + 1):
        now = [row for row in rows if row.interaction == i]
        j, f = (float(np.mean([getattr(row, measure) for row in now])) for measure in ("J", "F"))
        times = {(row.sequence, row.scribble): row.seconds for row in now}
        means.append({"J": j, "F": f, "J&F": (j + f) / 2, "seconds": float(np.mean(list(times.values())))})
    objects = {(row.sequence, row.object) for row in rows}
    videos = {row.sequence for row in rows}
    limit = rules.interactions * rules.seconds * len(objects) / len(videos)
    found = curve([m["seconds"] for m in means], [m[rules.measure] for m in means], limit, rules.at)
    return {
        "auc": found.auc,
        "at": found.at,
        "curve": {"seconds": found.seconds, "values": found.values},
        "interactions": means,
        "objects": len(objects),
        "videos": len(videos),
        "rows": [row._asdict() for row in rows],
    }


def curve(seconds: Sequence[float], values: Sequence[float], limit: float, at: float = 60.0) -> Curve:
    """Quality over time: straight lines from (0, 0) through every interaction, level from the last one to the limit.

    Args:
        seconds: that each interaction took.
        values: mean quality after it.
        limit: seconds where the curve ends; where the last interaction, if that is later.
        at: seconds where the curve is read.
    """
    x = np.concatenate([[0.0], np.cumsum(seconds)])
    x = np.append(x, max(limit, x[-1]))
    y = np.concatenate([[0.0], values])
    y = np.append(y, y[-1])
    area = float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())
    return Curve(area / x[-1] if x[-1] else 0.0, float(np.interp(at, x, y)), x.tolist(), y.tolist())


class _Truth:
    """A clip as it is scored: its annotated frames and its objects."""

    def __init__(self, clip: Clip):
        self.clip = clip
        self.frames = np.flatnonzero(clip.annotated)
        self.masks = clip.masks[self.frames]
        self.objects = [k for k in clip.objects if k != VOID] or clip.objects
        if not self.objects:
            raise UserError("expected at least one object in its masks, found none")

    def first(self) -> int:
        """Position of the first frame that shows an object."""
        return int(self.frames[np.isin(self.masks, self.objects).any(axis=(1, 2)).argmax()])

    def score(self, masks: Any) -> dict[str, np.ndarray]:
        """J and F of every object in every annotated frame, `(K, N)` each."""
        if not isinstance(masks, np.ndarray) or masks.shape != self.clip.masks.shape or masks.dtype != np.uint8:
            found = f"{masks.shape} {masks.dtype}" if isinstance(masks, np.ndarray) else type(masks).__name__
            raise UserError(f"expected masks {self.clip.masks.shape} uint8 from interact, found {found}")
        pairs = [(self.masks == k, masks[self.frames] == k) for k in self.objects]
        return {"J": np.stack([jaccard(*pair) for pair in pairs]), "F": np.stack([boundary_f(*pair) for pair in pairs])}


def _play(
    make_session: Callable[[Clip], InteractiveMethod],
    truth: _Truth,
    number: int,
    first: Mapping[str, Any] | None,
    rules: Rules,
    robot: Robot,
    clock: Callable[[], float],
) -> Iterator[Row]:
    """One session: a video from one of its first scribbles."""
    masks, drawn, session, elapsed = np.zeros_like(truth.clip.masks), set(), None, 0.0
    scores = {measure: np.zeros((len(truth.objects), len(truth.frames))) for measure in ("J", "F")}
    allowed = rules.interactions * rules.seconds * len(truth.objects)
    for i in range(1, rules.interactions + 1):
        if i == 1 and first is not None:
            strokes = _first_strokes(first, truth.clip)
        else:
            t = truth.first() if i == 1 else _next_frame(scores, truth.frames, drawn, rules.measure)
            drawn.add(t)
            lines = robot.draw(truth.clip.masks[t], masks[t], truth.objects)
            strokes = {t: lines} if lines else {}
        seconds = 0.0
        if strokes and elapsed <= allowed:
            started = clock()
            session = make_session(truth.clip) if session is None else session
            for t, lines in strokes.items():
                answer = session.interact(t, lines)
            taken = clock() - started
            elapsed += taken
            if elapsed <= allowed:
                # A copy: sessions may go on in the array that they gave.
                scores, masks, seconds = truth.score(answer), answer.copy(), taken
        for n, k in enumerate(truth.objects):
            j, f = (float(scores[measure][n].mean()) for measure in ("J", "F"))
            yield Row(i, truth.clip.name, number, k, j, f, seconds)


def _first_strokes(content: Mapping[str, Any], clip: Clip) -> dict[int, list[Stroke]]:
    strokes = strokes_by_frame(content, "first scribbles")
    if len(content["scribbles"]) != len(clip) or not strokes:
        found = f"{len(content['scribbles'])} with strokes on {list(strokes)}"
        raise UserError(f"first scribbles: expected lists for {len(clip)} frames and a stroke, found {found}")
    return strokes


def _next_frame(scores: Mapping[str, np.ndarray], frames: np.ndarray, drawn: set[int], measure: Measure) -> int:
    """Position of the frame of the lowest mean over objects among those not drawn on, the first of equals."""
    values = (scores["J"] + scores["F"]) / 2 if measure == "J&F" else scores[measure]
    fresh = ~np.isin(frames, list(drawn))
    return int(frames[np.where(fresh | ~fresh.any(), values.mean(axis=0), np.inf).argmin()])


def _check(rules: Rules) -> None:
    if rules.measure not in get_args(Measure):
        raise UserError(f"unknown measure {rules.measure!r}; valid: {', '.join(get_args(Measure))}")
    if rules.interactions < 1 or not rules.seconds > 0 or not rules.at >= 0:
        found = f"{rules.interactions}, {rules.seconds} and {rules.at}"
        raise UserError(f"rules: expected at least 1 interaction, seconds above 0 and a threshold, found {found}")
