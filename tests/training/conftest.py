from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan


def moving_square(name: str, seed: int) -> Clip:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (5, 48, 64, 3), dtype=np.uint8)
    masks = np.zeros((5, 48, 64), np.uint8)
    for t in range(5):
        area = np.s_[t, 10:30, 8 + 5 * t : 28 + 5 * t]
        frames[area], masks[area] = 200 + 10 * (seed % 5), 1
    return Clip(name, frames, masks)


@pytest.fixture
def make_plan(tmp_path: Path, build_shards: Callable) -> Callable[..., TrainingPlan]:
    """A plan of two stages of a few steps on small shards."""
    uri = tmp_path / "shards"
    build_shards(uri, [moving_square(f"v{i}", i) for i in range(4)], kind="bl30k")
    videos = tmp_path / "videos"
    build_shards(videos, [moving_square(f"w{i}", i + 9) for i in range(3)], kind="videos")

    def make(name: str = "run", steps: int = 4, **changes: object) -> TrainingPlan:
        stages = []
        for stage in curricula.stages("stm", "nano", ["bl30k", "videos"]):
            sampling = replace(stage.sampling, crop=(32, 32), frames=3)
            stages.append(replace(stage, steps=steps, batch=2, sampling=sampling, warm_up=1))
        settings = {"checkpoint_every": 3, "probe_clips": 2, "stages": stages, **changes}
        return TrainingPlan(name=name, network="stm", size="nano", data=[str(uri), str(videos)], **settings)

    return make
