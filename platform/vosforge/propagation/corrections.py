"""Corrected masks carried outward, for networks that take no scribbles.

From every frame that the user corrected a propagation of its own runs forward and one backward, each as far as the
next corrected frame. Between two of those the masks of both are blended by distance in time: MiVOS (Cheng et al.,
CVPR 2021) without its learnt fusion.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from vosforge.propagation.packing import Packed
from vosforge.propagation.segmenter import Segmenter


class Correction(NamedTuple):
    """A mask that the user gave.

    Attributes:
        mask: `(H, W)` uint8 ids.
        objects: ids known then; it says where each of them is, or that it is not in sight.
    """

    mask: np.ndarray
    objects: tuple[int, ...]

    def planes(self) -> torch.Tensor:
        """`(K, H, W)` float32, each object's mask."""
        return torch.from_numpy(np.stack([self.mask == k for k in self.objects])).float()

    def entered(self, probabilities: torch.Tensor, objects: Sequence[int]) -> torch.Tensor:
        """Probabilities `(K + 1, H, W)` of `objects` with this mask: exact for those it knows, over later ones."""
        known = dict(zip(self.objects, self.planes(), strict=True))
        free = torch.from_numpy(self.mask == 0).float()
        predicted = zip(objects, probabilities[1:], strict=True)
        foreground = torch.stack([known[k] if k in known else plane * free for k, plane in predicted])
        return torch.cat([(1 - foreground.sum(dim=0, keepdim=True)).clamp(min=0), foreground])


def affected(corrections: Mapping[int, Correction], frame: int, length: int) -> range:
    """The frames whose masks depend on the correction of one frame, in a video of some length."""
    reach = [_reach(corrections, k, frame, length) for k in corrections[frame].objects]
    return range(min(low for low, _ in reach) + 1, max(high for _, high in reach))


def carry(
    start: Segmenter,
    frame: Callable[[int], np.ndarray],
    corrections: Mapping[int, Correction],
    span: range,
    length: int,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[int, dict[int, torch.Tensor]]]:
    """Masks of some frames from all corrections.

    An object follows the corrections that know it: those made before it entered say nothing of it.

    Args:
        start: a segmenter; fresh ones like it are started.
        frame: gives the frame `(H, W, 3)` uint8 at a position.
        corrections: by position.
        span: the frames asked for.
        length: of the video.
        on_frame: hears how many frames of how many are segmented; both directions count.

    Yields:
        Position, and object -> `(H, W)` probability in [0, 1], without the objects whose masks were given there.
    """
    found: dict[int, dict[tuple[int, int], Packed]] = defaultdict(dict)
    ways = list(_ways(corrections, span, length))
    done, total = 0, sum(len(way) for _, way in ways)
    for anchor, way in ways:
        for t, k, plane in _pass(start, frame, anchor, corrections[anchor], way):
            if t in span:
                found[t][anchor, k] = plane
            on_frame(done + abs(t - anchor), total)
        done += len(way)
    for t in span:
        yield t, _blended(corrections, t, length, found.pop(t, {}), frame(t).shape[:2])


def _ways(corrections: Mapping[int, Correction], span: range, length: int) -> Iterator[tuple[int, range]]:
    """The corrected frames from which a propagation runs, and the frames that it passes."""
    for anchor, correction in corrections.items():
        reach = [_reach(corrections, k, anchor, length) for k in correction.objects]
        before = range(anchor - 1, max(min(low for low, _ in reach), span.start - 1), -1)
        after = range(anchor + 1, min(max(high for _, high in reach), span.stop))
        # The end of a way is in the span, or none of it is.
        yield from ((anchor, way) for way in (before, after) if way and way[-1] in span)


def _pass(
    start: Segmenter, frame: Callable[[int], np.ndarray], anchor: int, correction: Correction, way: range
) -> Iterator[tuple[int, int, Packed]]:
    """One propagation from a corrected frame: position, object and probability."""
    if not correction.mask.any():
        return
    segmenter = start.fresh()
    segmenter.step(frame(anchor), correction.mask)
    for t in way:
        for k, plane in zip(segmenter.objects, segmenter.step(frame(t))[1:], strict=True):
            yield t, k, Packed.of_probabilities(plane, np.uint16)


def _blended(
    corrections: Mapping[int, Correction],
    t: int,
    length: int,
    found: Mapping[tuple[int, int], Packed],
    size: tuple[int, int],
) -> dict[int, torch.Tensor]:
    """Every object's probability from the nearest corrections before and after that know it."""
    planes = {}
    for k in sorted({k for correction in corrections.values() for k in correction.objects}):
        if t in corrections and k in corrections[t].objects:
            continue
        low, high = _reach(corrections, k, t, length)
        weights = {low: high - t, high: t - low}
        if low < 0 or high >= length:
            weights = {(high if low < 0 else low): 1}
        planes[k] = torch.zeros(size)
        for anchor, weight in weights.items():
            # An object that its correction does not show stays away.
            if (anchor, k) in found:
                planes[k] += found[anchor, k].probabilities() * weight / sum(weights.values())
    return planes


def _reach(corrections: Mapping[int, Correction], k: int, t: int, length: int) -> tuple[int, int]:
    """The nearest corrected frames before and after `t` that know an object; -1 and `length` where there is none."""
    frames: Sequence[int] = sorted(u for u, correction in corrections.items() if k in correction.objects)
    before, after = bisect_left(frames, t), bisect_right(frames, t)
    return (frames[before - 1] if before else -1), (frames[after] if after < len(frames) else length)
