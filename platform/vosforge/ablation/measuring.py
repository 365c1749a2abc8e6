"""Measuring a row: its trained networks as one model, scored on annotated videos."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

from vosforge import networks
from vosforge.data.shards import ShardSet
from vosforge.evaluation.paired import video_score
from vosforge.evaluation.running import evaluate
from vosforge.evaluation.truth import Truth
from vosforge.networks import MemoryNetwork
from vosforge.networks.stacking import StackingNetwork
from vosforge.propagation import Model, segment_clip
from vosforge.settings import Settings
from vosforge.storage import download_file, exists, is_local, join, read_bytes, write_bytes
from vosforge.training.clip_order import stage_sampler
from vosforge.training.stacking import learn_stacking
from vosforge.training.stages import Stage

_STACKING_CLIPS = 48


@dataclass(frozen=True)
class TruthSource:
    """Where annotated videos are, as `vosforge.evaluation.truth.Truth` takes them; a split is that of folders alone."""

    uri: str
    split: str | None = None
    limit: int | None = None

    def open(self) -> Truth:
        """The videos.

        Raises:
            UserError: as `Truth`.
        """
        return Truth(self.uri, None if self.sharded else self.split, self.limit)

    @property
    def sharded(self) -> bool:
        """Whether they lie in shards."""
        return not is_local(self.uri) or exists(join(self.uri, "manifest.json"))


@dataclass(frozen=True)
class Measurement:
    """One row's model of one seed on one set of videos.

    Attributes:
        name: says all that the scores follow from.
        members: URIs of trained networks.
        test_parts, settings, merging: as in a row.
        truth: the videos.
        protocol: as in `vosforge.evaluation.score`.
        short_side: pixels to which frames are reduced; None keeps their size.
        stage: the last that was trained; a stacking network learns from clips that it would draw next.
        data: shards of that stage.
        seed: of the stacking network.
        device: where networks run.
    """

    name: str
    members: tuple[str, ...]
    test_parts: dict[str, Any]
    settings: Settings
    merging: str
    truth: TruthSource
    protocol: str
    short_side: int | None
    stage: Stage
    data: tuple[str, ...]
    seed: int
    device: str = "cpu"


def measure(what: Measurement, folder: str) -> dict[str, Any]:
    """Scores of a row, written into `folder`, where a repeated call finds them.

    Returns:
        `{"J", "F", "J&F", "objects", "frames_per_second", "videos": {video: J&F}}`; means are over objects, a video's
        over its own.

    Raises:
        UserError: when a network or a video cannot be read.
    """
    where = join(folder, f"{what.name}.json")
    if exists(where):
        return json.loads(read_bytes(where))
    model = _model(what)
    segment = {"row": lambda clip: segment_clip(model.start(what.device, what.settings), clip, what.short_side)}
    found = evaluate(segment, what.truth.open(), what.protocol)["row"]
    videos = {video: video_score(scores) for video, scores in found["scores"].items()}
    kept = {key: found[key] for key in ("J", "F", "J&F", "objects", "frames_per_second")}
    result = {**kept, "videos": {video: value for video, value in videos.items() if not isnan(value)}}
    write_bytes(where, json.dumps({**result, "of": {**asdict(what), "stage": what.stage.name}}, indent=1).encode())
    return result


def _model(what: Measurement) -> Model:
    """The row's networks as one model."""
    members = [_load(uri, what.test_parts) for uri in what.members]
    how = "average" if what.merging == "average" else _stacking(what, members)
    return Model(members, budget=None, how=how)


def _load(uri: str, parts: dict[str, Any]) -> MemoryNetwork:
    with tempfile.TemporaryDirectory() as folder:
        return networks.load(download_file(uri, Path(folder) / "network.safetensors"), **parts)


def _stacking(what: Measurement, members: list[MemoryNetwork]) -> StackingNetwork:
    """A stacking network that learnt from clips of the training videos, beyond those that the stage drew itself."""
    alone = [Model([member], budget=None).start(what.device) for member in members]
    sampler = stage_sampler(what.stage, [ShardSet(uri) for uri in what.data], what.seed)
    first = what.stage.steps * what.stage.batch
    clips = (sampler.clip(first + i) for i in range(_STACKING_CLIPS))
    return learn_stacking(alone, clips, what.seed)
