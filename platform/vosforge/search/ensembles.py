"""From candidates to one model: chosen on videos A, stacked on B, reported on C, as it would run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vosforge import networks
from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation.paired import Difference, paired_difference
from vosforge.evaluation.protocols import Scores
from vosforge.evaluation.running import evaluate
from vosforge.evaluation.truth import Truth
from vosforge.propagation import Model, save_model, segment_clip
from vosforge.search.members import Candidate
from vosforge.search.probabilities import Predictions
from vosforge.search.selecting import (
    SELECTED,
    SINGLE,
    UNIFORM,
    VOTE,
    Board,
    Budget,
    Team,
    affordable,
    cross_fitted,
    overall,
    ranked,
    teams,
)
from vosforge.search.splits import check_apart, split
from vosforge.search.stacking import train_stacking

STACKING = "stacking"
WAYS = (SINGLE, UNIFORM, SELECTED, VOTE, STACKING)
_FEWEST_FOR_GAIN = 5


@dataclass(frozen=True)
class Videos:
    """Three sets of videos that share none: of each a truth and positions in it."""

    select: tuple[Truth, list[int]]
    stack: tuple[Truth, list[int]]
    report: tuple[Truth, list[int]]

    def clips(self, part: str) -> list[Clip]:
        """The videos of a part, decoded."""
        truth, positions = getattr(self, part)
        return [truth.clip(i) for i in positions]


@dataclass
class Row:
    """One way to merge, and what it gave.

    Attributes:
        way: one of `WAYS`.
        team: its members.
        chosen_by, gain_there: J&F on A by stored predictions, and the difference to the best single on videos of A
            that did not choose either, as `cross_fitted` has it.
        reported, gain: J&F on C of the model as it runs, and its difference there.
        scores: on C.
        frames_per_second: on C.
    """

    way: str
    team: Team
    chosen_by: float
    gain_there: Difference
    reported: float = float("nan")
    gain: Difference | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    frames_per_second: float = 0.0


def take_videos(
    validation: str,
    stack: str | None,
    report: str | None,
    trained_on: frozenset[str],
    scored_on: str | None = None,
) -> Videos:
    """The three parts: of one validation set, or of sets of their own.

    Args:
        validation: shards of which half is A, and whatever of the rest no other set replaces.
        stack, report: shards that are B and C whole.
        trained_on: digests of shards that candidates learnt from.
        scored_on: shards of which half scored the trials of sweeps; None where no candidate is of a sweep.

    Raises:
        UserError: when a part was trained on, two share a video, or B or C has one that scored trials.
    """
    truth = Truth(validation)
    parts = split(truth)
    sets = {"select": (truth, parts.select), "stack": (truth, parts.stack), "report": (truth, parts.report)}
    for name, uri in (("stack", stack), ("report", report)):
        if uri is not None:
            other = Truth(uri)
            sets[name] = (other, list(range(len(other))))
    for name, (found, _) in sets.items():
        check_apart(found.uri, trained_on, "validation" if name == "select" else name)
    videos = Videos(**sets)
    _check_disjoint(videos, scored_on if scored_on != validation else None)
    return videos


def _check_disjoint(videos: Videos, scored_on: str | None) -> None:
    """Refuse parts of different sets that share a video, by its first frame."""
    known = _marks(*videos.select)
    if scored_on is not None:
        scored = Truth(scored_on)
        known |= _marks(scored, split(scored).select)
    for part in ("stack", "report"):
        marks = _marks(*getattr(videos, part))
        for mark, where in marks.items():
            if mark in known:
                raise UserError(f"--{part}: video {where[0]} is also in {known[mark][1]}, as {known[mark][0]}; the "
                                "three parts must share none, nor one that scored trials")  # fmt: skip
        known |= marks


def _marks(truth: Truth, positions: list[int]) -> dict[str, tuple[str, str]]:
    """Of some videos, a digest of the first frame: the video's name and its set."""
    found = {}
    for i in positions:
        clip = truth.clip(i)
        mark = hashlib.sha256(np.ascontiguousarray(clip.frames[0]).tobytes()).hexdigest()
        found[mark] = (clip.name, truth.uri)
    return found


