"""jobs/segment.py over a folder of videos, as its user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import ray
import torch

from vosforge import networks
from vosforge.clip import Clip
from vosforge.data.image_files import decode_frame, decode_mask, encode_frame, encode_mask
from vosforge.errors import UserError
from vosforge.propagation import Propagator, segment_clip

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMES = 4
GOOD, BROKEN = ("bear", "cow", "dog"), "cat"
DAMAGED = f"{FRAMES - 2:05d}"


def segment(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    # The cluster of all tests of this folder; another one for every run would take most of the time.
    environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    command = [sys.executable, ROOT / "jobs" / "segment.py", "--model", folder / "stm.safetensors"]
    command += ["--video", folder / "videos", "--mask", folder / "masks", "--out", folder / "out", *arguments]
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=environment, timeout=300, cwd=folder
    )


def write_video(folder: Path, name: str, seed: int) -> None:
    """A folder of frames, and the mask of its first."""
    rng = np.random.default_rng(seed)
    (folder / "videos" / name).mkdir(parents=True)
    (folder / "masks").mkdir(exist_ok=True)
    for t in range(FRAMES):
        frame = rng.integers(0, 256, (40, 56, 3), np.uint8)
        (folder / "videos" / name / f"{t:05d}.jpg").write_bytes(encode_frame(frame))
    mask = np.zeros((40, 56), np.uint8)
    mask[4:20, 4 + seed : 24 + seed] = 5
    (folder / "masks" / f"{name}.png").write_bytes(encode_mask(mask))


def damage(folder: Path, name: str) -> bytes:
    """Overwrite a late frame; what it held."""
    path = folder / "videos" / name / f"{DAMAGED}.jpg"
    before = path.read_bytes()
    path.write_bytes(b"no picture")
    return before


def stamps(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob("*/*")}


def network() -> networks.MemoryNetwork:
    torch.manual_seed(0)
    return networks.build("stm", "nano").eval()


def expected(folder: Path, name: str) -> np.ndarray:
    """The masks that the library gives."""
    files = sorted((folder / "videos" / name).iterdir())
    frames = np.stack([decode_frame(path.read_bytes(), path.name) for path in files])
    masks = np.zeros(frames.shape[:3], np.uint8)
    masks[0] = decode_mask((folder / "masks" / f"{name}.png").read_bytes(), name)
    return segment_clip(Propagator(network(), memory_every=2, budget=24), Clip(name, frames, masks))


def found(folder: Path, name: str) -> np.ndarray:
    files = [folder / "out" / name / f"{t:05d}.png" for t in range(FRAMES)]
    return np.stack([decode_mask(path.read_bytes(), path.name) for path in files])


class Runs(NamedTuple):
    """Three good videos and a broken one, segmented, then repaired and segmented again."""

    folder: Path
    first: subprocess.CompletedProcess[str]
    report: dict
    left: dict[str, int]
    second: subprocess.CompletedProcess[str]


SETTINGS = ("--memory-every", 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("segment")
    networks.save(network(), folder / "stm.safetensors")
    for seed, name in enumerate((*GOOD, BROKEN)):
        write_video(folder, name, seed)
    picture = damage(folder, BROKEN)
    first = segment(folder, *SETTINGS)
    assert first.returncode == 0, first.stdout + first.stderr
    report, left = json.loads((folder / "out" / "segment.json").read_text()), stamps(folder / "out")
    (folder / "videos" / BROKEN / f"{DAMAGED}.jpg").write_bytes(picture)
    return Runs(folder, first, report, left, segment(folder, *SETTINGS))


def test_good_videos_get_the_masks_that_the_library_gives(runs):
    for name in GOOD:
        assert {path for path in runs.left if path.startswith(name)} == {f"{name}/{t:05d}.png" for t in range(FRAMES)}
        assert (found(runs.folder, name) != expected(runs.folder, name)).mean() < 1e-3


def test_broken_video_is_skipped_by_name_and_leaves_nothing(runs):
    reason = f"{runs.folder}/videos/{BROKEN}/{DAMAGED}.jpg: expected a JPEG or PNG image"
    assert f"skipped {BROKEN}: {reason}" in runs.first.stdout
    assert f"3 of 4 videos in {runs.folder}/out, 1 skipped" in runs.first.stdout
    assert runs.report["videos"] == 3
    assert list(runs.report["skipped"]) == [BROKEN]
    assert runs.report["skipped"][BROKEN].startswith(reason)
    assert len(runs.left) == len(GOOD) * FRAMES


def test_same_command_keeps_what_is_finished_and_segments_what_was_repaired(runs):
    assert runs.second.returncode == 0, runs.second.stdout + runs.second.stderr
    assert "3 of 4 videos are segmented already" in runs.second.stdout
    assert "4 of 4 videos" in runs.second.stdout
    assert "skipped bear" not in runs.second.stdout
    after = stamps(runs.folder / "out")
    assert {path: after[path] for path in runs.left} == runs.left
    assert (found(runs.folder, BROKEN) != expected(runs.folder, BROKEN)).mean() < 1e-3
    assert json.loads((runs.folder / "out" / "segment.json").read_text()) == {"videos": 4, "skipped": {}}
    assert sorted(path.name for path in (runs.folder / "out").iterdir()) == sorted(
        [*GOOD, BROKEN, "segment.json", "settings.json"]
    )


@pytest.mark.cluster
def test_other_input_or_weights_in_the_same_folder_are_refused_by_their_names(runs, tmp_path):
    before = stamps(runs.folder / "out")
    shutil.copytree(runs.folder / "masks", tmp_path / "masks")
    torch.manual_seed(1)
    networks.save(networks.build("stm", "nano"), tmp_path / "other.safetensors")
    for flag, value, named in (
        ("--mask", tmp_path / "masks", "mask"),
        ("--model", tmp_path / "other.safetensors", "model"),
    ):
        done = segment(runs.folder, *SETTINGS, flag, value)
        assert done.returncode == 2, done.stderr
        assert f"{runs.folder}/out was started with another {named}; choose another name" in done.stderr
    # The same weights under another name are the same model.
    shutil.copy(runs.folder / "stm.safetensors", tmp_path / "same.safetensors")
    same = segment(runs.folder, *SETTINGS, "--model", tmp_path / "same.safetensors")
    assert same.returncode == 0, same.stderr
    assert "4 of 4 videos are segmented already" in same.stdout
    assert stamps(runs.folder / "out") == before


def test_other_settings_in_the_same_folder_are_refused_by_their_names(runs):
    before = stamps(runs.folder / "out")
    done = segment(runs.folder, "--memory-every", 3, "--short-side", 32)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{runs.folder}/out was started with another short_side, memory_every; choose another name" in line
    assert stamps(runs.folder / "out") == before


@pytest.mark.cluster
def test_more_broken_videos_than_allowed_end_the_run(runs, tmp_path):
    for name in ("videos", "masks", "stm.safetensors"):
        source = runs.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    damage(tmp_path, "bear")
    damage(tmp_path, "cow")
    done = segment(tmp_path, "--max-bad", 0.25, "--workers", 1)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: 2 of 4 videos cannot be used, past --max-bad 0.25; the first: ")
    assert f"{DAMAGED}.jpg: expected a JPEG or PNG image" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "segment.json").exists()
    assert not {"bear", "cow"} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.cluster
def test_files_that_cannot_be_opened_skip_their_video_by_name(runs, tmp_path):
    for name in ("videos", "masks", "stm.safetensors"):
        source = runs.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for path in (tmp_path / "videos" / "bear" / f"{DAMAGED}.jpg", tmp_path / "masks" / "cow.png"):
        path.unlink()
        path.symlink_to(tmp_path / "gone")
    done = segment(tmp_path, "--max-bad", 0.5)
    assert done.returncode == 0, done.stderr
    assert (
        f"skipped bear: {tmp_path}/videos/bear/{DAMAGED}.jpg: cannot be read (No such file or directory)" in done.stdout
    )
    assert f"skipped cow: {tmp_path}/masks/cow.png: no such mask file or folder of masks" in done.stdout
    assert "2 of 4 videos" in done.stdout


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program as a module, which many refusals need not start anew."""
    spec = importlib.util.spec_from_file_location("segment_program", ROOT / "jobs" / "segment.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def alone(tmp_path) -> Path:
    """One video with its first mask, and a network."""
    networks.save(network(), tmp_path / "stm.safetensors")
    write_video(tmp_path, "bear", 0)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("out", "how"),
    [
        ("videos/bear", "is --video"),
        ("videos/../videos/bear", "is --video"),
        ("link", "is --video"),
        ("videos/bear/masks", "lies in --video"),
        ("videos", "contains --video"),
        (".", "contains --video"),
        ("masks", "contains --mask"),
    ],
)
def test_masks_are_never_written_over_the_frames_or_masks_that_are_given(program, alone, out, how):
    (alone / "link").symlink_to(alone / "videos" / "bear")
    before = contents(alone)
    options = program.Options(
        alone / "videos" / "bear", alone / "masks" / "bear.png", alone / out, model=str(alone / "stm.safetensors")
    )
    with pytest.raises(UserError, match=rf"^--out: {alone / out} {how} .*; choose another$"):
        program.main(options)
    assert contents(alone) == before


