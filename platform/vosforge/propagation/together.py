"""Several videos through one network in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork
from vosforge.propagation.calls import finish_together
from vosforge.propagation.propagator import Propagator
from vosforge.propagation.segmenter import Frame, given_masks

Video = Clip | tuple[Iterable[Frame], Mapping[int, np.ndarray]]


def propagate(
    videos: Iterable[Video], network: MemoryNetwork, batch: int = 4, **options: Any
) -> Iterator[np.ndarray | UserError]:
    """Segment videos, several at a time, with the masks that each would get alone, up to ties of float rounding.

    Encoders and decoders run once a frame for all videos of the batch that have frames of one size, padded to the most
    objects among them; every video keeps its own memory, however many frames that holds. A video that ends makes
    room for the next. Sums over a batch of another size are rounded otherwise, in the last bits; a pixel may go to
    another object where two are as probable to that precision.

    Args:
        videos: clips, whose masks say what is given, or pairs of frames, one by one as `Propagator.step` takes them,
            and position -> `(H, W)` mask given there. Any lengths, sizes and numbers of objects.
        network: put in evaluation mode.
        batch: most videos at a time.
        options: of `Propagator`.

    Yields:
        In the order of the videos `(T, H, W)` uint8 ids, or the error of a video that could not be segmented.

    Raises:
        UserError: for a batch below 1, and as `Propagator`.
    """
    if type(batch) is not int or batch < 1:
        raise UserError(f"batch must be a number of videos of at least 1, found {batch!r}")
    if not isinstance(network, MemoryNetwork):
        raise UserError(f"propagate runs one network, found {type(network).__name__}; segment_clip takes segmenters")
    first = Propagator(network, **options)
    waiting = enumerate(videos)
    running: dict[int, _Run] = {}
    done: dict[int, np.ndarray | UserError] = {}
    answered = 0
    while True:
        for i, video in islice(waiting, batch - len(running)):
            try:
                running[i] = _Run(video, first.fresh())
            except UserError as error:
                done[i] = error
        if not running and not done:
            return
        if running:
            done.update(_advance(running, first))
        while answered in done:
            yield done.pop(answered)
            answered += 1


class _Run:
    """A video on its way: what is left of its frames, and its masks so far."""

    def __init__(self, video: Video, propagator: Propagator):
        if isinstance(video, Clip):
            frames, self.given = video.frames, given_masks(video)
        elif _is_pair(video):
            frames, self.given = video
        else:
            raise UserError(f"expected a Clip, or a pair (frames, position -> mask), found {type(video).__name__}")
        self.left = iter(frames)
        self.propagator = propagator
        self.masks: list[np.ndarray] = []

    def masks_so_far(self) -> np.ndarray | UserError:
        late = [t for t in self.given if t >= len(self.masks)]
        if late and self.masks:
            return UserError(f"a mask is given at frame {min(late)}, the video has {len(self.masks)} frames")
        return np.stack(self.masks) if self.masks else UserError("the video has no frame")


def _is_pair(video: Any) -> bool:
    """Whether it is frames and masks by position, from 0."""
    if not isinstance(video, tuple) or len(video) != 2 or not isinstance(video[0], Iterable):
        return False
    return isinstance(video[1], Mapping) and all(isinstance(t, Integral) and t >= 0 for t in video[1])


def _advance(running: dict[int, _Run], shared: Propagator) -> dict[int, np.ndarray | UserError]:
    """Send the next frame of every video; those that end or fail leave, with their results."""
    ended: dict[int, np.ndarray | UserError] = {}
    stepping = {}
    for i, run in list(running.items()):
        try:
            frame = next(run.left, None)
        except (UserError, OSError) as error:
            running.pop(i)
            ended[i] = UserError(f"frame {len(run.masks)}: {error}")
            continue
        if frame is None:
            ended[i] = running.pop(i).masks_so_far()
        else:
            stepping[i] = run.propagator.stepping(frame, run.given.get(len(run.masks)))
    with torch.inference_mode(), shared.precision():
        found = finish_together(list(stepping.values()), shared.network)
    for i, probabilities in zip(stepping, found, strict=True):
        if isinstance(probabilities, UserError):
            ended[i] = probabilities
            running.pop(i)
        else:
            running[i].masks.append(running[i].propagator.labels(probabilities))
    return ended
