from __future__ import annotations

import cv2
import numpy as np
import pytest

from vosforge import pictures
from vosforge.clip import Clip
from vosforge.data.image_files import decode_mask, encode_frame, encode_mask
from vosforge.errors import UserError
from vosforge.propagation import CopyFirstMask, Propagator, segment_clip
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


def test_other_files_of_the_folder_stay(folder):
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")
    segment_files(CopyFirstMask(), files(folder), folder / "out")
    assert (folder / "out" / "notes.txt").read_text() == "mine"
    assert len(list((folder / "out").iterdir())) == 7


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


def test_segmented_files_are_what_the_library_gives(folder, nano):
    paths = sorted((folder / "frames").iterdir())
    frames = np.stack([cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths])
    masks = np.zeros(frames.shape[:3], np.uint8)
    masks[0] = read(folder / "first.png")
    expected = segment_clip(Propagator(nano()), Clip("clip", frames, masks))
    segment_files(Propagator(nano()), files(folder), folder / "out")
    assert all((read(folder / "out" / f"{t:05d}.png") == expected[t]).all() for t in range(6))
