"""The program that turns data sets into shards, and what it makes of broken ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trees import SIZE, png, square, write_mask, write_tree, write_video

from vosforge.data.factory import build
from vosforge.data.layouts import SourceVideo, find_videos, mask_notes
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError

PROGRAM = Path(__file__).resolve().parents[2] / "datasets" / "ingest.py"


def ingest(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROGRAM, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def built(root: Path, out: Path, repair: bool = False, max_rejects: float = 1.0, workers: int = 2) -> dict:
    found = find_videos(root)
    items = [replace(video, repair=repair) for video in found.videos + found.unusable]
    recipe = {"source": found.digest, "repair_masks": repair}
    return build(str(out), found.kind, recipe, items, SourceVideo.table, 2, workers, max_rejects=max_rejects)


def soft() -> np.ndarray:
    mask = square(255)
    mask[3, 4:10] = 70
    return mask


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """One sound video, and one for each thing that can be wrong with a video."""
    names = ["bare", "double", "extra", "large", "link", "rim", "sound", "torn"]
    root = write_tree(tmp_path / "set", *names)
    masks, frames = root / "Annotations", root / "JPEGImages"
    write_video(frames / "again", masks / "again", seed=7)
    for path in (masks / "bare").iterdir():
        path.unlink()
    (frames / "double" / "00001.png").write_bytes(png(np.zeros((*SIZE, 3), np.uint8)))
    write_mask(masks / "extra" / "00009.png")
    write_mask(masks / "large" / "00001.png", size=(48, 64))
    (frames / "link" / "00001.jpg").unlink()
    (frames / "link" / "00001.jpg").symlink_to(tmp_path / "gone.jpg")
    (masks / "rim" / "00001.png").write_bytes(png(soft()))
    (frames / "torn" / "00002.jpg").write_bytes((frames / "torn" / "00002.jpg").read_bytes()[:100])
    write_mask(masks / "frameless" / "00000.png")
    return root


def test_every_broken_video_is_named_and_the_others_are_kept(broken, tmp_path):
    manifest = built(broken, tmp_path / "out")
    assert [video.video_id for video in ShardSet(str(tmp_path / "out")).videos] == ["again"]
    reasons = {entry["video"]: entry["reason"] for entry in manifest["rejected"]}
    expected = {
        "bare": "no frame has a mask",
        "double": "two frames of one name: 00001.jpg and 00001.png",
        "extra": "masks without a frame: 00009",
        "frameless": "no frames for the masks in",
        "large": "00001.png: expected the frame's size (24, 32), found (48, 64)",
        "link": "00001.jpg: cannot be read (No such file or directory)",
        "rim": "00001.png: expected object ids, found 3 grey levels (70)",
        "sound": "the same frames and masks as",
        "torn": "00002.jpg: expected a JPEG or PNG image",
    }
    assert sorted(reasons) == sorted(expected)
    assert [video for video, told in expected.items() if told not in reasons[video]] == []


def test_too_many_broken_videos_stop_the_build(broken, tmp_path):
    with pytest.raises(UserError, match=r"\d of 10 videos rejected, more than the allowed 50%"):
        built(broken, tmp_path / "out", max_rejects=0.5)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_same_bytes_with_any_number_of_workers_and_after_a_stop(tmp_path):
    root = write_tree(tmp_path / "set", "a", "b", "c", "d", "e")

    def hashes(out: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}

    built(root, tmp_path / "one", workers=1)
    built(root, tmp_path / "three", workers=3)
    straight = hashes(tmp_path / "one")
    assert straight == hashes(tmp_path / "three")
    (tmp_path / "three" / "manifest.json").unlink()
    sorted((tmp_path / "three").glob("part-*"))[1].unlink()
    built(root, tmp_path / "three")
    assert straight == hashes(tmp_path / "three")


def test_repaired_masks_are_counted_beside_their_video(tmp_path):
    root = write_tree(tmp_path / "set", "bear", "rim")
    (root / "Annotations" / "rim" / "00001.png").write_bytes(png(soft()))
    for t in (0, 2):
        (root / "Annotations" / "rim" / f"{t:05d}.png").write_bytes(png(square(255)))
    manifest = built(root, tmp_path / "out", repair=True)
    assert manifest["rejected"] == []
    notes = mask_notes(str(tmp_path / "out"))
    assert {"video": "rim", "note": "1 masks repaired, 6 pixels set to the nearest id"} in notes
    shards = ShardSet(str(tmp_path / "out"))
    clip = shards.read(next(video for video in shards.videos if video.video_id == "rim"))
    assert (clip.masks == square(1)).all()


def test_program_says_what_it_recognised_what_it_left_out_and_why(tmp_path):
    root = write_tree(tmp_path / "DAVIS", "bear", "camel", resolution="480p")
    mask = square(2)
    mask[18:] = 255
    (root / "Annotations" / "480p" / "bear" / "00001.png").write_bytes(png(mask))
    (root / "JPEGImages" / "480p" / "camel" / "00001.jpg").write_bytes(b"torn")
    done = ingest("--root", root, "--out", tmp_path / "out", "--licence", "CC0", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert (
        "layout davis (folders of frames under JPEGImages/480p, masks under Annotations/480p), 2 videos" in done.stdout
    )
    assert "note bear: void (255) in 1 masks" in done.stdout
    assert "rejected camel: " in done.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recipe"]["layout"] == "davis"
    assert manifest["notes"][0] == {"video": "bear", "note": "void (255) in 1 masks"}
    assert len(manifest["rejected"]) == 1


def test_dry_run_recognises_and_writes_nothing(tmp_path):
    write_video(tmp_path / "dog" / "frames", tmp_path / "dog" / "masks")
    done = ingest("--root", tmp_path / "dog", "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "layout pair (one video: frames in frames/, masks in masks/), 1 videos of kind videos" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "error: give either --root, or both --frames and --masks"),
        (["--frames", "f"], "error: give either --root, or both --frames and --masks"),
        (["--root", "gone"], "error: gone: no such folder"),
        (["--frames", "f", "--masks", "m", "--split", "val"], "go without --layout and --split"),
    ],
)
def test_program_refuses_in_one_line(flags, told, tmp_path):
    done = ingest("--out", tmp_path / "out", *flags)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
