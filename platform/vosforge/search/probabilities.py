"""What candidates predict, each by itself, computed once and kept.

A candidate carries its own masks on, as a single model does. An ensemble that runs has every member remember the merged
masks: its figures are measured by running it, and these predictions serve to choose.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vosforge import networks
from vosforge.clip import Clip
from vosforge.data.shards import ShardSet
from vosforge.evaluation.truth import Truth
from vosforge.propagation import Model, given_masks
from vosforge.propagation.segmenter import enlarged_labels, step_reduced
from vosforge.search.members import Candidate
from vosforge.storage import write_aside

_FORMAT = 1


@dataclass(frozen=True)
class Watched:
    """A video as selection sees it: its annotated frames alone.

    Attributes:
        name: of the video.
        objects: ids, ascending.
        frames: `(A, H, W, 3)` uint8.
        masks: `(A, H, W)` uint8 ids.
        given: position among the A -> mask given there.
    """

    name: str
    objects: list[int]
    frames: np.ndarray
    masks: np.ndarray
    given: dict[int, np.ndarray]

    @staticmethod
    def of(clip: Clip) -> Watched:
        """That of a clip."""
        places = {int(t): a for a, t in enumerate(np.flatnonzero(clip.annotated))}
        given = {places[t]: mask for t, mask in given_masks(clip).items()}
        objects = sorted({int(i) for mask in given.values() for i in np.unique(mask) if i})
        return Watched(clip.name, objects, clip.frames[clip.annotated], clip.masks[clip.annotated], given)

    def labels(self, probabilities: torch.Tensor) -> np.ndarray:
        """`(A, H, W)` uint8 ids of `(A, K + 1, h, w)` merged probabilities."""
        size = self.masks.shape[1:]
        frames = enumerate(probabilities)
        return np.stack([enlarged_labels(found, self.objects, size, self.given.get(a)) for a, found in frames])


class Predictions:
    """A candidate's probabilities on videos of a set: bytes at the size at which it ran, a file a video.

    Args:
        candidate: whose they are.
        truth: the videos; shards.
        folder: for files of all candidates and sets, named by content: what is there is not computed again.
        short_side: pixels to which frames are reduced; None keeps their size.
        device: where to compute.
    """

    def __init__(
        self, candidate: Candidate, truth: Truth, folder: Path, short_side: int | None = None, device: str = "cpu"
    ):
        self.candidate, self.truth, self.short_side, self.device = candidate, truth, short_side, device
        # Of the device, too, for the time that it takes.
        content = [_FORMAT, candidate.digest, candidate.memory_every, ShardSet(truth.uri).digest, short_side, device]
        self.folder = Path(folder) / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def compute(self, positions: Sequence[int], on_video: Callable[[], None] = lambda: None) -> None:
        """Make sure that some videos' probabilities are there."""
        missing = [i for i in positions if not self._path(i).is_file()]
        model = Model([networks.load(self.candidate.network)], self.candidate.memory_every) if missing else None
        for i in missing:
            clip = self.truth.clip(i)
            started = time.perf_counter()
            found = self._segment(model, clip)
            seconds = time.perf_counter() - started
            with write_aside(self._path(i).with_suffix(".json")) as aside:
                aside.write_text(json.dumps({"video": clip.name, "seconds": seconds, "frames": len(clip)}))
            with write_aside(self._path(i)) as aside, aside.open("wb") as file:
                np.save(file, found)
            on_video()

    def _segment(self, model: Model, clip: Clip) -> np.ndarray:
        """`(A, K + 1, h, w)` uint8, probabilities times 255, of the annotated frames."""
        segmenter, given = model.start(self.device), given_masks(clip)
        objects = Watched.of(clip).objects
        kept = []
        for t, frame in enumerate(clip.frames):
            probabilities = step_reduced(segmenter, frame, given.get(t), self.short_side)
            if not clip.annotated[t]:
                continue
            whole = torch.zeros(len(objects) + 1, *probabilities.shape[1:])
            known = [0, *(objects.index(i) + 1 for i in segmenter.objects)]
            whole[known] = probabilities.float().cpu()
            kept.append((whole * 255).round().byte().numpy())
        return np.stack(kept)

    def load(self, i: int) -> np.ndarray:
        """`(A, K + 1, h, w)` uint8 of a video, read from the disk as it is looked at."""
        return np.load(self._path(i), mmap_mode="r")

    @property
    def seconds_per_frame(self) -> float:
        """Of running the candidate, over the videos that are there."""
        told = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        return sum(entry["seconds"] for entry in told) / sum(entry["frames"] for entry in told)

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:05d}.npy"
