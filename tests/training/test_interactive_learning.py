"""Networks that take scribbles learn from rounds: later rounds are better than the first. Minutes on one core."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vosforge import networks
from vosforge.data.rendered import Production, SceneItem, rendered_table
from vosforge.data.rendering import preset
from vosforge.data.shards import ShardSet, finish, write_shard
from vosforge.evaluation.interactive import Rules, evaluate_interactive, find_scribbles
from vosforge.evaluation.truth import Truth
from vosforge.networks import MemoryNetwork
from vosforge.propagation import Session
from vosforge.training import curricula
from vosforge.training.loop import fit_locally
from vosforge.training.plan import TrainingPlan

DAVIS = Path(os.environ.get("VOSFORGE_DATA", "")) / "video" / "davis_interactive_testdata" / "DAVIS"
pytestmark = pytest.mark.cluster


def rendered(folder: Path, seed: int, videos: int) -> ShardSet:
    """Videos of the built-in shapes."""
    folder.mkdir()
    production = Production(preset("bl30k", frames=4, height=96, width=128, speed=4.0))
    tables = (rendered_table(production, SceneItem(seed, video)) for video in range(videos))
    write_shard(tables, [], folder / "part-00000.parquet")
    finish(str(folder), "bl30k", {"made": "by a test"}, ["part-00000.parquet"])
    return ShardSet(str(folder))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> MemoryNetwork:
    """A small network after some two minutes on rendered videos."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("interactive")
    shards = rendered(folder / "shards", 0, 64)
    (stage,) = curricula.stages("stm-interactive", "nano", ["bl30k"])
    stage = replace(stage, steps=300)
    plan = TrainingPlan("learns", "stm-interactive", "nano", [stage], [shards.uri], probe_clips=0)
    return networks.load(fit_locally(plan, str(folder / "runs"), lambda metrics: None))


def by_round(network: MemoryNetwork, short_side: int, *evaluated) -> list[float]:
    """J&F after each of three rounds."""
    report = evaluate_interactive(
        lambda clip: Session(network, clip.frames, short_side), *evaluated, rules=Rules(interactions=3)
    )
    return [row["J&F"] for row in report["interactions"]]


def test_rounds_improve_clips_that_training_never_saw(trained, tmp_path):
    shards = rendered(tmp_path / "held-out", 1, 12)
    clips = [shards.read(video) for video in shards.videos]
    # Without scribbles' files the robot draws in the first round, too.
    first, _, third = by_round(trained, 96, clips)
    assert third > first


@pytest.mark.skipif(not DAVIS.is_dir(), reason="VOSFORGE_DATA does not point at a folder with scribbles of DAVIS")
def test_rounds_improve_real_video(trained):
    truth = Truth(str(DAVIS))
    first, _, third = by_round(trained, 128, truth.clips(), find_scribbles(DAVIS / "Scribbles"))
    assert np.isfinite(first)
    assert third > first
