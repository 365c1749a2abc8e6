from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from vosforge import pictures
from vosforge.clip import Clip
from vosforge.data.image_files import decode_mask, encode_frame, encode_mask
from vosforge.errors import UserError
from vosforge.propagation import CopyFirstMask, Propagator, segment_clip, segment_frame
from vosforge.propagation.files import FirstMasks, VideoFiles, find_videos, segment_files


@pytest.fixture
def folder(tmp_path, noise):
    """A folder of six frames and a first mask."""
    clip = noise(6, 2)
    (tmp_path / "frames").mkdir()
    for t, frame in enumerate(clip.frames):
        (tmp_path / "frames" / f"{t:05d}.jpg").write_bytes(encode_frame(frame, 100))
    (tmp_path / "first.png").write_bytes(encode_mask(clip.masks[0]))
    return tmp_path


def files(folder, video="frames", mask="first.png") -> VideoFiles:
    return VideoFiles("clip", folder / video, folder / mask)


def read(path) -> np.ndarray:
    return decode_mask(path.read_bytes(), str(path))


def film(path, frames: list[np.ndarray]) -> None:
    pictures.write_video(path, frames)


def test_masks_are_named_as_the_frames_and_hold_the_ids(folder, noise):
    done = []
    assert segment_files(CopyFirstMask(), files(folder), folder / "out", on_frame=done.append) == 6
    assert sorted(path.name for path in (folder / "out").iterdir()) == [f"{t:05d}.png" for t in range(6)]
    assert all((read(folder / "out" / f"{t:05d}.png") == noise(6, 2).masks[0]).all() for t in range(6))
    assert done == [1, 2, 3, 4, 5, 6]


def test_objects_enter_where_the_folder_of_masks_shows_them_first(folder, noise, nano):
    clip = noise(6, 2)
    masks = folder / "masks"
    masks.mkdir()
    for t in (0, 2, 4):
        (masks / f"{t:05d}.png").write_bytes(encode_mask(clip.masks[t]))
    given = FirstMasks(masks)
    found = [given.given(t, f"{t:05d}", clip.size) for t in range(6)]
    assert [None if mask is None else set(np.unique(mask)) - {0} for mask in found] == [
        {3},
        None,
        {6},
        None,
        None,
        None,
    ]
    segment_files(Propagator(nano()), files(folder, mask="masks"), folder / "out")
    assert 6 not in read(folder / "out" / "00001.png")
    assert ((read(folder / "out" / "00002.png") == 6) == (clip.masks[2] == 6)).all()


