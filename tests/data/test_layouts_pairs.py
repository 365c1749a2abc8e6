"""Plain pairs of frames and masks, folders for each video, and video files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from trees import write_frame, write_mask, write_video

from vosforge import pictures
from vosforge.data.layouts import find_videos, pair_videos
from vosforge.errors import UserError

SIZE = (48, 64)


def write_film(path: Path, frames: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [np.full((*SIZE, 3), (40 * t, 20, 200 - 40 * t), np.uint8) for t in range(frames)]
    pictures.write_video(path, shown)


def test_frames_and_masks_are_one_video_named_by_their_folder(tmp_path):
    write_video(tmp_path / "holiday" / "frames", tmp_path / "holiday" / "masks", annotated=[0])
    found = find_videos(tmp_path / "holiday")
    assert (found.layout, found.kind, [v.video_id for v in found.videos]) == ("pair", "videos", ["holiday"])
    assert found.reason == "one video: frames in frames/, masks in masks/"
    assert found.videos[0].read().annotated.tolist() == [True, False, False]


def test_folder_for_each_video_with_both_inside_is_recognised(tmp_path):
    for i, name in enumerate(("caps", "chair")):
        write_video(tmp_path / name / "JPEGImages", tmp_path / name / "Annotations", seed=i)
    (tmp_path / "empty").mkdir()
    found = find_videos(tmp_path)
    assert (found.layout, [v.video_id for v in found.videos]) == ("by-video", ["caps", "chair"])
    assert found.notes == ["folders without frames and masks are left out: empty"]


@pytest.mark.parametrize("first", [0, 1])
def test_masks_of_a_film_go_by_their_numbers(tmp_path, first):
    write_film(tmp_path / "dog.mp4")
    for t in (0, 4):
        write_mask(tmp_path / "masks" / f"frame_{t + first:04d}.png", size=SIZE)
    found = find_videos(tmp_path)
    assert (found.layout, found.kind) == ("films", "videos")
    (video,) = found.videos
    clip = video.read()
    assert (clip.name, clip.annotated.tolist()) == ("dog", [True, False, False, False, True])
    assert np.abs(clip.frames[4].mean(axis=(0, 1)) - (160, 20, 40)).max() < 12
    assert video.notes == (("masks are numbered from 1",) if first else ())
    table = video.table()
    assert [data[:3] for data in table.column("image").to_pylist()] == [b"\xff\xd8\xff"] * 5
    assert table.column("frame_id").to_pylist() == ["00000", "00001", "00002", "00003", "00004"]


def test_frame_of_a_film_is_read_alone_too(tmp_path):
    write_film(tmp_path / "dog.mp4")
    write_mask(tmp_path / "masks" / "0.png", size=SIZE)
    frame = find_videos(tmp_path).videos[0].frames[3]
    shown = cv2.imdecode(np.frombuffer(frame.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(shown.mean(axis=(0, 1)) - (80, 20, 120)).max() < 12


def test_several_films_have_folders_of_their_name(tmp_path):
    for name in ("a", "b", "c"):
        write_film(tmp_path / f"{name}.mp4")
    for name in ("a", "b"):
        write_mask(tmp_path / "masks" / name / "00000.png", size=SIZE)
    found = find_videos(tmp_path)
    assert [v.video_id for v in found.videos] == ["a", "b"]
    assert found.notes == ["no masks for c.mp4"]


@pytest.mark.parametrize(("name", "told"), [("00009", "masks without a frame: 00009.png"), ("first", "by the number")])
def test_masks_that_are_no_frame_of_the_film_are_named(tmp_path, name, told):
    write_film(tmp_path / "dog.mp4")
    write_mask(tmp_path / "masks" / f"{name}.png", size=SIZE)
    with pytest.raises(UserError, match=told):
        find_videos(tmp_path).videos[0].table()


def test_broken_film_is_named_and_the_others_stay(tmp_path):
    write_film(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"no film")
    for name in ("a", "b"):
        write_mask(tmp_path / "masks" / name / "00000.png", size=SIZE)
    found = find_videos(tmp_path)
    assert [v.video_id for v in found.videos] == ["a"]
    assert [v.video_id for v in found.unusable] == ["b"]
    assert "b.mp4" in found.unusable[0].problem


def test_named_frames_and_masks_are_one_video_or_many(tmp_path):
    for i, name in enumerate(("a", "b")):
        write_video(tmp_path / "pictures" / name, None if i else tmp_path / "drawn" / name, seed=i)
    one = pair_videos(tmp_path / "pictures" / "a", tmp_path / "drawn" / "a", dataset="mine", licence="CC0")
    assert [(v.dataset, v.video_id, v.licence, len(v.frames)) for v in one.videos] == [("mine", "a", "CC0", 3)]
    many = pair_videos(tmp_path / "pictures", tmp_path / "drawn")
    assert [(v.dataset, v.video_id) for v in many.videos] == [("drawn", "a")]
    assert many.notes == ["1 videos without a folder of masks are left out: b"]


def test_named_film_goes_with_a_folder_of_masks(tmp_path):
    write_film(tmp_path / "films" / "dog.mp4")
    write_mask(tmp_path / "drawn" / "00002.png", size=SIZE)
    video = pair_videos(tmp_path / "films" / "dog.mp4", tmp_path / "drawn").videos[0]
    assert video.table().column("mask").is_valid().to_pylist() == [False, False, True, False, False]


def test_named_folders_that_are_no_pair_are_refused(tmp_path):
    write_frame(tmp_path / "pictures" / "a" / "0.jpg")
    write_mask(tmp_path / "drawn" / "b" / "0.png")
    with pytest.raises(UserError, match="folders of the same names in both; found b in the second"):
        pair_videos(tmp_path / "pictures", tmp_path / "drawn")
    with pytest.raises(UserError, match="gone: no such folder of masks"):
        pair_videos(tmp_path / "pictures", tmp_path / "gone")
    with pytest.raises(UserError, match=r"gone\.mp4: no such video file"):
        pair_videos(tmp_path / "gone.mp4", tmp_path / "drawn")


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([1, 2, 3, 4], ("masks 1 to 4 of 5 frames: taken as numbered from 0",)),
        ([1], ("masks 1 to 1 of 5 frames: taken as numbered from 0",)),
        ([0, 1, 2], ()),
        ([2, 3], ()),
    ],
)
def test_doubt_where_masks_of_a_film_begin_is_noted(tmp_path, numbers, told):
    write_film(tmp_path / "dog.mp4")
    for t in numbers:
        write_mask(tmp_path / "masks" / f"{t:05d}.png", size=SIZE)
    (video,) = find_videos(tmp_path).videos
    assert video.notes == told
    assert np.flatnonzero(video.read().annotated).tolist() == numbers
