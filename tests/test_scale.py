"""The arithmetic of benchmarks/scale.py against cases that were computed by hand, and its tables in docs/scale.md."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from vosforge.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scale() -> SimpleNamespace:
    return program("scale")


def program(name: str) -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name=name))


def tables(text: str) -> list[str]:
    """Markdown tables, each as its lines."""
    blocks = text.split("\n\n")
    return [block.strip() for block in blocks if block.strip().startswith("|")]


def test_a_build_takes_what_its_frames_and_files_take(scale):
    # 3,600 frames at 10 a second and core; 4 files of 90 s each, of which 3 cores make two after each other.
    build = scale.Build("by hand", videos=100, frames=36, rate=10.0, kb=50.0, per_file=25)
    assert build.core_hours == pytest.approx(0.1)
    assert build.gigabytes == pytest.approx(0.18)
    assert build.files == 4
    assert build.hours(3) == pytest.approx(2 * 90 / 3600)
    assert build.gbits(32) == pytest.approx(0.128)
    # 2 of each video and 0.5 of each of its 36 frames.
    assert build.indexed((2.0, 0.5)) == pytest.approx(2000)
    assert build.finishing_minutes(scale.Nodes(request_ms=50.0)) == pytest.approx(0.01)


def test_workers_share_every_stages_batch(scale):
    assert scale.most_workers([28, 16, 16], 512) == 4
    assert scale.most_workers([24, 24, 24], 8) == 8
    assert scale.most_workers([24, 24, 24], 7) == 6


def test_operations_become_hours_by_the_assumed_speed(scale, monkeypatch):
    # 900,000 steps of 4 clips of 3 x 0.5 teraflop at 50 teraflop a second.
    monkeypatch.setitem(scale.FORWARD, "stm", dict.fromkeys(("images", "bl30k", "videos"), 0.5))
    gpu = scale.Gpu(tflops=100.0, utilisation=0.5)
    assert scale.gpu_hours("stm", scale.planned("stm"), gpu) == pytest.approx(30.0)
    # The paper has no BL30K: 200,000 steps on images and as many on videos.
    paper = scale.planned("stm", in_paper=True)
    assert scale.gpu_hours("stm", paper, gpu) == pytest.approx(30.0 * 4 / 9)
    assert scale.gpu_hours("stm", paper, scale.Gpu(steps_per_second=2.5)) == pytest.approx(400_000 / 2.5 / 3600)
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
    assert (found.workers, found.together, found.idle) == (4, 16, 0)
    assert scale.training("stm", 63, gpu, scale.Nodes()).idle == 3
    assert found.days * 24 == pytest.approx(25.0)
    assert found.paper_days * 24 == pytest.approx(25.0 * 4 / 9)
    assert found.decoders == pytest.approx(0.5)
    assert found.requests == pytest.approx(64 * 10 * 6)
    assert found.read == pytest.approx(64 * 10 * 500 / 1e6)
    assert found.gbits == pytest.approx(4 * 10 * 0.5 * 8 / 1e3)
    assert found.limit == "GPUs"
    # On nodes of one GPU, 240 MB of gradients leave each ten times a second.
    spread = scale.training("stm", 64, gpu, scale.Nodes(gpus=1, cores=4, gbits=10.0))
    assert spread.gbits == pytest.approx((10 * 0.5 + 10 * 240) * 8 / 1e3)
    assert spread.demands["gradients", "videos"] == pytest.approx(240 * 8 / 1e3 / 10 / (0.1 * 2 / 3))
    assert spread.limit == "gradients 2.9x (images)"


def test_checkpoints_and_curves_are_counted(scale, monkeypatch):
    monkeypatch.setitem(scale.WEIGHTS, "stm", (40.0, 2))
    assert scale.checkpoint_mb("stm") == 480
    assert scale.checkpoint_minutes(seconds=2.0, hours_between_losses=4.0) == pytest.approx(4.0)
    assert scale.system_rows(trainings=2, gpus=8, nodes=scale.Nodes(gpus=4)) == pytest.approx(2 * 2 * 19 / 15)
    stage = SimpleNamespace(steps=200_000)
    assert scale.logged_rows(stage, checkpoint_every=1000) == 2 * 6 * (2000 + 200)


def test_page_holds_the_tables_that_are_printed(scale, capsys):
    scale.main()
    printed = tables(capsys.readouterr().out)
    written = tables((ROOT / "docs" / "scale.md").read_text())
    assert len(printed) == 6
    for table in printed:
        assert table in written


def test_a_measured_speed_takes_the_place_of_the_assumed_ones(scale, capsys):
    scale.main(networks=("emn",), gpu=scale.Gpu(steps_per_second=2.5))
    hours = next(table for table in tables(capsys.readouterr().out) if table.startswith("| GPU-hours at 2.5 steps/s"))
    assert "| emn | 6.3 / 9.6 | 25 / 39 |" in hours
    assert "H100" not in hours


def test_what_cannot_be_computed_is_refused_in_one_line(scale):
    with pytest.raises(UserError, match=r"--networks: expected one, or more without --gpu\.steps-per-second, found 6"):
        scale.main(gpu=scale.Gpu(steps_per_second=2.5))
    with pytest.raises(UserError, match=r"--nodes\.gpus: expected a number above 0, found 0"):
        scale.main(nodes=scale.Nodes(gpus=0))
    with pytest.raises(UserError, match=r"--rates\.held-kb: expected a number above 0, found -1"):
        scale.main(rates=scale.Rates(held_kb=(3.0, -1.0)))
    with pytest.raises(UserError, match=r"--nodes\.cores: expected more than the node's 4 GPUs, found 4"):
        scale.main(nodes=scale.Nodes(cores=4))


def test_feeding_refuses_what_it_cannot_measure(tmp_path):
    feeding = program("feeding")
    with pytest.raises(UserError, match=r"--data: expected shards, found none"):
        feeding.main(index_videos=10)
    with pytest.raises(UserError, match="no finished shards"):
        feeding.main(data=(str(tmp_path),))
    with pytest.raises(UserError, match=r"--make ingested needs one"):
        feeding.main(make=("ingested",))
    with pytest.raises(UserError, match="expected shards of images"):
        feeding.main(make=("pseudo",))


def test_a_shorter_index_keeps_the_first_frames():
    row = {
        "frames": 3,
        "frame_ids": "a/b/c",
        "objects": [1, 2],
        "areas": [1, 2, 3, 4, 5, 6],
        "boxes": list(range(24)),
        "image_bytes": [7, 8, 9],
        "mask_bytes": [1, 1, 1],
        "image_ends": [99],
    }
    found = program("feeding").cut(row, 2)
    assert (found["frames"], found["frame_ids"], found["image_ends"]) == (2, "a/b", [99])
    assert (found["areas"], found["boxes"]) == ([1, 2, 3, 4], list(range(16)))
    assert (found["image_bytes"], found["mask_bytes"]) == ([7, 8], [1, 1])
