"""Real data sets go into shards, a small part of each, where `VOSFORGE_DATA` points at them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vosforge.data.image_files import decode_mask
from vosforge.data.layouts import SourceVideo, find_videos, pair_videos

DATA = Path(os.environ.get("VOSFORGE_DATA", ""))
pytestmark = pytest.mark.skipif(
    not (DATA / "static").is_dir() or not (DATA / "video").is_dir(),
    reason="VOSFORGE_DATA does not point at a folder with static and video",
)
# Objects of the first video, and how many there are.
EXPECTED = {
    "static/coco128_seg": ("static", 126, 8),
    "static/davis17_testchallenge_first": ("static", 30, 2),
    "static/fss_samples": ("static", 10, 1),
    "static/labelme_voc": ("static", 3, 3),
    "static/msrc_cow": ("static", 30, 1),
    "static/sod_bsd300": ("static", 300, 1),
    "video/cutie_examples": ("by-video", 1, 2),
    "video/davis2017_multi_240p": ("by-video", 2, 3),
    "video/davis_interactive_testdata": ("davis", 2, 1),
    "video/labelme_video": ("by-video", 1, 2),
    "video/pumavos_xmem2": ("by-video", 2, 2),
    "video/segtrackv2_bmx": ("by-video", 1, 1),
    "video/youtubevos_sample": ("by-video", 1, 5),
}


def objects(video: SourceVideo) -> set[int]:
    return {k for ids in video.table().column("objects").to_pylist() for k in ids}


@pytest.mark.parametrize("name", EXPECTED)
def test_real_set_is_recognised_and_goes_in(name):
    layout, count, ids = EXPECTED[name]
    found = find_videos(DATA / name)
    assert (found.layout, len(found.videos)) == (layout, count)
    assert found.kind == ("images" if layout == "static" else "videos")
    assert len(objects(found.videos[0])) == ids
    assert not any(video.problem for video in found.videos)


def test_files_of_a_real_video_keep_their_bytes():
    video = find_videos(DATA / "video" / "pumavos_xmem2").videos[1]
    table = video.table()
    assert table.column("image").to_pylist() == [path.read_bytes() for path in video.frames]
    assert table.column("mask").to_pylist() == [path.read_bytes() for path in video.masks]


def test_png_frames_under_the_name_of_jpeg_are_encoded():
    video = find_videos(DATA / "video" / "youtubevos_sample").videos[0]
    assert {(path.suffix, path.read_bytes()[:4]) for path in video.frames} == {(".jpg", b"\x89PNG")}
    assert {data[:3] for data in video.table().column("image").to_pylist()} == {b"\xff\xd8\xff"}


def test_void_of_davis_stays_in_the_masks_and_out_of_the_objects():
    tennis = find_videos(DATA / "video" / "davis_interactive_testdata").videos[1]
    assert objects(tennis) == {1, 2}
    table = tennis.table()
    assert decode_mask(table.column("mask")[0].as_py(), "m").max() == 255
    assert table.column("source")[0].as_py() == "tennis; void (255) in 2 masks"


def test_masks_without_frames_are_paired_with_those_of_davis():
    found = pair_videos(DATA / "DAVIS" / "JPEGImages" / "480p", DATA / "video" / "osvos_predictions_davis2017val")
    assert len(found.videos) == 8
    assert all("no frames for the masks" in video.problem for video in found.unusable)
    first = pair_videos(DATA / "DAVIS" / "JPEGImages" / "480p", DATA / "video" / "davis2017_firstframe_masks")
    assert [video.video_id for video in first.videos] == ["bmx-trees", "dog", "horsejump-high"]
    assert [mask is not None for mask in first.videos[0].masks[:3]] == [True, False, False]
