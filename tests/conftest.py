from __future__ import annotations

import ast
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vosforge.clip import Clip
from vosforge.data.shards import ShardSet, clip_table, finish, write_shard
from vosforge.storage import join, upload_file
from vosforge.training import curricula
from vosforge.training.plan import TrainingPlan

# Small networks do not gain from threads, and on a busy machine the threads wait for each other many times longer.
# The variable is for processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


# Tests of these folders start no cluster and are quick each.
APART = ("networks", "propagation", "evaluation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files of long tests, that two processes end at about the same time."""
    items.sort(key=lambda item: item.path.parent.name in APART)


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def formulas() -> ModuleType:
    """The formulas of the golden inputs."""
    spec = importlib.util.spec_from_file_location("golden_formulas", GOLDEN / "formulas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Reads one file of golden answers: JSON, arrays by name, or the shapes of a checkpoint's weights by name."""

    def read(name: str) -> Any:
        if name.endswith(".json"):
            return json.loads((GOLDEN / name).read_text())
        if name.endswith(".npz"):
            with np.load(GOLDEN / name) as arrays:
                return dict(arrays)
        lines = (line.split("\t") for line in (GOLDEN / name).read_text().splitlines())
        return {weight: ast.literal_eval(shape) for weight, shape, _ in lines}

    return read


@pytest.fixture(scope="session")
def build_shards() -> Callable[..., ShardSet]:
    """Writes clips to a local folder or URI as one finished shard file and opens it."""

    def build(
        uri: object,
        clips: Sequence[Clip],
        kind: str = "videos",
        rejected: Sequence[dict] = (),
        dataset: str = "tiny",
    ) -> ShardSet:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "part-00000.parquet"
            write_shard([clip_table(clip, dataset) for clip in clips], list(rejected), local)
            upload_file(local, join(uri, local.name))
        finish(str(uri), kind, {"made": "by a test"}, [local.name])
        return ShardSet(str(uri))

    return build


@pytest.fixture(scope="session")
def moving_square() -> Callable[[str, int], Clip]:
    """Makes a video of a square that moves, from a name and a seed."""
    return _moving_square


def _moving_square(name: str, seed: int) -> Clip:
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
    build_shards(uri, [_moving_square(f"v{i}", i) for i in range(4)], kind="bl30k")
    videos = tmp_path / "videos"
    build_shards(videos, [_moving_square(f"w{i}", i + 9) for i in range(3)], kind="videos")

    def make(name: str = "run", steps: int = 4, **changes: object) -> TrainingPlan:
        stages = []
        for stage in curricula.stages("stm", "nano", ["bl30k", "videos"]):
            sampling = replace(stage.sampling, crop=(32, 32), frames=3)
            stages.append(replace(stage, steps=steps, batch=2, sampling=sampling, warm_up=1))
        settings = {"checkpoint_every": 3, "probe_clips": 2, "stages": stages, **changes}
        return TrainingPlan(name=name, network="stm", size="nano", data=[str(uri), str(videos)], **settings)

    return make


@pytest.fixture
def moving() -> Callable[[str, int], Clip]:
    """Makes a square that moves over noise, at 32x40 in four frames."""

    def make(name: str, seed: int) -> Clip:
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 120, (4, 32, 40, 3), dtype=np.uint8)
        masks = np.zeros((4, 32, 40), np.uint8)
        for t in range(4):
            area = np.s_[t, 8:22, 4 + 4 * t : 18 + 4 * t]
            frames[area], masks[area] = 200 + seed, 1
        return Clip(name, frames, masks)

    return make
