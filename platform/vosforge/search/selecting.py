"""Choosing an ensemble's members: greedy forward selection with replacement, on stored predictions.

R. Caruana, A. Niculescu-Mizil, G. Crew, A. Ksikes: "Ensemble Selection from Libraries of Models", ICML 2004.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vosforge.errors import UserError
from vosforge.evaluation.protocols import Scores, score
from vosforge.evaluation.report import summarise
from vosforge.networks.stacking import StackingNetwork
from vosforge.propagation.ensemble import How, merge
from vosforge.search.members import Candidate
from vosforge.search.probabilities import Predictions, Watched

# More rounds would weigh members in steps finer than a validation set can tell apart.
_MOST_ROUNDS = 10
_FOLDS = 5

SINGLE, UNIFORM, SELECTED, VOTE = "best single", "uniform average", "selected average", "vote"


@dataclass(frozen=True)
class Budget:
    """What an ensemble may cost.

    Attributes:
        members: most different networks.
        seconds_per_frame: most time, summed over them; None sets no limit.
    """

    members: int = 3
    seconds_per_frame: float | None = None

    def __post_init__(self) -> None:
        if self.members < 1:
            raise UserError(f"an ensemble needs at least one member, found --members {self.members}")


@dataclass(frozen=True)
class Team:
    """Members by position among the candidates, how often each counts, and how they are merged."""

    members: tuple[int, ...]
    counts: tuple[int, ...]
    how: How | StackingNetwork = "average"


class Board:
    """Candidates' stored predictions on some videos, and what teams of them score.

    Args:
        predictions: of each candidate.
        positions: of the videos.
        protocol: as in `score`.
    """

    def __init__(self, predictions: list[Predictions], positions: Sequence[int], protocol: str):
        self.predictions, self.positions, self.protocol = predictions, positions, protocol
        self.videos = [Watched.of(predictions[0].truth.clip(i)) for i in positions]
        self._looked_at = range(len(positions))
        self._known: dict[tuple[Team, int], Scores] = {}

    def only(self, places: Sequence[int]) -> Board:
        """The board with some of its videos, by their place; what is scored on either is known to both."""
        part = copy.copy(self)
        part._looked_at = places
        return part

    def scores(self, team: Team) -> dict[str, Scores]:
        """J and F of a team's merged predictions, by video."""
        return {self.videos[v].name: self._score(team, v) for v in self._looked_at}

    def _score(self, team: Team, v: int) -> Scores:
        if (team, v) not in self._known:
            video = self.videos[v]
            self._known[team, v] = score(video.masks, video.labels(self.merged(team, v)), self.protocol)
        return self._known[team, v]

    def merged(self, team: Team, v: int) -> torch.Tensor:
        """`(A, K + 1, h, w)` merged probabilities of the v-th video."""
        found = self.stacked(team.members, v)
        if isinstance(team.how, StackingNetwork):
            return stack_frames(team.how, self.videos[v], found)
        return merge(found, team.how, team.counts)

    def stacked(self, members: Sequence[int], v: int) -> torch.Tensor:
        """`(M, A, K + 1, h, w)` probabilities of some candidates on the v-th video."""
        loaded = [np.array(self.predictions[c].load(self.positions[v])) for c in members]
        return torch.from_numpy(np.stack(loaded)).float() / 255


@torch.inference_mode()
def stack_frames(network: StackingNetwork, video: Watched, found: torch.Tensor) -> torch.Tensor:
    """`(A, K + 1, h, w)` probabilities of a stacking network on `(M, A, K + 1, h, w)` of its members."""
    if not video.objects:
        return found.mean(dim=0)
    frames = reduced_frames(video, found.shape[-2:])
    return network.eval()(frames, found.transpose(0, 1)).softmax(dim=1)


def reduced_frames(video: Watched, size: Sequence[int]) -> torch.Tensor:
    """`(A, 3, h, w)` frames in [0, 1] at the size of the predictions."""
    frames = torch.from_numpy(video.frames).permute(0, 3, 1, 2).float() / 255
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return torch.nn.functional.interpolate(frames, tuple(size), mode="area")


def overall(scores: dict[str, Scores]) -> float:
    """Mean J&F over all objects."""
    return float(summarise(scores)["J&F"])


