"""Folders of videos: DAVIS, YouTube-VOS, MOSE, BL30K as folders, SA-V."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trees import SIZE, png, square, write_frame, write_mask, write_tree, write_video

from vosforge.data.layouts import find_videos
from vosforge.errors import UserError


def ids(root: Path, **settings: object) -> list[str]:
    return [video.video_id for video in find_videos(root, **settings).videos]


def meta(root: Path, *videos: str) -> None:
    objects = {"1": {"category": "cat", "frames": ["00000"]}}
    (root / "meta.json").write_text(json.dumps({"videos": {video: {"objects": objects} for video in videos}}))


def test_480p_goes_before_full_resolution_and_that_is_told(tmp_path):
    write_tree(tmp_path, "bear", resolution="480p")
    write_tree(tmp_path, "bear", resolution="Full-Resolution", count=2)
    found = find_videos(tmp_path)
    assert found.reason == "folders of frames under JPEGImages/480p, masks under Annotations/480p"
    assert found.notes == ["of 480p, Full-Resolution the first is taken; --frames and --masks choose others"]
    assert len(found.videos[0].frames) == 3


def test_full_resolution_alone_is_davis(tmp_path):
    found = find_videos(write_tree(tmp_path, "bear", resolution="Full-Resolution"))
    assert (found.layout, found.videos[0].frames[0].parent.parent.name) == ("davis", "Full-Resolution")


def test_lists_of_davis_2016_name_frames_and_are_read_by_video(tmp_path):
    root = write_tree(tmp_path, "bear", "camel", "dog", resolution="480p")
    lines = [
        f"/JPEGImages/480p/{video}/{t:05d}.jpg /Annotations/480p/{video}/{t:05d}.png"
        for video in ("dog", "bear")
        for t in range(3)
    ]
    (root / "ImageSets" / "480p").mkdir(parents=True)
    (root / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines))
    assert ids(root, split="val") == ["dog", "bear"]


def test_davis_in_folders_of_year_and_split_wants_one_chosen(tmp_path):
    write_tree(tmp_path / "2016", "bear", resolution="480p")
    write_tree(tmp_path / "2017" / "trainval", "camel", resolution="480p")
    (tmp_path / "2017" / "test-dev").mkdir()
    with pytest.raises(UserError, match=r"no split 'val'; there are: 2016, 2017/trainval"):
        find_videos(tmp_path, split="val")
    assert ids(tmp_path / "2017") == ["camel"]


def test_split_finds_the_folder_that_lists_it(tmp_path):
    for folder, video in (("trainval", "bear"), ("test-dev", "camel")):
        root = write_tree(tmp_path / folder, video, resolution="480p")
        (root / "ImageSets" / "2017").mkdir(parents=True)
        (root / "ImageSets" / "2017" / f"{'val' if folder == 'trainval' else folder}.txt").write_text(video)
    assert ids(tmp_path, split="val") == ["bear"]
    assert ids(tmp_path, split="test-dev") == ["camel"]
    with pytest.raises(UserError, match="holds several sets: test-dev, trainval; choose one with --split"):
        find_videos(tmp_path)


def test_youtube_is_recognised_by_its_meta_file_and_split_by_folder(tmp_path):
    for split, video in (("train", "aa"), ("valid", "bb")):
        write_tree(tmp_path / split, video, step=5)
        meta(tmp_path / split, video)
    found = find_videos(tmp_path, split="train")
    assert (found.layout, found.kind, [v.video_id for v in found.videos]) == ("youtube", "videos", ["aa"])
    assert found.reason == "folders of frames under train/JPEGImages, meta.json beside them"
    assert found.videos[0].frames[1].stem == "00005"
    with pytest.raises(UserError, match="holds several sets: train, valid"):
        find_videos(tmp_path)
    with pytest.raises(UserError, match="no split 'test'; there are: train, valid"):
        find_videos(tmp_path, split="test")


def test_video_of_the_meta_file_without_frames_is_named(tmp_path):
    write_tree(tmp_path, "aa")
    meta(tmp_path, "aa", "cc")
    found = find_videos(tmp_path)
    assert [v.video_id for v in found.videos] == ["aa"]
    assert [(v.video_id, v.problem) for v in found.unusable] == [("cc", f"{tmp_path}/JPEGImages/cc: no frames")]


def test_damaged_meta_file_is_named(tmp_path):
    write_tree(tmp_path, "aa")
    (tmp_path / "meta.json").write_text("[]")
    with pytest.raises(UserError, match=r"meta\.json: expected"):
        find_videos(tmp_path)


@pytest.mark.parametrize("place", ["valid_all_frames", "all_frames/valid_all_frames"])
def test_all_frames_of_youtube_take_the_masks_of_their_split(tmp_path, place):
    write_tree(tmp_path / "valid", "bb", count=2, step=5, annotated=[0])
    meta(tmp_path / "valid", "bb")
    write_video(tmp_path / place / "JPEGImages" / "bb", None, count=6, seed=1)
    video = find_videos(tmp_path, split="valid_all_frames").videos[0]
    assert [mask is not None for mask in video.masks] == [True] + [False] * 5
    assert len(find_videos(tmp_path, split="valid").videos[0].frames) == 2


def test_mose_is_recognised_by_name(tmp_path):
    write_tree(tmp_path / "MOSE" / "train", "0a1b")
    found = find_videos(tmp_path / "MOSE")
    assert (found.layout, found.kind, found.videos[0].dataset) == ("mose", "videos", "MOSE")


def test_plain_folders_of_videos_need_no_name(tmp_path):
    write_tree(tmp_path / "burst", "a")
    assert find_videos(tmp_path / "burst").layout == "folders"


def write_objects(root: Path, video: str, objects: list[str], top: int = 4) -> None:
    write_video(root / "JPEGImages_24fps" / video, None, count=5)
    for k, name in enumerate(objects):
        for t in (0, 4):
            path = root / "Annotations_6fps" / video / name / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(square(255, top=top + 3 * k), "1"))


def test_objects_in_folders_of_their_own_become_one_mask_with_the_lowest_id_on_top(tmp_path):
    write_objects(tmp_path, "v", ["000", "001"])
    found = find_videos(tmp_path)
    assert (found.layout, found.kind) == ("sav", "videos")
    clip = found.videos[0].read()
    assert clip.annotated.tolist() == [True, False, False, False, True]
    expected = np.where(square(1) > 0, 1, square(2, top=7))
    assert (clip.masks[0] == expected).all()
    assert found.videos[0].notes == ("objects 000, 001 are numbered from 1",)
    assert found.videos[0].table().num_rows == 5


def test_objects_in_folders_keep_ids_that_can_be_ids(tmp_path):
    write_objects(tmp_path, "v", ["2", "10"])
    assert find_videos(tmp_path).videos[0].read().objects == [2, 10]
    assert find_videos(tmp_path).videos[0].notes == ()


def test_anti_aliased_object_is_named_or_repaired(tmp_path):
    write_objects(tmp_path, "v", ["1", "2"])
    soft = square(255)
    soft[3, 4:10] = 90
    path = tmp_path / "Annotations_6fps" / "v" / "2" / "00004.png"
    path.write_bytes(png(soft))
    video = find_videos(tmp_path).videos[0]
    with pytest.raises(UserError, match=r"v/2/00004\.png: expected object ids, found 3 grey levels \(90\)"):
        video.table()
    source = replace(video, repair=True).table().column("source")[0].as_py()
    assert source == "v; object 2: 1 masks repaired, 6 pixels set to the nearest id"


@pytest.mark.parametrize("inside", [".", "BL30K_b", "BL30K_b/BL30K"])
def test_bl30k_is_recognised_merged_and_nested(tmp_path, inside):
    write_tree(tmp_path / "BL30K" / inside, "v1", "v2")
    found = find_videos(tmp_path / "BL30K")
    assert (found.layout, found.kind, [v.video_id for v in found.videos]) == ("bl30k", "bl30k", ["v1", "v2"])


def test_parts_of_bl30k_are_put_together_and_double_videos_named(tmp_path):
    write_tree(tmp_path / "BL30K_a" / "BL30K", "v1", "v2")
    write_tree(tmp_path / "BL30K_b", "v2", "v3")
    found = find_videos(tmp_path)
    assert [v.video_id for v in found.videos] == ["v1", "v2", "v3"]
    (double,) = found.unusable
    first, second = f"{tmp_path}/BL30K_a/BL30K/JPEGImages/v2", f"{tmp_path}/BL30K_b/JPEGImages/v2"
    assert double.problem == f"{second}: the id v2 is that of {first} too"


def test_bl30k_keeps_frames_that_have_masks_and_their_bytes(tmp_path):
    root = write_tree(tmp_path / "BL30K", "v1", count=4)
    (root / "Annotations" / "v1" / "00001.png").unlink()
    (root / "JPEGImages" / "v1" / "00003.jpg").unlink()
    video = find_videos(root).videos[0]
    assert [path.stem for path in video.frames] == ["00000", "00002"]
    assert video.notes == ("unequal sets left out: 1 frames without a mask, 1 masks without a frame",)
    table = video.table()
    for column, folder, suffix in (("image", "JPEGImages", "jpg"), ("mask", "Annotations", "png")):
        files = [(root / folder / "v1" / f"{name}.{suffix}").read_bytes() for name in ("00000", "00002")]
        assert table.column(column).to_pylist() == files


def test_mask_without_a_frame_is_a_problem_elsewhere(tmp_path):
    root = write_tree(tmp_path, "bear")
    write_mask(root / "Annotations" / "bear" / "00007.png")
    with pytest.raises(UserError, match=r"Annotations/bear: masks without a frame: 00007"):
        find_videos(root).videos[0].table()


def test_masks_of_a_video_without_frames_are_named(tmp_path):
    root = write_tree(tmp_path, "bear")
    write_mask(root / "Annotations" / "camel" / "00000.png")
    (lost,) = find_videos(root).unusable
    assert lost.problem == f"{root}/JPEGImages/camel: no frames for the masks in {root}/Annotations/camel"


def test_frames_missing_from_an_even_count_are_noted(tmp_path):
    root = write_tree(tmp_path, "bear", count=12)
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (root / folder / "bear" / f"00005.{suffix}").unlink()
    assert find_videos(root).videos[0].notes == ("frames are missing after 4",)


def test_two_frames_of_one_name_are_a_problem(tmp_path):
    root = write_tree(tmp_path, "bear")
    write_frame(root / "JPEGImages" / "bear" / "00001.png")
    with pytest.raises(UserError, match=r"two frames of one name: 00001\.jpg and 00001\.png"):
        find_videos(root).videos[0].table()


def test_video_under_two_names_is_a_problem_of_the_second(tmp_path):
    for name in ("bear", "copy"):
        write_video(tmp_path / "JPEGImages" / name, tmp_path / "Annotations" / name)
    first, second = find_videos(tmp_path).videos
    assert not first.problem
    assert second.repeats.endswith(f"copy: the same frames and masks as {tmp_path}/JPEGImages/bear")


def test_video_without_any_mask_is_a_problem(tmp_path):
    write_tree(tmp_path, "bear", annotated=[])
    with pytest.raises(UserError, match="JPEGImages/bear: no frame has a mask"):
        find_videos(tmp_path).videos[0].table()


def test_void_is_kept_in_masks_and_is_no_object_of_the_index(tmp_path):
    root = write_tree(tmp_path, "bear")
    mask = square(2)
    mask[15:, :] = 255
    (root / "Annotations" / "bear" / "00001.png").write_bytes(png(mask))
    table = find_videos(root).videos[0].table()
    assert table.column("objects").to_pylist() == [[2], [2], [2]]
    assert [len(boxes) for boxes in table.column("boxes").to_pylist()] == [4, 4, 4]
    assert table.column("areas").to_pylist() == [[36], [36], [36]]
    assert table.column("source")[0].as_py() == "bear; void (255) in 1 masks; gaps in ids: 2"
    assert find_videos(root).videos[0].read().masks[1].max() == 255


def test_digest_follows_masks_drawn_from_object_folders(tmp_path):
    write_objects(tmp_path, "v", ["1", "2"])
    before = find_videos(tmp_path).digest
    (tmp_path / "Annotations_6fps" / "v" / "2" / "00004.png").write_bytes(png(np.zeros(SIZE, np.uint8)))
    assert find_videos(tmp_path).digest != before
