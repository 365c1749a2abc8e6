"""Three parts of a validation set that share no video: to select by, to train the stacking network on, to report on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import NamedTuple

from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.evaluation.truth import Truth

FEWEST_VIDEOS = 4


def check_apart(uri: str, trained_on: Collection[str], flag: str) -> None:
    """Refuse videos that were trained on.

    Args:
        uri: of shards.
        trained_on: digests of shards.
        flag: that named the videos, for the message.

    Raises:
        UserError: when they are the same shards.
    """
    if ShardSet(uri).digest in trained_on:
        raise UserError(f"{uri}: networks are trained on these videos; --{flag} needs others")


class Split(NamedTuple):
    """Positions of videos: half of them in A, a quarter in B, the rest in C."""

    select: list[int]
    stack: list[int]
    report: list[int]


def split(truth: Truth) -> Split:
    """The parts of a set, by the names of its videos: whoever asks gets the same.

    Raises:
        UserError: for a set that is too small for three parts.
    """
    count = len(truth)
    if count < FEWEST_VIDEOS:
        raise UserError(
            f"{truth.uri}: expected at least {FEWEST_VIDEOS} videos, half of which choose, a quarter trains the "
            f"stacking network and a quarter is reported on; found {count}"
        )
    order = sorted(range(count), key=lambda i: hashlib.sha256(truth.names[i].encode()).digest())
    half, quarter = count // 2, count // 4
    return Split(*(sorted(part) for part in (order[:half], order[half : half + quarter], order[half + quarter :])))