@pytest.mark.parametrize("out", ["masks", "masks/new"])
def test_masks_of_many_videos_are_never_written_among_those_given(program, alone, out):
    options = program.Options(alone / "videos", alone / "masks", alone / out, model=str(alone / "stm.safetensors"))
    with pytest.raises(UserError, match=r"^--out: .* --mask .*; choose another$"):
        program.main(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "--workers: expected at least 1, found 0"),
        ({"short_side": 8}, "--short-side: expected at least 16 pixels, found 8"),
        ({"fps": 0.0}, "--fps: expected more than 0, found 0.0"),
        ({"max_bad": 2.0}, "--max-bad: expected a share from 0 to 1, found 2.0"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_is_read(program, tmp_path, changes, message):
    gone = tmp_path / "gone"
    with pytest.raises(UserError, match=f"^{message}$"):
        program.main(program.Options(gone, gone, tmp_path / "out", model="none.safetensors", **changes))


@pytest.mark.parametrize("video", ["videos/bear", "videos"])
def test_folder_with_other_files_is_refused_before_the_model_is_read(program, alone, video):
    mask = alone / ("masks/bear.png" if video.endswith("bear") else "masks")
    (alone / "out" / "bear").mkdir(parents=True)
    (alone / "out" / "bear" / "00000.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="out: expected a new or empty folder for the masks, found files in it"):
        program.main(program.Options(alone / video, mask, alone / "out", model="none.safetensors"))
    assert contents(alone / "out") == {"bear/00000.png": b"mine"}


@pytest.mark.cluster
def test_program_that_is_told_to_end_leaves_nothing_half_written(alone):
    rng = np.random.default_rng(0)
    for t in range(FRAMES, 400):
        (alone / "videos" / "bear" / f"{t:05d}.jpg").write_bytes(
            encode_frame(rng.integers(0, 256, (40, 56, 3), np.uint8))
        )
    arguments = ["--model", "stm.safetensors", "--video", "videos/bear", "--mask", "masks/bear.png", "--out", "out"]
    command = [sys.executable, ROOT / "jobs" / "segment.py", *arguments]
    process = subprocess.Popen([*map(str, command)], cwd=alone, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not [*alone.glob(".out.*.aside/00001.png")]:
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "stopped; " in told
    assert sorted(path.name for path in alone.iterdir()) == ["masks", "stm.safetensors", "videos"]
