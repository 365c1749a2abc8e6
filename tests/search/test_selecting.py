"""Selection on predictions that lie on the disk, written here so that the best team is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.evaluation.truth import Truth
from vosforge.networks.stacking import StackingNetwork
from vosforge.search.members import Candidate
from vosforge.search.probabilities import Predictions
from vosforge.search.selecting import (
    SELECTED,
    SINGLE,
    VOTE,
    Board,
    Budget,
    Team,
    affordable,
    cross_fitted,
    overall,
    ranked,
    select,
    uniform,
)
from vosforge.search.stacking import train_stacking

POSITIONS = [0, 1, 2, 3]


def candidate(name: str, reader: str) -> Candidate:
    return Candidate(name, Path(f"{name}.safetensors"), name, 5, {"reader": reader}, name)


def write(predictions: Predictions, truth: Truth, wrong: tuple[slice, slice], sure: float) -> Predictions:
    """A candidate that is right but in a region, where it takes object for background and the other way round."""
    predictions.folder.mkdir(parents=True)
    for i in POSITIONS:
        masks = truth.clip(i).masks
        found = np.where(masks > 0, sure, 1 - sure)
        found[:, wrong[0], wrong[1]] = 1 - found[:, wrong[0], wrong[1]]
        both = np.stack([1 - found, found], axis=1)
        np.save(predictions.folder / f"{i:05d}.npy", (both * 255).round().astype(np.uint8))
    return predictions


@pytest.fixture
def truth(tmp_path, build_shards, moving) -> Truth:
    build_shards(tmp_path / "validation", [moving(f"v{i}", i) for i in range(4)])
    return Truth(str(tmp_path / "validation"))


@pytest.fixture
def candidates() -> list[Candidate]:
    return [
        candidate("top", "dense"),
        candidate("left", "topk"),
        candidate("twin", "dense"),
        candidate("bad", "kernel"),
    ]


@pytest.fixture
def board(truth, candidates, tmp_path) -> Board:
    """Wrong above, wrong at the left (and a little more), as the first one, and wrong everywhere."""
    regions = [np.s_[:12, :], np.s_[:, :14], np.s_[:13, :], np.s_[:, :]]
    sure = [0.8, 0.9, 0.8, 0.9]
    predictions = [
        write(Predictions(one, truth, tmp_path / "cache"), truth, region, how_sure)
        for one, region, how_sure in zip(candidates, regions, sure, strict=True)
    ]
    return Board(predictions, POSITIONS, "davis2017")


def test_selection_takes_what_adds_most_and_never_two_members_of_the_same_parts(board, candidates):
    ranking = ranked(board, [0, 1, 2, 3])
    rounds = []
    team = select(board, ranking, candidates, [1.0] * 4, Budget(3), rounds.append)
    best = overall(board.scores(Team((ranking[0][0],), (1,))))
    assert not {0, 2} <= set(team.members)
    assert 3 not in team.members
    assert overall(board.scores(team)) >= best
    assert [told["JF_mean"] for told in rounds] == sorted(told["JF_mean"] for told in rounds)
    assert uniform(ranking, candidates, [1.0] * 4, Budget(3)).members == (1, 0, 3)


def test_gains_are_measured_on_videos_that_did_not_choose(truth, tmp_path):
    """Each of two candidates is right on half of the videos alone; whichever half chooses, the other one refutes."""
    two = [candidate("even", "dense"), candidate("odd", "topk")]
    predictions = [Predictions(one, truth, tmp_path / "cache") for one in two]
    for right, one in enumerate(predictions):
        one.folder.mkdir(parents=True)
        for i in POSITIONS:
            found = np.where(truth.clip(i).masks > 0, 0.9, 0.1)
            found = found if i % 2 == right else 1 - found
            np.save(one.folder / f"{i:05d}.npy", (np.stack([1 - found, found], 1) * 255).round().astype(np.uint8))
    board = Board(predictions, POSITIONS, "davis2017")
    apart = cross_fitted(board.only(range(4)), two, [1.0, 1.0], Budget(1))
    assert apart.keys() >= {SINGLE, SELECTED, VOTE}
    assert sorted(apart[SINGLE]) == ["v0", "v1", "v2", "v3"]
    # Three of four videos choose: the candidate that is right on two of them, which is wrong on the fourth.
    # A mask turned inside out keeps its border: J is 0, F is 1.
    assert overall(apart[SINGLE]) == pytest.approx(0.5)
    assert overall(board.scores(Team((0,), (1,)))) == pytest.approx(0.75)


def test_a_member_that_is_added_again_counts_more(truth, tmp_path):
    """Two wrong ones that are unsure, against one that is right and unsure: it takes two of it to win everywhere."""
    ones = [candidate("right", "dense"), candidate("wrong", "topk")]
    regions = [np.s_[:2, :], np.s_[2:, :]]
    stored = [
        write(Predictions(one, truth, tmp_path / "cache"), truth, region, sure)
        for one, region, sure in zip(ones, regions, (0.7, 0.8), strict=True)
    ]
    board = Board(stored, POSITIONS, "davis2017")
    once = overall(board.scores(Team((0, 1), (1, 1))))
    twice = overall(board.scores(Team((0, 1), (2, 1))))
    assert twice > once


def test_budgets_limit_members_and_time(board, candidates):
    ranking = ranked(board, [0, 1, 2, 3])
    assert len(select(board, ranking, candidates, [1.0] * 4, Budget(1)).members) == 1
    assert len(uniform(ranking, candidates, [1.0] * 4, Budget(3, 1.5)).members) == 1
    assert affordable(candidates, [0.5, 2.0, 3.0, 1.0], Budget(3, 1.0)) == [0, 3]
    with pytest.raises(UserError, match=r"--seconds-per-frame 0.1: no candidate fits, the fastest takes 0.5 s"):
        affordable(candidates, [0.5, 2.0, 3.0, 1.0], Budget(3, 0.1))
    with pytest.raises(UserError, match="at least one member, found --members 0"):
        Budget(0)


def test_votes_and_stacking_networks_merge_the_same_predictions(board):
    vote = board.merged(Team((0, 1), (2, 1), "vote"), 0)
    average = board.merged(Team((0, 1), (1, 1)), 0)
    fresh = board.merged(Team((0, 1), (1, 1), StackingNetwork(2)), 0)
    assert vote.shape == average.shape == fresh.shape == (4, 2, 32, 40)
    # A stacking network starts as the average of its members.
    assert torch.allclose(fresh, average, atol=1e-3)
    assert torch.equal(vote.argmax(dim=1), board.merged(Team((0,), (1,)), 0).argmax(dim=1))


def test_the_stacking_network_learns_where_to_trust_whom(board):
    """What is the object the picture shows by its brightness, where the average of the two is wrong."""
    average = overall(board.scores(Team((0, 1), (1, 1))))
    network = train_stacking(board, (0, 1), steps=400)
    assert overall(board.scores(Team((0, 1), (1, 1), network))) > average + 0.02
    first, again = (train_stacking(board, (0, 1), steps=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_stacking_without_a_frame_to_learn_from_is_refused(board):
    board.videos = [replace(video, objects=[]) for video in board.videos]
    with pytest.raises(UserError, match="no video has an annotated frame after its objects' first ones"):
        train_stacking(board, (0, 1))