def test_overlay_and_sheet_are_written_beside_the_masks(folder):
    segment_files(CopyFirstMask(), files(folder), folder / "out", overlay=True)
    capture = cv2.VideoCapture(str(folder / "out" / "overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert cv2.imread(str(folder / "out" / "sheet.png")).shape[0] > 160


def test_folder_with_other_files_is_refused_and_left_alone(folder):
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out: expected a new or empty folder .* delete or choose another"):
        segment_files(CopyFirstMask(), files(folder), folder / "out")
    assert [path.name for path in (folder / "out").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match=r"first\.png: expected a folder for the masks, found a file"):
        segment_files(CopyFirstMask(), files(folder), folder / "first.png")


def test_empty_folder_is_filled_through_a_link_too(folder):
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    segment_files(CopyFirstMask(), files(folder), folder / "link")
    assert len(list((folder / "real").iterdir())) == 6
    assert (folder / "link").is_symlink()


def test_what_a_killed_run_left_beside_the_folder_is_removed(folder):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in (ended.pid, os.getpid(), os.getppid()):
        (folder / f".out.{number}.aside").mkdir()
    (folder / f".out.more.{ended.pid}.aside").mkdir()
    segment_files(CopyFirstMask(), files(folder), folder / "out")
    # Another process may be at work, and another folder is another run's.
    left = {path.name for path in folder.glob(".*.aside")}
    assert left == {f".out.{os.getppid()}.aside", f".out.more.{ended.pid}.aside"}


@pytest.mark.parametrize("lost", ["frames/00003.jpg", "masks/00000.png", "first.png"])
def test_file_that_cannot_be_opened_is_an_error_that_names_it(folder, lost):
    (folder / "masks").mkdir()
    mask = "first.png" if lost.startswith("first") else "masks"
    (folder / "masks" / "00000.png").write_bytes((folder / "first.png").read_bytes())
    (folder / lost).unlink()
    (folder / lost).symlink_to(folder / "gone")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match=rf"{lost}: (cannot be read \(No such file|no such mask file)"):
        segment_files(CopyFirstMask(), files(folder, mask=mask), folder / "out")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_mask_of_more_pixels_than_are_opened_is_an_error_that_names_it(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"first\.png: .*exceeds limit"):
        segment_files(CopyFirstMask(), files(folder), folder / "out")


@pytest.mark.parametrize("short_side", [None, 16, 23, 32])
def test_first_masks_are_exactly_those_given_at_any_size(nano, noise, short_side):
    clip = noise(1, 1)
    # Thin and ragged shapes are what reducing and enlarging changes most.
    mask = np.zeros(clip.size, np.uint8)
    mask[5:30:3, 5:40], mask[8:25, 44:46], mask[35, 50] = 4, 7, 9
    assert (segment_frame(CopyFirstMask(), clip.frames[0], mask, short_side) == mask).all()
    segmenter = Propagator(nano())
    assert (segment_frame(segmenter, clip.frames[0], mask, short_side) == mask).all()
    # Given again, alone and elsewhere.
    moved = np.roll(np.where(mask == 7, mask, 0), 3, axis=0)
    labels = segment_frame(segmenter, clip.frames[0], moved, short_side)
    assert ((labels == 7) == (moved == 7)).all()


def test_video_that_breaks_off_leaves_nothing_behind(folder):
    (folder / "frames" / "00004.jpg").write_bytes(b"no picture")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match=r"00004\.jpg: expected a JPEG or PNG image"):
        segment_files(CopyFirstMask(), files(folder), folder / "out", overlay=True)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_video_of_one_frame_is_its_mask(folder, noise):
    for t in range(1, 6):
        (folder / "frames" / f"{t:05d}.jpg").unlink()
    assert segment_files(CopyFirstMask(), files(folder), folder / "out", overlay=True) == 1
    assert (read(folder / "out" / "00000.png") == noise(6, 2).masks[0]).all()


def test_object_of_one_pixel_is_followed(folder, noise, nano):
    mask = np.zeros((40, 56), np.uint8)
    mask[20, 20] = 9
    (folder / "first.png").write_bytes(encode_mask(mask))
    segment_files(Propagator(nano()), files(folder), folder / "out")
    assert (read(folder / "out" / "00000.png") == mask).all()
    assert set(np.unique(read(folder / "out" / "00005.png"))) <= {0, 9}


def test_frames_that_change_size_are_refused_by_name(folder):
    small = np.zeros((20, 30, 3), np.uint8)
    (folder / "frames" / "00003.jpg").write_bytes(encode_frame(small))
    with pytest.raises(UserError, match=r"frame 00003 is \(20, 30\), the first one is \(40, 56\)"):
        segment_files(CopyFirstMask(), files(folder), folder / "out")


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            encode_mask(np.ones((20, 30), np.uint8)),
            r"first\.png: expected the frame's size \(40, 56\), found \(20, 30\)",
        ),
        (encode_mask(np.zeros((40, 56), np.uint8)), r"first\.png: the mask is empty; mark at least one object"),
        (png(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)), r"first\.png: .* found RGB colours"),
        (png(np.tile(np.linspace(0, 255, 56).astype(np.uint8), (40, 1))), r"first\.png: .* anti-aliased"),
        (b"", r"first\.png: expected a mask PNG, found 0 bytes"),
    ],
    ids=["size", "empty", "rgb", "anti-aliased", "nothing"],
)
def test_mask_that_cannot_be_used_is_refused_by_its_file(folder, content, message):
    (folder / "first.png").write_bytes(content)
    with pytest.raises(UserError, match=message):
        segment_files(CopyFirstMask(), files(folder), folder / "out")
    assert not (folder / "out").exists()


def test_mask_of_no_frame_is_refused(folder, noise):
    (folder / "masks").mkdir()
    (folder / "masks" / "00009.png").write_bytes(encode_mask(noise(1, 1).masks[0]))
    with pytest.raises(UserError, match=r"00009\.png: no frame of that name; frames are 00000 to 00005"):
        segment_files(CopyFirstMask(), files(folder, mask="masks"), folder / "out")