def affordable(candidates: list[Candidate], seconds: list[float], budget: Budget) -> list[int]:
    """Positions of candidates that fit the budget alone.

    Raises:
        UserError: when none does.
    """
    most = budget.seconds_per_frame
    fitting = [c for c in range(len(candidates)) if most is None or seconds[c] <= most]
    if not fitting:
        raise UserError(
            f"--seconds-per-frame {most:g}: no candidate fits, the fastest takes {min(seconds):.3g} s; allow more"
        )
    return fitting


def ranked(board: Board, fitting: list[int]) -> list[tuple[int, float]]:
    """Candidates with their J&F, best first."""
    alone = [(c, overall(board.scores(Team((c,), (1,))))) for c in fitting]
    return sorted(alone, key=lambda pair: -pair[1])


def uniform(
    ranking: list[tuple[int, float]], candidates: list[Candidate], seconds: list[float], budget: Budget
) -> Team:
    """The best candidates that differ from each other and fit the budget together, each counted once (EMN, 3.3)."""
    members: list[int] = []
    for c, _ in ranking:
        if _fits(c, members, candidates, seconds, budget):
            members.append(c)
    return Team(tuple(members), (1,) * len(members))


def select(
    board: Board,
    ranking: list[tuple[int, float]],
    candidates: list[Candidate],
    seconds: list[float],
    budget: Budget,
    on_round: Callable[[dict[str, Any]], None] = lambda told: None,
) -> Team:
    """Start from the best candidate, and add, time and again, the one whose addition raises J&F most.

    A candidate may be added several times: it then counts more. Any two members differ in at least one part.

    Args:
        board: to select by.
        ranking: as `ranked` gives it.
        candidates, seconds: all of them, with each one's seconds a frame.
        budget: of the team.
        on_round: hears `{"added", "JF_mean"}`.
    """
    first, best = ranking[0]
    picked = [first]
    for _ in range(_MOST_ROUNDS - 1):
        tried = [
            (overall(board.scores(_team([*picked, c]))), c)
            for c, _ in ranking
            if c in picked or _fits(c, picked, candidates, seconds, budget)
        ]
        reached, added = max(tried, key=lambda pair: (pair[0], -pair[1]))
        if reached <= best:
            break
        picked, best = [*picked, added], reached
        on_round({"added": candidates[added].name, "JF_mean": best})
    return _team(picked)


def teams(
    board: Board,
    candidates: list[Candidate],
    seconds: list[float],
    budget: Budget,
    on_round: Callable[[dict[str, Any]], None] = lambda told: None,
) -> dict[str, Team]:
    """The team of each way that follows from a board alone; arguments as of `select`.

    Votes are of the selected members, or of the best that differ where nobody was added to the first.

    Raises:
        UserError: for a budget that no candidate fits.
    """
    ranking = ranked(board, affordable(candidates, seconds, budget))
    chosen = select(board, ranking, candidates, seconds, budget, on_round)
    equal = uniform(ranking, candidates, seconds, budget)
    voting = chosen if len(chosen.members) > 1 else equal
    return {
        SINGLE: Team((ranking[0][0],), (1,)),
        UNIFORM: equal,
        SELECTED: chosen,
        VOTE: Team(voting.members, voting.counts, "vote"),
    }


def cross_fitted(
    board: Board, candidates: list[Candidate], seconds: list[float], budget: Budget
) -> dict[str, dict[str, Scores]]:
    """What each way gives on videos that did not choose its team.

    The board's videos are parted in five; each part is scored by teams, the best single network among them, that the
    others chose. Differences of these scores do not owe anything to the choice having been made on them.

    Returns:
        By way, J and F by video.
    """
    places = range(len(board.videos))
    folds = min(_FOLDS, len(places))
    found: dict[str, dict[str, Scores]] = {}
    for fold in range(folds):
        chosen = teams(board.only([v for v in places if v % folds != fold]), candidates, seconds, budget)
        held = board.only(places[fold::folds])
        for way, team in chosen.items():
            found.setdefault(way, {}).update(held.scores(team))
    return found


def _team(picked: list[int]) -> Team:
    members = tuple(dict.fromkeys(picked))
    return Team(members, tuple(picked.count(c) for c in members))


def _fits(c: int, members: Sequence[int], candidates: list[Candidate], seconds: list[float], budget: Budget) -> bool:
    """Whether a candidate may join a team: it differs from all members, and the team stays within its budget."""
    distinct = set(members)
    if len(distinct) >= budget.members or not all(candidates[c].differs(candidates[other]) for other in distinct):
        return False
    total = seconds[c] + sum(seconds[other] for other in distinct)
    return budget.seconds_per_frame is None or total <= budget.seconds_per_frame
