"""Static sets, and when pictures in folders are single images rather than videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trees import picture, png, put, square, write_frame, write_mask, write_video

from vosforge.data.image_files import encode_frame
from vosforge.data.layouts import find_videos
from vosforge.errors import UserError


def write_pair(images: Path, masks: Path, name: str, seed: int = 0, size: tuple[int, int] = (24, 32)) -> None:
    write_frame(images / f"{name}.jpg", seed=seed, size=size)
    write_mask(masks / f"{name}.png", size=size)


def ids(root: Path, **settings: object) -> list[str]:
    found = find_videos(root, **settings)
    assert (found.layout, found.kind) == ("static", "images")
    assert all(len(video.frames) == len(video.masks) == 1 for video in found.videos)
    return [video.video_id for video in found.videos]


@pytest.mark.parametrize(
    "folders",
    [
        ("Images", "Masks"),
        ("DUTS-TR-Image", "DUTS-TR-Mask"),
        ("images", "ground_truth_mask"),
        ("Imgs", "GT"),
        ("HRSOD_train", "HRSOD_train_mask"),
        ("JPEGImages", "SegmentationObject"),
    ],
    ids="/".join,
)
def test_two_folders_are_recognised_by_their_names(tmp_path, folders):
    for i, name in enumerate(("b", "a")):
        write_pair(tmp_path / folders[0], tmp_path / folders[1], name, seed=i)
    assert ids(tmp_path) == ["a", "b"]
    assert find_videos(tmp_path).reason == f"images in {folders[0]}/ and masks in {folders[1]}/"


def test_images_beside_their_masks_are_recognised(tmp_path):
    for i, name in enumerate(("0001", "0002")):
        write_pair(tmp_path, tmp_path, name, seed=i)
    assert ids(tmp_path) == ["0001", "0002"]
    assert find_videos(tmp_path).reason == "images with masks of the same name beside them in it"


def test_folders_of_classes_keep_the_class_in_the_name(tmp_path):
    for i, name in enumerate(("abacus", "cat", "dog")):
        write_pair(tmp_path / "fss" / name, tmp_path / "fss" / name, "1", seed=i)
    assert ids(tmp_path / "fss") == ["abacus-1", "cat-1", "dog-1"]
    assert find_videos(tmp_path / "fss").reason == "folders of images with masks of the same name beside them"


def test_sets_beside_each_other_are_one(tmp_path):
    write_pair(tmp_path / "fss" / "cat", tmp_path / "fss" / "cat", "1")
    write_pair(tmp_path / "DUTS-TE" / "DUTS-TE-Image", tmp_path / "DUTS-TE" / "DUTS-TE-Mask", "1", seed=1)
    write_pair(tmp_path / "ecssd", tmp_path / "ecssd", "1", seed=2)
    assert ids(tmp_path) == ["DUTS-TE-1", "ecssd-1", "fss-cat-1"]


@pytest.mark.parametrize(("image", "mask"), [("a_im.png", "a_gt.png"), ("a.png", "a_mask.png"), ("a.jpg", "a-gt.png")])
def test_endings_tell_image_and_mask_of_one_folder_apart(tmp_path, image, mask):
    put(tmp_path / image, png(picture()) if image.endswith("png") else encode_frame(picture()))
    put(tmp_path / mask, png(square()))
    assert ids(tmp_path) == ["a"]
    assert find_videos(tmp_path).videos[0].read().objects == [1]


def test_photographs_under_davis_names_are_known_by_their_sizes(tmp_path):
    for i in range(6):
        places = (tmp_path / kind / "ECSSD" for kind in ("JPEGImages", "Annotations"))
        write_pair(*places, f"{i:04d}", seed=i, size=(20 + i, 30))
    assert ids(tmp_path)[:2] == ["ECSSD-0000", "ECSSD-0001"]


def test_frames_in_sequence_under_davis_names_are_one_video(tmp_path):
    write_video(tmp_path / "dogs" / "JPEGImages", tmp_path / "dogs" / "Annotations", count=4, step=5)
    found = find_videos(tmp_path / "dogs")
    assert (found.layout, found.kind, [v.video_id for v in found.videos]) == ("pair", "videos", ["dogs"])
    assert "--layout static" in found.reason
    assert len(ids(tmp_path / "dogs", layout="static")) == 4


def test_pictures_without_a_partner_are_told(tmp_path):
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    write_frame(tmp_path / "images" / "b.jpg")
    write_mask(tmp_path / "masks" / "c.png")
    assert find_videos(tmp_path).notes == [
        f"{tmp_path}/images: no mask for b.jpg",
        f"{tmp_path}/masks: no image for c.png",
    ]


def test_two_images_of_one_name_are_named_and_the_second_left_out(tmp_path):
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    put(tmp_path / "images" / "a.png", png(picture(1)))
    found = find_videos(tmp_path)
    assert [video.frames[0].name for video in found.videos] == ["a.jpg"]
    (second,) = found.unusable
    assert second.problem == f"{tmp_path}/images/a.png: the id a is that of {tmp_path}/images/a.jpg too"


def test_masks_kept_as_jpeg_are_named_as_anti_aliased(tmp_path):
    write_frame(tmp_path / "images" / "a.jpg", size=(64, 64))
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 20
    soft = np.repeat((disc * 255).astype(np.uint8)[..., None], 3, axis=2)
    put(tmp_path / "masks" / "a.jpg", encode_frame(soft, quality=40))
    with pytest.raises(UserError, match=r"masks/a\.jpg: expected object ids, found \d+ grey levels"):
        find_videos(tmp_path).videos[0].table()


def test_split_of_a_static_set_is_refused(tmp_path):
    write_pair(tmp_path / "images", tmp_path / "masks", "a")
    with pytest.raises(UserError, match="no split 'val': the layout static has no lists"):
        find_videos(tmp_path, split="val")
