"""Real video, where `VOSFORGE_DATA` points at it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vosforge.data.layouts import find_videos
from vosforge.evaluation.running import Truth, evaluate
from vosforge.propagation import CopyFirstMask, segment_clip

DATA = Path(os.environ.get("VOSFORGE_DATA", ""))
pytestmark = pytest.mark.skipif(
    not (DATA / "DAVIS" / "JPEGImages").is_dir(), reason="VOSFORGE_DATA does not point at a folder with DAVIS"
)


def test_davis_is_recognised_with_its_splits():
    found = find_videos(DATA / "DAVIS", split="val")
    listed = (DATA / "DAVIS" / "ImageSets" / "2016" / "val.txt").read_text().split()
    assert (found.layout, found.kind) == ("davis", "videos")
    assert [video.video_id for video in found.videos] == listed
    assert all(None not in video.masks for video in found.videos)
    clip = found.videos[0].read()
    assert clip.size == (480, 854)
    assert clip.objects == [1]


def test_jpeg_bytes_of_davis_are_kept():
    video = find_videos(DATA / "DAVIS", split="val").videos[0]
    stored = video.table().column("image").to_pylist()
    assert stored == [path.read_bytes() for path in video.frames]


def test_copying_the_first_mask_scores_as_it_is_known_to():
    truth = Truth(str(DATA / "DAVIS"), split="val")
    if len(truth) != 8:
        pytest.skip(f"the score is known for a subset of 8 sequences, found {len(truth)}")
    scored = evaluate({"copy": lambda clip: segment_clip(CopyFirstMask(), clip)}, truth, protocol="davis2016")["copy"]
    assert scored["J&F"] == pytest.approx(0.258, abs=0.002)