def test_missing_mask_is_refused(folder):
    with pytest.raises(UserError, match=r"absent\.png: no such mask file"):
        segment_files(CopyFirstMask(), files(folder, mask="absent.png"), folder / "out")


def test_film_is_read_to_its_end(folder, noise):
    film(folder / "clip.mp4", list(noise(6, 1).frames))
    assert segment_files(CopyFirstMask(), files(folder, video="clip.mp4"), folder / "out") == 6
    assert (folder / "out" / "00005.png").is_file()


def test_film_that_ends_early_is_refused(folder, noise):
    film(folder / "clip.avi.mp4", list(noise(40, 1, (160, 240)).frames))
    data = (folder / "clip.avi.mp4").read_bytes()
    # The table of frames stands at the end of this container: damage the pictures instead of cutting it off.
    start, end = len(data) // 2, len(data) - 4000
    (folder / "clip.mp4").write_bytes(data[:start] + bytes(end - start) + data[end:])
    (folder / "first.png").write_bytes(encode_mask(noise(1, 1, (160, 240)).masks[0]))
    with pytest.raises(UserError, match=r"clip\.mp4: ends after \d+ frames, expected 40"):
        segment_files(CopyFirstMask(), files(folder, video="clip.mp4"), folder / "out")


def test_videos_of_a_folder_are_found_with_their_masks(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "videos" / name).mkdir(parents=True)
    (tmp_path / "videos" / "c.mp4").write_bytes(b"")
    (tmp_path / "videos" / "notes.txt").write_text("")
    (tmp_path / "masks" / "a").mkdir(parents=True)
    found = find_videos(tmp_path / "videos", tmp_path / "masks")
    assert [(f.name, f.video.name, f.mask.name) for f in found] == [
        ("a", "a", "a"),
        ("b", "b", "b.png"),
        ("c", "c.mp4", "c.png"),
    ]
    assert find_videos(tmp_path / "videos" / "c.mp4", tmp_path / "masks") is None
    with pytest.raises(UserError, match=r"expected a folder of <video>\.png"):
        find_videos(tmp_path / "videos", tmp_path / "first.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no frames, video files or folders"):
        find_videos(tmp_path / "empty", tmp_path / "masks")


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_hidden_folders_and_files_are_no_videos(tmp_path):
    videos = folder_of(tmp_path / "videos", "a/0.jpg", ".cache/0.jpg", ".b.mp4", "._a.jpg")
    assert [found.name for found in find_videos(videos, folder_of(tmp_path / "masks", "a.PNG"))] == ["a"]


def test_masks_with_a_capital_ending_are_found(tmp_path):
    videos = folder_of(tmp_path / "videos", "a/0.jpg", "b/0.jpg")
    found = find_videos(videos, folder_of(tmp_path / "masks", "a.PNG", "b/0.PNG"))
    assert [files.mask.name for files in found] == ["a.PNG", "b"]
    assert list(FirstMasks(found[1].mask).files) == ["0"]


@pytest.mark.parametrize("beside", ["a/0.jpg", "a.mp4"])
def test_images_beside_videos_are_refused_by_name(tmp_path, beside):
    videos = folder_of(tmp_path / "videos", beside, "poster.jpg")
    with pytest.raises(UserError, match=r"expected frames, or videos, found poster\.jpg beside a"):
        find_videos(videos, tmp_path)


def test_folder_of_frames_may_hold_folders_of_other_things(tmp_path):
    assert find_videos(folder_of(tmp_path, "0.jpg", "notes/read.txt"), tmp_path) is None


def test_segmented_files_are_what_the_library_gives(folder, nano):
    paths = sorted((folder / "frames").iterdir())
    frames = np.stack([cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths])
    masks = np.zeros(frames.shape[:3], np.uint8)
    masks[0] = read(folder / "first.png")
    expected = segment_clip(Propagator(nano()), Clip("clip", frames, masks))
    segment_files(Propagator(nano()), files(folder), folder / "out")
    assert all((read(folder / "out" / f"{t:05d}.png") == expected[t]).all() for t in range(6))
