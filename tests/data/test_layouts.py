from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vosforge.data.image_files import decode_mask, encode_frame, encode_mask
from vosforge.data.layouts import find_videos
from vosforge.errors import UserError


def write_frame(path: Path, seed: int = 0, size: tuple[int, int] = (24, 32)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = encode_frame(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8), quality=40)
    path.write_bytes(data)
    return data


def write_mask(path: Path, identity: int = 1, size: tuple[int, int] = (24, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[4:10, 4:10] = identity
    path.write_bytes(encode_mask(mask))


def davis(root: Path, videos: dict[str, int], resolution: str = "480p") -> Path:
    for v, (video, frames) in enumerate(videos.items()):
        for t in range(frames):
            write_frame(root / "JPEGImages" / resolution / video / f"{t:05d}.jpg", seed=t)
            write_mask(root / "Annotations" / resolution / video / f"{t:05d}.png", identity=v + 1)
    return root


def test_davis_is_recognised_with_its_480p_folders(tmp_path):
    found = find_videos(davis(tmp_path / "DAVIS", {"bear": 3, "camel": 2}))
    assert (found.layout, found.kind) == ("davis", "videos")
    assert "480p" in found.reason
    assert [(v.dataset, v.video_id, len(v.frames)) for v in found.videos] == [
        ("DAVIS", "bear", 3),
        ("DAVIS", "camel", 2),
    ]
    clip = found.videos[1].read()
    assert (clip.name, clip.objects, clip.frame_ids) == ("camel", [2], ("00000", "00001"))


def test_davis_without_a_resolution_folder_is_recognised(tmp_path):
    found = find_videos(davis(tmp_path, {"bear": 1}, resolution="."))
    assert [v.video_id for v in found.videos] == ["bear"]


def test_split_chooses_the_videos_in_its_order(tmp_path):
    root = davis(tmp_path, {"bear": 1, "camel": 1, "dog": 1})
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("dog\nbear\n\n")
    assert [v.video_id for v in find_videos(root, split="val").videos] == ["dog", "bear"]


def test_missing_split_is_refused_and_the_others_listed(tmp_path):
    root = davis(tmp_path, {"bear": 1})
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("bear\n")
    with pytest.raises(UserError, match=r"no split 'test-dev' .*there are: val"):
        find_videos(root, split="test-dev")


def test_split_without_any_list_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no split 'val' .*there are: none"):
        find_videos(davis(tmp_path, {"bear": 1}), split="val")


def test_video_of_the_split_without_frames_is_named(tmp_path):
    root = davis(tmp_path, {"bear": 1})
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("bear\nyak\n")
    found = find_videos(root, split="val")
    (bad,) = [video for video in (*found.videos, *found.unusable) if video.problem]
    assert bad.video_id == "yak"
    assert "yak: no frames" in bad.problem


def test_frames_without_a_mask_file_are_unannotated(tmp_path):
    root = davis(tmp_path, {"bear": 3})
    (root / "Annotations" / "480p" / "bear" / "00001.png").unlink()
    clip = find_videos(root).videos[0].read()
    assert clip.annotated.tolist() == [True, False, True]
    assert not clip.masks[1].any()


@pytest.mark.parametrize("folders", [("images", "masks"), ("JPEGImages", "Annotations")])
def test_static_folders_are_videos_of_one_frame(tmp_path, folders):
    for name in ("b", "a"):
        write_frame(tmp_path / folders[0] / f"{name}.jpg")
        write_mask(tmp_path / folders[1] / f"{name}.png")
    write_frame(tmp_path / folders[0] / "without a mask.jpg")
    found = find_videos(tmp_path)
    assert (found.layout, found.kind) == ("static", "images")
    assert [v.video_id for v in found.videos] == ["a", "b"]
    assert len(found.videos[0].read()) == 1


def test_static_folders_without_a_pair_are_refused(tmp_path):
    write_frame(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "masks" / "b.png")
    with pytest.raises(UserError, match="no image has a mask PNG of the same name"):
        find_videos(tmp_path)


def test_unknown_folder_is_refused_with_what_was_expected(tmp_path):
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UserError, match=r"not recognised; expected JPEGImages.*images/ and masks/"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="gone: no such folder"):
        find_videos(tmp_path / "gone")
    with pytest.raises(UserError, match="unknown layout 'imagenet'; valid: auto, davis, youtube, mose, bl30k, sav, "):
        find_videos(tmp_path, layout="imagenet")


def test_named_layout_does_not_fall_back_to_another(tmp_path):
    write_frame(tmp_path / "images" / "a.jpg")
    write_mask(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match="not recognised"):
        find_videos(tmp_path, layout="davis")


def test_mask_of_another_size_is_named(tmp_path):
    root = davis(tmp_path, {"bear": 3})
    write_mask(root / "Annotations" / "480p" / "bear" / "00002.png", size=(12, 16))
    with pytest.raises(UserError, match=r"bear/00002\.png: expected the frame's size \(24, 32\), found \(12, 16\)"):
        find_videos(root).videos[0].read()


def test_frame_of_another_size_is_named(tmp_path):
    root = davis(tmp_path, {"bear": 3})
    write_frame(root / "JPEGImages" / "480p" / "bear" / "00001.jpg", size=(26, 32))
    with pytest.raises(UserError, match=r"bear/00001\.jpg: expected a frame of \(24, 32\) .*found \(26, 32\)"):
        find_videos(root).videos[0].read()


def test_damaged_frame_is_named(tmp_path):
    root = davis(tmp_path, {"bear": 2})
    (root / "JPEGImages" / "480p" / "bear" / "00001.jpg").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"bear/00001\.jpg"):
        find_videos(root).videos[0].table()


