"""The arithmetic of benchmarks/scale.py, against cases that were computed by hand."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def scale() -> SimpleNamespace:
    return SimpleNamespace(
        **runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "scale.py"), run_name="scale")
    )


def test_a_build_takes_what_its_frames_and_files_take(scale):
    # 3,600 frames at 10 a second and core; 4 files of 90 s each, of which 3 cores make two after each other.
    build = scale.Build("by hand", videos=100, frames=36, rate=10.0, kb=50.0, per_file=25)
    assert build.core_hours == pytest.approx(0.1)
    assert build.gigabytes == pytest.approx(0.18)
    assert build.files == 4
    assert build.hours(3) == pytest.approx(2 * 90 / 3600)
    assert build.gbits(32) == pytest.approx(0.128)
    assert build.finishing_minutes(scale.Nodes(request_ms=50.0)) == pytest.approx(0.01)


def test_workers_share_every_stages_batch(scale):
    assert scale.most_workers([28, 16, 16], 512) == 4
    assert scale.most_workers([24, 24, 24], 8) == 8
    assert scale.most_workers([24, 24, 24], 7) == 6


def test_operations_become_hours_by_the_assumed_speed(scale, monkeypatch):
    # 900,000 steps of 4 clips of 3 x 0.5 teraflop at 50 teraflop a second.
    monkeypatch.setitem(scale.FORWARD, "stm", dict.fromkeys(("images", "bl30k", "videos"), 0.5))
    assert scale.gpu_hours("stm", scale.Gpu(tflops=100.0, utilisation=0.5)) == pytest.approx(30.0)
    assert scale.implied(millions=3.6, teraflop=1.5, hours=30.0, peak=100.0) == pytest.approx(0.5)


def test_a_training_spreads_over_the_gpus_that_its_batch_allows(scale, monkeypatch):
    # 2.5 steps a second on one GPU are 10 on four: 25 hours, and 10 clips a second of each.
    monkeypatch.setitem(scale.FORWARD, "stm", dict.fromkeys(("images", "bl30k", "videos"), 0.5))
    monkeypatch.setitem(scale.DECODED, "stm", dict.fromkeys(("images", "bl30k", "videos"), 20.0))
    monkeypatch.setitem(scale.WEIGHTS, "stm", (40.0, 2))
    for kind in scale.READ:
        monkeypatch.setitem(scale.READ, kind, (500.0, 6.0))
    gpu = scale.Gpu(steps_per_second=2.5)
    found = scale.training("stm", 64, gpu, scale.Nodes(gpus=4, cores=16, gbits=40.0))
    assert (found.workers, found.together) == (4, 16)
    assert found.days * 24 == pytest.approx(25.0)
    assert found.decoders == pytest.approx(0.5)
    assert found.requests == pytest.approx(64 * 10 * 6)
    assert found.read == pytest.approx(64 * 10 * 500 / 1e6)
    assert found.gbits == pytest.approx(4 * 10 * 0.5 * 8 / 1e3)
    assert found.limit == "GPUs"
    # On nodes of one GPU, 240 MB of gradients leave each ten times a second.
    spread = scale.training("stm", 64, gpu, scale.Nodes(gpus=1, cores=4, gbits=10.0))
    assert spread.gbits == pytest.approx((10 * 0.5 + 10 * 240) * 8 / 1e3)
    assert spread.limit == "gradients 2.9x"


def test_checkpoints_and_curves_are_counted(scale, monkeypatch):
    monkeypatch.setitem(scale.WEIGHTS, "stm", (40.0, 2))
    assert scale.checkpoint_mb("stm") == 480
    assert scale.checkpoint_minutes(seconds=2.0, hours_between_losses=4.0) == pytest.approx(4.0)
    assert scale.system_rows(trainings=2, gpus=8, nodes=scale.Nodes(gpus=4)) == pytest.approx(2 * 2 * 19 / 15)
    stage = SimpleNamespace(steps=200_000)
    assert scale.logged_rows(stage, checkpoint_every=1000) == 2 * 6 * (2000 + 200)
