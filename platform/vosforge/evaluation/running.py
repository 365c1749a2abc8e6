"""Running a method over annotated videos and scoring it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vosforge.clip import Clip
from vosforge.data.image_files import decode_mask
from vosforge.data.layouts import find_videos
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.evaluation.protocols import Scores, score
from vosforge.evaluation.report import summarise
from vosforge.storage import exists, is_local, join, local_path


class Truth:
    """Annotated videos to score against: shards, or a folder in a layout that ingest knows.

    Args:
        uri: shards (local or `s3://`), or a local folder.
        split: of a folder with ImageSets.
        limit: at most this many videos.

    Raises:
        UserError: when it is neither.
    """

    def __init__(self, uri: str, split: str | None = None, limit: int | None = None):
        self.name = Path(uri.rstrip("/")).name
        if exists(join(uri, "manifest.json")) or not is_local(uri):
            shards = ShardSet(uri)
            self._videos: list[Any] = shards.videos[:limit]
            self._read: Callable[[Any], Clip] = shards.read
        else:
            self._videos = find_videos(local_path(uri), split=split).videos[:limit]
            self._read = lambda video: video.read()

    def __len__(self) -> int:
        return len(self._videos)

    def __iter__(self) -> Iterator[Clip]:
        """The videos, decoded one at a time."""
        return (self._read(video) for video in self._videos)


def evaluate(
    methods: dict[str, Callable[[Clip], np.ndarray]],
    clips: Iterable[Clip],
    protocol: str = "davis2017",
    on_video: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Any]]:
    """Score methods on the same clips.

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
        UserError: naming the mask file that is missing, does not decode, or has another size.
    """
    scores: dict[str, Scores] = {}
    for clip in clips:
        predicted = []
        for t in np.flatnonzero(clip.annotated):
            path = folder / clip.name / f"{clip.frame_ids[t]}.png"
            if not path.is_file():
                raise UserError(f"{path}: no predicted mask for this frame")
            mask = decode_mask(path.read_bytes(), str(path))
            if mask.shape != clip.size:
                raise UserError(f"{path}: expected the frame's size {clip.size}, found {mask.shape}")
            predicted.append(mask)
        scores[clip.name] = _score(clip, np.stack(predicted), protocol)
    return {**summarise(scores), "frames_per_second": 0.0, "scores": scores}