def test_jpeg_files_keep_their_bytes_and_the_licence(tmp_path):
    data = [write_frame(tmp_path / "JPEGImages" / "bear" / f"{t}.JPG", seed=t) for t in range(2)]
    write_mask(tmp_path / "Annotations" / "bear" / "0.png", identity=7)
    table = find_videos(tmp_path, licence="CC BY 4.0").videos[0].table()
    assert table.column("image").to_pylist() == data
    assert table.column("licence").to_pylist() == ["CC BY 4.0"] * 2
    assert table.column("mask")[1].as_py() is None
    assert decode_mask(table.column("mask")[0].as_py(), "m").max() == 7


def test_png_frames_are_stored_as_jpeg(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "masks" / "a.png")
    image = find_videos(tmp_path).videos[0].table().column("image")[0].as_py()
    assert image[:3] == b"\xff\xd8\xff"


def test_digest_changes_when_a_file_is_written_again(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(encode_mask(np.eye(8, dtype=np.uint8)))
    before = find_videos(tmp_path).digest
    assert find_videos(tmp_path).digest == before
    os.utime(tmp_path / "masks" / "a.png", ns=(1, 1))
    assert find_videos(tmp_path).digest != before


def test_broken_link_is_named_and_the_digest_still_follows_it(tmp_path):
    root = davis(tmp_path / "DAVIS", {"bear": 2, "camel": 2})
    before = find_videos(root).digest
    for path in ("JPEGImages/480p/bear/00001.jpg", "Annotations/480p/camel/00000.png"):
        (root / path).unlink()
        (root / path).symlink_to(root / "gone")
    found = find_videos(root)
    assert found.digest == find_videos(root).digest != before
    with pytest.raises(UserError, match=r"bear/00001\.jpg: cannot be read"):
        found.videos[0].table()
    with pytest.raises(UserError, match=r"camel/00000\.png: cannot be read"):
        found.videos[1].table()


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations"])
def test_videos_that_differ_only_between_their_ends_are_two(tmp_path, folder):
    davis(tmp_path, {"bear": 4}, resolution=".")
    for kind in ("JPEGImages", "Annotations"):
        shutil.copytree(tmp_path / kind / "bear", tmp_path / kind / "copy")
        shutil.copytree(tmp_path / kind / "bear", tmp_path / kind / "other")
        shutil.copytree(tmp_path / kind / "bear", tmp_path / kind / "other copy")
    for name in ("other", "other copy"):
        path = next((tmp_path / folder / name).glob("00002.*"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    repeats = {video.video_id: video.repeats.rpartition("/")[2] for video in find_videos(tmp_path).videos}
    assert repeats == {"bear": "", "copy": "bear", "other": "", "other copy": "other"}


def test_jpeg_with_an_orientation_is_turned_like_its_mask_and_that_is_noted(tmp_path):
    frame = np.zeros((24, 32, 3), np.uint8)
    frame[:12] = (250, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(frame).save(tmp_path / "images" / "a.jpg", exif=exif, quality=95)
    mask = np.zeros((32, 24), np.uint8)
    mask[:, 12:] = 1
    (tmp_path / "masks" / "a.png").write_bytes(encode_mask(mask))
    plain = write_frame(tmp_path / "images" / "b.jpg")
    write_mask(tmp_path / "masks" / "b.png")
    turned, kept = (video.table() for video in find_videos(tmp_path).videos)
    stored = turned.column("image")[0].as_py()
    assert Image.open(io.BytesIO(stored)).getexif().get(0x0112, 1) == 1
    shown = np.asarray(Image.open(io.BytesIO(stored)))
    assert shown.shape == (32, 24, 3)
    assert ((shown[..., 0] > 128) == (mask == 1)).mean() > 0.95
    assert turned.column("source")[0].as_py() == "images; turned as its EXIF orientation says"
    assert kept.column("image")[0].as_py() == plain
    assert kept.column("source")[0].as_py() == "images"
