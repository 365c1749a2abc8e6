"""Clip sampling: which clip training sees at which place, as a pure function.

Clip i of a stage depends on (seed, stage, i, digests of the shard sets, resolved settings) and on nothing else: not
on a worker, an order or a clock. So any number of workers sees the same data, and a resumed run goes on exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from vosforge.clip import Clip
from vosforge.data.geometry import affine, keep_objects, only_ids, warp
from vosforge.data.pseudo_video import PseudoVideoRecipe, pseudo_video
from vosforge.data.redrawn import RedrawnRecipe
from vosforge.data.shards import ShardSet, Video
from vosforge.errors import UserError
from vosforge.storage import canonical

_TRIALS = 6


@dataclass(frozen=True)
class SamplingRecipe:
    """How clips are cut out of videos.

    Attributes:
        frames: T of a training clip.
        crop: (height, width) of it in pixels.
        gaps: largest distance between two neighbouring frames of a clip, by progress of the stage: pairs of a progress
            and the distance that holds from it on. Distances are in frames of the video, where its annotated frames
            are named by numbers; YouTube-VOS annotates every fifth.
        objects: most objects of a clip.
        scale: range of the share of the frame's shorter side that the crop covers.
        rotation: per-frame jitter in degrees, uniform in +-value; shear likewise.
        colour: per-clip jitter of brightness and contrast, uniform in 1 +- value.
        still: how a video of one frame is set in motion; its frames, size and objects follow the clip's.
    """

    frames: int = 3
    crop: tuple[int, int] = (384, 384)
    gaps: tuple[tuple[float, int], ...] = ((0.0, 5),)
    objects: int = 3
    scale: tuple[float, float] = (0.6, 1.0)
    rotation: float = 10.0
    shear: float = 5.0
    colour: float = 0.1
    still: PseudoVideoRecipe | RedrawnRecipe = field(default_factory=PseudoVideoRecipe)

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.gaps]
        if not starts or starts[0] != 0 or starts != sorted(starts) or any(gap < 1 for _, gap in self.gaps):
            raise UserError(f"sampling: expected gaps from progress 0 on, ascending and at least 1, found {self.gaps}")
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise UserError(f"sampling: scale must be a range of shares above 0, found {low} to {high}")
        for name in ("rotation", "shear", "colour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"sampling: {name} must be at least 0, found {getattr(self, name)}")
        if self.frames < 2 or min(self.crop) < 16 or self.objects < 1:
            raise UserError(
                f"sampling: expected at least 2 frames, crops of at least 16 pixels and 1 object, "
                f"found {self.frames}, {self.crop} and {self.objects}"
            )


class ClipSampler:
    """Draws training clips from shard sets.

    Args:
        sets: the stage's shard sets.
        recipe: how clips are cut.
        seed: of the run.
        stage: its name, so that stages draw different clips.
        repeats: data sets whose videos are drawn more often, and how many times.
        clips: how many the stage draws in all, of which clip i's progress is a share.

    Raises:
        UserError: when no video has an object to learn from, or for a repeated data set that is not there.
    """

    def __init__(
        self,
        sets: list[ShardSet],
        recipe: SamplingRecipe,
        seed: int,
        stage: str,
        repeats: Sequence[tuple[str, float]] = (),
        clips: int | None = None,
    ):
        self.sets = sets
        self.recipe = recipe
        self.clips = clips
        self.videos = [(s, video) for s, shards in enumerate(sets) for video in shards.videos if len(video.objects)]
        if not self.videos:
            raise UserError(f"stage {stage}: no video with an object in {', '.join(s.uri for s in sets) or 'no data'}")
        times = {name.lower(): factor for name, factor in repeats}
        weights = np.array([times.get(video.dataset.lower(), 1.0) for _, video in self.videos])
        if not (weights >= 0).all() or not weights.sum():
            raise UserError(f"stage {stage}: repeats must be at least 0 and leave something to draw, found {times}")
        self._weights = weights / weights.sum()
        self._cumulative = np.cumsum(weights) / weights.sum()
        identity = [seed, stage, [s.digest for s in sets], list(repeats), clips, asdict(recipe)]
        self.key = int.from_bytes(hashlib.sha256(canonical(identity).encode()).digest()[:8], "little")

    def clip(self, i: int) -> Clip:
        """Training clip i: `recipe.frames` frames of `recipe.crop`, objects 1..K in its first frame.

        K is 0 only when several draws show no object that is large enough.
        """
        rng = np.random.default_rng([self.key, i])
        for trial in range(_TRIALS):
            clip = self._draw(i, rng)
            if clip.masks[0].any() or trial == _TRIALS - 1:
                return clip
        raise AssertionError("unreachable")

    def shares(self) -> dict[str, tuple[int, float]]:
        """Data set -> its videos that can be drawn, and the share of clips that are of it."""
        found: dict[str, tuple[int, float]] = {}
        for (_, video), weight in zip(self.videos, self._weights, strict=True):
            count, share = found.get(video.dataset, (0, 0.0))
            found[video.dataset] = count + 1, share + float(weight)
        return found

    def _draw(self, i: int, rng: np.random.Generator) -> Clip:
        name = f"{i}"
        shards, video = self._video(rng)
        if video.frames > 1:
            return self._crop(name, _read(shards, video, self._frames(video, self._gap(i), rng)), rng)
        recipe = self.recipe
        still = replace(recipe.still, frames=recipe.frames, size=recipe.crop, objects=recipe.objects)
        others = [_read(s, v) for s, v in (self._still(rng) for _ in range(still.others))]
        return pseudo_video(name, _read(shards, video), others, still, rng)

    def _video(self, rng: np.random.Generator) -> tuple[ShardSet, Video]:
        s, video = self.videos[int(np.searchsorted(self._cumulative, rng.random(), side="right"))]
        return self.sets[s], video

    def _still(self, rng: np.random.Generator) -> tuple[ShardSet, Video]:
        """A video of one frame, to cut an object from; images are few kinds of sets, so a draw soon finds one."""
        while True:
            shards, video = self._video(rng)
            if video.frames == 1:
                return shards, video

    def _gap(self, i: int) -> int:
        """Largest distance between frames at clip i."""
        progress = min(1.0, i / self.clips) if self.clips else 1.0
        return next(gap for start, gap in reversed(self.recipe.gaps) if start <= progress)

    def _frames(self, video: Video, gap: int, rng: np.random.Generator) -> list[int]:
        """Increasing or, half the time, decreasing annotated frames at most `gap` apart."""
        usable = np.flatnonzero(video.annotated)
        needed = self.recipe.frames
        gap = max(1, gap // _spacing(video, usable))
        largest = max(1, min(gap, (len(usable) - 1) // max(needed - 1, 1)))
        steps = rng.integers(1, largest + 1, needed - 1)
        positions = np.concatenate([[0], np.cumsum(steps)])
        start = rng.integers(0, max(1, len(usable) - positions[-1]))
        chosen = usable[np.minimum(start + positions, len(usable) - 1)]
        return [int(t) for t in (chosen[::-1] if rng.random() < 0.5 else chosen)]

    def _crop(self, name: str, clip: Clip, rng: np.random.Generator) -> Clip:
        """Crop, mirror, jitter and recolour: one map and one interpolation a frame."""
        recipe, (height, width), (rows, columns) = self.recipe, clip.size, self.recipe.crop
        window = rng.uniform(*recipe.scale) * min(height / rows, width / columns)
        x, y = self._centre(clip, (columns * window, rows * window), rng)
        mirror = np.diag([-1.0 if rng.random() < 0.5 else 1.0, 1.0, 1.0])
        gain, offset = 1 + recipe.colour * rng.uniform(-1, 1), 255 * recipe.colour * rng.uniform(-0.5, 0.5)
        frames = np.empty((len(clip), rows, columns, 3), np.uint8)
        masks = np.empty((len(clip), rows, columns), np.uint8)
        for t in range(len(clip)):
            rotation, shear = rng.uniform(-1, 1, 2) * (recipe.rotation, recipe.shear)
            about_centre = mirror @ affine(shift=(-x, -y))
            matrix = affine(1 / window, rotation, shear, shift=(columns / 2, rows / 2)) @ about_centre
            warped, masks[t] = warp(clip.frames[t], clip.masks[t], matrix, recipe.crop)
            frames[t] = np.clip(warped * gain + offset, 0, 255)
        return Clip(name, frames, keep_objects(masks, recipe.objects, rng))

    def _centre(self, clip: Clip, window: tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
        """A crop's centre (x, y): near a random pixel of an object, so that crops show what is to be learnt."""
        height, width = clip.size
        ys, xs = np.nonzero(clip.masks[0])
        if len(ys):
            pick = int(rng.integers(len(ys)))
            x = xs[pick] + rng.uniform(-0.3, 0.3) * window[0]
            y = ys[pick] + rng.uniform(-0.3, 0.3) * window[1]
        else:
            x, y = rng.uniform(0, width), rng.uniform(0, height)
        return (
            float(np.clip(x, min(window[0] / 2, width / 2), max(width - window[0] / 2, width / 2))),
            float(np.clip(y, min(window[1] / 2, height / 2), max(height - window[1] / 2, height / 2))),
        )


def _read(shards: ShardSet, video: Video, frames: list[int] | None = None) -> Clip:
    """Frames of a video whose masks hold its objects alone: void is background in training."""
    clip = shards.read(video, frames)
    return replace(clip, masks=only_ids(clip.masks, video.objects))


def _spacing(video: Video, usable: np.ndarray) -> int:
    """How many frames lie between two annotated ones, by their names where these are numbers."""
    names = [video.frame_ids[t] for t in usable]
    numbers = np.array([int(name) for name in names]) if all(name.isdecimal() for name in names) else usable
    return max(1, int(np.median(np.diff(numbers)))) if len(numbers) > 1 else 1
