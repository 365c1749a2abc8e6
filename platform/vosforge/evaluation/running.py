"""Running methods over annotated videos: scored in this process, or their masks written down to be scored later."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vosforge.clip import Clip
from vosforge.data.image_files import encode_mask
from vosforge.errors import UserError
from vosforge.evaluation.predictions import MaskFolder, read_masks
from vosforge.evaluation.protocols import Scores, known_ids, needed, score
from vosforge.evaluation.report import summarise
from vosforge.evaluation.truth import Annotated, Truth
from vosforge.storage import write_bytes

Quality = dict[str, dict[str, dict[int, float]]]
"""What a network thought of its own masks: video -> frame id -> object id -> quality."""


def evaluate(
    methods: dict[str, Callable[[Clip], np.ndarray]],
    clips: Iterable[Clip],
    protocol: str = "davis2017",
    on_video: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Score methods on the same clips, in this process.

    Args:
        methods: name -> a function that segments a clip, knowing of its masks only the objects' first ones, as
            `segment_clip` does; it gives `(T, H, W)` uint8 ids.
        clips: annotated videos.
        protocol: as in `score`.
        on_video: hears how many videos are finished.

    Returns:
        name -> `{"J", "F", "J&F", "objects", "videos", "frames_per_second", "scores": {video: score}}`.
    """
    scores: dict[str, dict[str, Scores]] = {name: {} for name in methods}
    seconds, frames = dict.fromkeys(methods, 0.0), 0
    for done, clip in enumerate(clips, 1):
        frames += len(clip)
        for name, segment in methods.items():
            started = time.perf_counter()
            labels = segment(clip)
            seconds[name] += time.perf_counter() - started
            scores[name][clip.name] = _score(clip, labels[clip.annotated], protocol)
        on_video(done)
    return {
        name: {
            **summarise(scores[name]),
            "frames_per_second": frames / seconds[name] if seconds[name] else 0.0,
            "scores": scores[name],
        }
        for name in methods
    }


def _score(clip: Clip, labels: np.ndarray, protocol: str) -> Scores:
    """Scores of the annotated frames; an error names the video."""
    try:
        return score(clip.masks[clip.annotated], labels, protocol)
    except UserError as error:
        raise UserError(f"video {clip.name}: {error}") from error


def score_masks(folder: Path, clips: Iterable[Clip], protocol: str = "davis2017") -> dict[str, Any]:
    """Score masks on disk, `<folder>/<video>/<frame>.png`, as `evaluate` scores a method.

    Raises:
        UserError: naming the mask files that are missing, do not decode, have another size or hold unknown ids.
    """
    masks = MaskFolder(Path(folder))
    scores: dict[str, Scores] = {}
    for clip in clips:
        truth = Annotated.of(clip)
        known, looked_at = known_ids(truth.masks, protocol), needed(truth.masks, protocol)
        found = read_masks(masks, truth.name, truth.frame_ids, clip.size, known, looked_at)
        scores[clip.name] = score(truth.masks, found, protocol)
    return {**summarise(scores), "frames_per_second": 0.0, "scores": scores}


@dataclass
class Predicted:
    """Masks that methods wrote.

    Attributes:
        masks: where, by method.
        frames_per_second: by method, reading and writing excluded.
        quality: of the methods that assess their masks, by method.
        bad: number of a video -> why it could not be segmented.
    """

    masks: dict[str, MaskFolder]
    frames_per_second: dict[str, float]
    quality: dict[str, Quality] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)


def predict(
    methods: dict[str, Callable[[Clip], tuple[np.ndarray, list[dict[int, float]]]]],
    truth: Truth,
    folder: str | Path,
    every_frame: bool = False,
    on_video: Callable[[int], None] = lambda done: None,
) -> Predicted:
    """Run methods one after the other, in this process, and write their masks as `folder/<n>/<video>/<frame>.png`.

    Args:
        methods: name -> a function that segments a clip, as in `evaluate`; it gives `(T, H, W)` uint8 ids, and for
            every frame the quality it sees in each object's mask, empty where it sees none.
        truth: the videos.
        folder: for the masks; it and what lies in it is the caller's to delete.
        every_frame: write masks of all frames, rather than of annotated ones.
        on_video: hears how many videos are finished.
    """
    folders = {name: Path(folder) / str(n) for n, name in enumerate(methods)}
    predicted = Predicted({name: MaskFolder(path) for name, path in folders.items()}, dict.fromkeys(methods, 0.0))
    seconds, frames = dict.fromkeys(methods, 0.0), 0
    for i in range(len(truth)):
        try:
            clip = truth.clip(i)
            written = set(clip.frame_ids) if every_frame else set(Annotated.of(clip).frame_ids)
            for name, segment in methods.items():
                started = time.perf_counter()
                labels, quality = segment(clip)
                seconds[name] += time.perf_counter() - started
                _write(folders[name], clip, labels, written)
                if any(quality):
                    by_frame = dict(zip(clip.frame_ids, quality, strict=True))
                    predicted.quality.setdefault(name, {})[clip.name] = by_frame
            frames += len(clip)
        except UserError as error:
            predicted.bad[i] = f"video {truth.names[i]}: {error}"
        on_video(i + 1)
    predicted.frames_per_second = {name: frames / seconds[name] if seconds[name] else 0.0 for name in methods}
    return predicted


def _write(folder: Path, clip: Clip, labels: np.ndarray, frames: Collection[str]) -> None:
    for frame, mask in zip(clip.frame_ids, labels, strict=True):
        if frame in frames:
            inside = PurePosixPath(clip.name, f"{frame}.png")
            if inside.is_absolute() or ".." in inside.parts:
                raise UserError(f"video {clip.name}: a name with .. cannot become a folder")
            write_bytes(folder / inside, encode_mask(mask))


__all__ = ["Predicted", "Quality", "Truth", "evaluate", "predict", "score_masks"]
