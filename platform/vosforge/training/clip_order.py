"""The order of clips in training. Kept free of torch, so that the processes that decode clips start fast."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vosforge.clip import Clip
from vosforge.data.sampling import ClipSampler
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.training.stages import Stage


def stage_sampler(stage: Stage, sets: list[ShardSet], seed: int) -> ClipSampler:
    """The sampler of a stage over those sets that are of its kinds.

    Raises:
        UserError: when there is none, or a repeated data set is in none of them.
    """
    if not any(shards.kind in stage.kinds for shards in sets):
        found = ", ".join(f"{shards.uri} ({shards.kind})" for shards in sets) or "none"
        raise UserError(f"stage {stage.name} needs shards of kind {' or '.join(stage.kinds)} in --data; found {found}")
    usable = [shards for shards in sets if shards.kind in stage.kinds + stage.also]
    absent = [name for name, _ in stage.repeats if name.lower() not in dataset_names(usable)]
    if absent:
        found = ", ".join(sorted({video.dataset for shards in usable for video in shards.videos}))
        raise UserError(f"stage {stage.name}: repeats of {absent[0]}, but the data sets in --data are {found}")
    return ClipSampler(usable, stage.sampling, seed, stage.name, stage.repeats, stage.steps * stage.batch)


def dataset_names(sets: list[ShardSet]) -> set[str]:
    """Names of the data sets in shards, in lower case."""
    return {video.dataset.lower() for shards in sets for video in shards.videos}


def clip_numbers(step: int, batch: int, rank: int, world: int) -> range:
    """Which clips of the stage a worker takes at a step: its slice of `step * batch ... + batch - 1`.

    Raises:
        UserError: when the global batch cannot be shared equally.
    """
    if batch % world:
        raise UserError(
            f"the global batch of {batch} clips cannot be shared by {world} workers; take a number that divides it"
        )
    share = batch // world
    first = step * batch + rank * share
    return range(first, first + share)


def check_clips(clips: list[Clip], expected: range) -> None:
    """Refuse clips that are not the ones due: a feed out of order would train on other data than it says.

    Raises:
        RuntimeError: naming both.
    """
    found = [clip.name for clip in clips]
    if found != [str(i) for i in expected]:
        raise RuntimeError(f"the data feed is out of order: expected clips {list(expected)}, received {found}")


def clip_loader(
    stage: Stage, data: list[str], seed: int, first: int, rank: int, world: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """A function from a step, counted from `first`, to a worker's clips of it as one row of arrays."""
    sampler = stage_sampler(stage, [ShardSet(uri) for uri in data], seed)

    def load(step: int) -> dict[str, np.ndarray]:
        numbers = clip_numbers(first + step, stage.batch, rank, world)
        clips = [sampler.clip(i) for i in numbers]
        return {
            "numbers": np.array(numbers),
            "frames": np.stack([clip.frames for clip in clips]),
            "masks": np.stack([clip.masks for clip in clips]),
        }

    return load