@dataclass
class Building:
    """What `choose` works with, and what it found.

    Attributes:
        candidates: all.
        videos: the three parts.
        budget: of the ensemble.
        cache: folder of stored predictions.
        protocol, short_side, device: how models run and are scored.
        seconds: of each candidate, a frame.
        rows: one a way.
    """

    candidates: list[Candidate]
    videos: Videos
    budget: Budget
    cache: Path
    protocol: str = "davis2017"
    short_side: int | None = None
    device: str = "cpu"
    seconds: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def choose(self, say: Callable[[str], None] = lambda line: None) -> list[Row]:
        """Find a team for each way on A, with the stacking network trained on B. C is not looked at.

        Raises:
            UserError: for a budget that no candidate fits.
        """
        board = self._board("select", say)
        self.seconds = [predictions.seconds_per_frame for predictions in board.predictions]
        choosing = self.candidates, self.seconds, self.budget
        for c, score in ranked(board, affordable(*choosing)):
            say(f"candidate {self.candidates[c].name}: J&F {score:.3f} on A, {self.seconds[c] * 1000:.0f} ms a frame")
        found = teams(board, *choosing, lambda told: say(f"selection adds {told['added']}: {told['JF_mean']:.3f} on A"))
        apart = cross_fitted(board, *choosing)
        members = found[VOTE].members
        if len(members) > 1:
            stacking = train_stacking(self._board("stack", say, members), members)
            found[STACKING] = Team(members, (1,) * len(members), stacking)
            apart[STACKING] = board.scores(found[STACKING])
        else:
            # Of one member there is nothing to vote on.
            del found[VOTE]
        for way, team in found.items():
            single = board.scores(found[SINGLE]) if way == STACKING else apart[SINGLE]
            self.rows.append(Row(way, team, overall(board.scores(team)), paired_difference(apart[way], single)))
        return self.rows

    def _board(self, part: str, say: Callable[[str], None], members: tuple[int, ...] | None = None) -> Board:
        truth, positions = getattr(self.videos, part)
        predictions = [Predictions(c, truth, self.cache, self.short_side, self.device) for c in self.candidates]
        needed = range(len(predictions)) if members is None else members
        for c in needed:
            predictions[c].compute(positions)
            say(f"probabilities of {self.candidates[c].name} on {len(positions)} videos: {predictions[c].folder}")
        return Board(predictions, positions, self.protocol)

    def winner(self) -> Row:
        """The way with the highest J&F on A whose gain there is above 0 by its whole interval, else the best single."""
        sure = [row for row in self.rows if row.gain_there.low > 0 and row.gain_there.videos >= _FEWEST_FOR_GAIN]
        return max(sure, key=lambda row: row.chosen_by) if sure else self.rows[0]

    def report(self) -> list[Row]:
        """Run every way's model on C, each member remembering the merged masks, and compare with the best single."""
        methods = {row.way: partial(_segment, self.model(row.team), self.device) for row in self.rows}
        truth, positions = self.videos.report
        found = evaluate(methods, (truth.clip(i) for i in positions), self.protocol)
        for row in self.rows:
            result = found[row.way]
            row.reported, row.scores = float(result["J&F"]), result["scores"]
            row.frames_per_second = result["frames_per_second"]
            row.gain = paired_difference(row.scores, found[SINGLE]["scores"])
        return self.rows

    def model(self, team: Team) -> Model:
        """A team as one model."""
        members = [self.candidates[c] for c in team.members]
        return Model(
            [networks.load(member.network) for member in members],
            [member.memory_every for member in members],
            short_side=self.short_side,
            how=team.how,
            counts=list(team.counts),
        )

    def save(self, team: Team, folder: Path) -> Path:
        """Write a team as one model's folder."""
        members = [self.candidates[c] for c in team.members]
        every = [member.memory_every for member in members]
        return save_model(
            folder,
            [member.network for member in members],
            every[0] if len(set(every)) == 1 else every,
            short_side=self.short_side,
            how=team.how,
            counts=list(team.counts),
        )

    def told(self, row: Row) -> dict[str, Any]:
        """A row as JSON."""
        members = zip(row.team.members, row.team.counts, strict=True)
        return {
            "way": row.way,
            "members": [{"name": self.candidates[c].name, "count": count, "seconds_per_frame": self.seconds[c],
                         "network": self.candidates[c].source} for c, count in members],
            "selection": {"JF_mean": row.chosen_by, "gain": row.gain_there._asdict()},
            "report": {"JF_mean": row.reported, "gain": row.gain._asdict() if row.gain else None},
            "frames_per_second": row.frames_per_second,
        }  # fmt: skip


def _segment(model: Model, device: str, clip: Clip) -> np.ndarray:
    with torch.inference_mode():
        return segment_clip(model.start(device), clip, model.short_side)


def verdict(row: Row) -> str:
    """A way's gain on C in words: a loss is called one."""
    gain = row.gain
    if gain is None or not gain.videos:
        return "nothing was scored"
    within = "" if gain.low > 0 or gain.high < 0 else ", within its interval of none"
    word = "a gain" if gain.mean > 0 else "a loss" if gain.mean < 0 else "no gain"
    return f"{word} of {gain.mean:+.3f}, {gain.low:+.3f} to {gain.high:+.3f} over {gain.videos} videos{within}"
