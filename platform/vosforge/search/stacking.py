"""Training the stacking network on videos that selection did not see (CAMN, 2.3)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from vosforge.errors import UserError
from vosforge.networks.stacking import StackingNetwork
from vosforge.search.probabilities import Watched
from vosforge.search.selecting import Board, reduced_frames
from vosforge.training.stacking import Lesson, fit_stacking

_FRAMES = 2


def train_stacking(board: Board, members: tuple[int, ...], steps: int = 150, seed: int = 0) -> StackingNetwork:
    """Learn from stored predictions to merge some members, beginning from their average.

    Args:
        board: of videos that the members were not chosen by.
        members: positions among its candidates.
        steps: of Adam, each on two frames of one video.
        seed: of weights and the order of videos.

    Raises:
        UserError: when no frame of the videos has an object to learn.
    """
    lessons = [(v, frames) for v, video in enumerate(board.videos) if (frames := _frames(video)) and video.objects]
    if not lessons:
        raise UserError("stacking: no video has an annotated frame after its objects' first ones")

    def draw(rng: np.random.Generator) -> Lesson:
        v, frames = lessons[rng.integers(len(lessons))]
        chosen = rng.choice(frames, min(_FRAMES, len(frames)), replace=False)
        return _lesson(board, members, v, np.sort(chosen))

    return fit_stacking(len(members), draw, steps, seed)


def _frames(video: Watched) -> list[int]:
    """Annotated frames in which something is left to predict."""
    return [a for a in range(len(video.masks)) if a not in video.given and video.masks[a].any()]


def _lesson(board: Board, members: tuple[int, ...], v: int, frames: np.ndarray) -> Lesson:
    """Some frames of the v-th video, at the size of the predictions."""
    video, places = board.videos[v], torch.from_numpy(frames)
    found = board.stacked(members, v)[:, places]
    images = reduced_frames(video, found.shape[-2:])[places]
    classes = torch.from_numpy(np.searchsorted([0, *video.objects], _known(video)[frames]))
    wanted = F.interpolate(classes[:, None].float(), tuple(found.shape[-2:]), mode="nearest")[:, 0].long()
    return images, found.transpose(0, 1), wanted


def _known(video: Watched) -> np.ndarray:
    """Masks of the objects that are followed; void and others are background."""
    return np.where(np.isin(video.masks, video.objects), video.masks, 0)
