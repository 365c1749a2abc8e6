"""Scoring masks that lie on disk: many videos in parallel, bad ones skipped and told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation.parallel import run_videos
from vosforge.evaluation.predictions import Masks, read_masks
from vosforge.evaluation.protocols import Scores, known_ids, needed, score_at
from vosforge.evaluation.report import recall_and_decay, summarise
from vosforge.evaluation.truth import Annotated, Truth
from vosforge.evaluation.youtube import META_FILE, Meta, frame_rate, listed_frames, summarise_youtube


@dataclass
class VideoScores:
    """What one video gave: scores by method, or why it was skipped.

    Attributes:
        name: of the video.
        frames: how many it has, annotated or not.
        rate: its frames a second, as `frame_rate`.
        scores: by method.
        seconds: by method that was run for it.
        bad: why it has no scores; empty when it has.
    """

    name: str
    frames: int = 0
    rate: int | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bad: str = ""


@dataclass
class Scoring:
    """Scores one video of a truth by its number; instances travel to other processes.

    Attributes:
        truth: what to score against.
        masks: predictions by method.
        protocol: as in `score`.
        meta: `meta.json` of the truth, for protocol youtube.
        meta_file: that it was read from, for errors.
        baselines: methods that are run on the frames, as in `evaluate`; none for a truth without frames.
        bad: number -> reason, for videos that are known to be bad already.
    """

    truth: Truth
    masks: Mapping[str, Masks]
    protocol: str = "davis2017"
    meta: Meta | None = None
    baselines: Mapping[str, Callable[[Clip], np.ndarray]] = field(default_factory=dict)
    bad: Mapping[int, str] = field(default_factory=dict)
    meta_file: str | Path = META_FILE

    def __call__(self, i: int) -> VideoScores:
        """The i-th video. A video that is bad for one method is skipped for all, so that they stay comparable."""
        result = VideoScores(self.truth.names[i], bad=self.bad.get(i, ""))
        if result.bad:
            return result
        try:
            self._score(i, result)
        except UserError as error:
            return VideoScores(result.name, bad=str(error))
        return result

    def _score(self, i: int, result: VideoScores) -> None:
        clip = self.truth.clip(i) if self.baselines else None
        truth = self.truth.annotated(i) if clip is None else Annotated.of(clip)
        listed = listed_frames(self.meta, truth.name, truth.frame_ids, self.meta_file) if self.meta else None
        looked_at = needed(truth.masks, self.protocol, listed)
        known = known_ids(truth.masks, self.protocol, listed)
        result.frames, result.rate = len(truth.every_frame), frame_rate(truth.every_frame)
        predicted, bad = {}, []
        for method, masks in self.masks.items():
            try:
                size = truth.masks.shape[1:]
                predicted[method] = read_masks(masks, truth.name, truth.frame_ids, size, known, looked_at)
            except UserError as error:
                bad.append(str(error))
        if bad:
            raise UserError("; ".join(dict.fromkeys(bad)))
        for method, segment in self.baselines.items():
            started = time.perf_counter()
            labels = segment(clip)
            result.seconds[method] = time.perf_counter() - started
            predicted[method] = labels[clip.annotated]
        # Baselines stand first in every table.
        for method in (*self.baselines, *self.masks):
            scores, positions = score_at(truth.masks, predicted[method], self.protocol, listed)
            for k, at in positions.items():
                scores[k]["frame_ids"] = [truth.frame_ids[t] for t in at]
            result.scores[method] = scores


def score_set(
    scoring: Scoring,
    workers: int | None = None,
    on_video: Callable[[int], None] = lambda done: None,
    seen: set[str] | None = None,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """Score every video of a truth.

    Args:
        scoring: what to score, and how.
        workers: as in `run_videos`.
        on_video: hears how many videos are finished.
        seen: categories of the training set, for protocol youtube.

    Returns:
        method -> `{"J", "F", "J&F", "objects", "videos", "J recall", "J decay", "F recall", "F decay",
        "frames_per_second", "scores": {video: scores}}`, baselines first; under `youtube` also what
        `summarise_youtube` gives, and `fps` of the truth's frames. Objects have their `frame_ids` beside J and F;
        `frames_per_second` is 0 for masks that were only read. Then `[{"video", "reason"}]` of those skipped.

    Raises:
        UserError: when no video could be scored, with the first one's reason; when masks bear a baseline's name; as
            `run_videos`.
    """
    twice = sorted(set(scoring.masks) & set(scoring.baselines))
    if twice:
        raise UserError(f"masks: {twice[0]} is the name of a baseline; give another")
    count = len(scoring.truth)
    done: dict[int, VideoScores] = {}
    for i, result in run_videos(count, scoring, workers):
        done[i] = result
        on_video(len(done))
    found = [done[i] for i in range(count)]
    skipped = [{"video": result.name, "reason": result.bad} for result in found if result.bad]
    good = [result for result in found if not result.bad]
    if not good:
        more = f" (and {count - 1} more videos)" if count > 1 else ""
        raise UserError(f"{skipped[0]['reason']}{more}")
    report = {method: _summary(scoring, method, good, seen) for method in (*scoring.baselines, *scoring.masks)}
    return report, skipped


def _summary(scoring: Scoring, method: str, good: list[VideoScores], seen: set[str] | None) -> dict[str, Any]:
    scores = {result.name: result.scores[method] for result in good}
    seconds = sum(result.seconds.get(method, 0.0) for result in good)
    summary: dict[str, Any] = {**summarise(scores), **recall_and_decay(scores)}
    if scoring.protocol == "youtube":
        rates = {result.rate for result in good}
        summary |= summarise_youtube(scores, scoring.meta or {}, seen)
        summary["fps"] = rates.pop() if len(rates) == 1 else None
    speed = sum(result.frames for result in good) / seconds if seconds else 0.0
    return {**summary, "frames_per_second": speed, "scores": scores}
