from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation.truth import Truth


def test_layout_shards_folder_and_zip_give_the_same_truth(
    make_clip, write_davis, write_masks, zip_folder, build_shards, tmp_path
):
    clips = [make_clip("a"), make_clip("b", objects=2)]
    root, folder = write_davis(tmp_path / "set", *clips), write_masks(tmp_path / "masks", *clips)
    build_shards(tmp_path / "shards", clips)
    for uri, frames in (
        (root, True),
        (tmp_path / "shards", True),
        (folder, False),
        (zip_folder(folder, tmp_path / "m.zip"), False),
    ):
        truth = pickle.loads(pickle.dumps(Truth(str(uri))))
        assert (truth.name, truth.names, truth.has_frames) == (uri.name, ["a", "b"], frames)
        for i, clip in enumerate(clips):
            found = truth.annotated(i)
            assert np.array_equal(found.masks, clip.masks)
            assert found.frame_ids == found.every_frame == clip.frame_ids
            (picture,) = truth.pictures(i, ["00002"])
            assert (picture is not None) == frames


def test_frames_without_truth_are_known_and_not_annotated(make_clip, write_davis, tmp_path):
    clip = make_clip("a")
    sparse = Clip("a", clip.frames, clip.masks, np.array([True, False, True, False, True]))
    found = Truth(str(write_davis(tmp_path, sparse))).annotated(0)
    assert found.frame_ids == ("00000", "00002", "00004")
    assert found.every_frame == clip.frame_ids


def test_masks_alone_get_frames_from_another_folder(make_clip, write_davis, write_masks, tmp_path):
    clip = make_clip("a")
    root, folder = write_davis(tmp_path / "set", clip), write_masks(tmp_path / "masks", clip)
    (folder / "a" / "00003.png").unlink()
    with pytest.raises(UserError, match="masks and no frames to segment"):
        Truth(str(folder)).clip(0)
    truth = Truth(str(folder), frames=root / "JPEGImages")
    assert truth.has_frames
    assert truth.clip(0).annotated.tolist() == [True, True, True, False, True]
    (root / "JPEGImages" / "a" / "00002.jpg").unlink()
    with pytest.raises(UserError, match=r"a: no frame 00002, for which there is a mask"):
        Truth(str(folder), frames=root / "JPEGImages")


def test_layout_takes_frames_of_another_folder_too(make_clip, write_davis, tmp_path):
    clip = make_clip("a")
    sparse = Clip("a", clip.frames[::2], clip.masks[::2], frame_ids=clip.frame_ids[::2])
    root, dense = write_davis(tmp_path / "sparse", sparse), write_davis(tmp_path / "dense", clip)
    found = Truth(str(root), frames=dense / "JPEGImages").clip(0)
    assert found.frame_ids == clip.frame_ids
    assert found.annotated.tolist() == [True, False, True, False, True]


def test_videos_that_the_files_rule_out_are_errors_in_their_place(make_clip, write_davis, tmp_path):
    root = write_davis(tmp_path / "set", *(make_clip(name) for name in ("a", "bb", "ccc")))
    (root / "JPEGImages" / "empty").mkdir()
    shutil.rmtree(root / "JPEGImages" / "bb")
    truth = Truth(str(root))
    assert set(truth.names) == {"a", "bb", "ccc", "empty"}
    found = dict(zip(truth.names, truth.clips(), strict=True))
    assert {name for name, clip in found.items() if isinstance(clip, Clip)} == {"a", "ccc"}
    for name in ("bb", "empty"):
        assert f"JPEGImages/{name}: no frames" in str(found[name])
        with pytest.raises(UserError, match="no frames"):
            truth.annotated(truth.names.index(name))


def test_video_that_lacks_a_frame_of_another_folder_is_an_error_in_its_place(
    make_clip, write_davis, write_masks, tmp_path
):
    clips = [make_clip(name) for name in ("a", "bb", "ccc")]
    root, folder = write_davis(tmp_path / "set", *clips), write_masks(tmp_path / "masks", *clips)
    (root / "JPEGImages" / "a" / "00002.jpg").unlink()
    shutil.rmtree(root / "JPEGImages" / "ccc")
    truth = Truth(str(folder), frames=root / "JPEGImages")
    first, second, third = truth.clips()
    assert "a: no frame 00002, for which there is a mask" in str(first)
    assert (second.masks == clips[1].masks).all()
    assert "ccc: no frame 00000" in str(third)


def test_file_that_cannot_be_opened_is_an_error_that_names_it(make_clip, write_davis, tmp_path):
    root = write_davis(tmp_path, make_clip("a"), make_clip("bb"))
    for name in ("Annotations/a/00001.png", "JPEGImages/bb/00001.jpg"):
        (root / name).unlink()
        (root / name).symlink_to(root / "gone")
    truth = Truth(str(root))
    with pytest.raises(UserError, match=r"Annotations/a/00001\.png: cannot be read \(No such file"):
        truth.annotated(0)
    with pytest.raises(UserError, match=r"JPEGImages/bb/00001\.jpg: cannot be read \(No such file"):
        truth.clip(1)
    with pytest.raises(UserError, match="cannot be read"):
        truth.pictures(1, ["00001"])


def test_limit_below_one_is_refused(make_clip, write_masks, tmp_path):
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"limit: expected at least 1 video, found {limit}"):
            Truth(str(write_masks(tmp_path, make_clip("a"))), limit=limit)


def test_meta_of_the_folder_is_read(make_clip, write_davis, tmp_path):
    root = write_davis(tmp_path, make_clip("a"))
    assert Truth(str(root)).meta is None
    videos = {"a": {"objects": {"1": {"category": "cat", "frames": ["00000"]}}}}
    (root / "meta.json").write_text(json.dumps({"videos": videos}))
    assert Truth(str(root)).meta == videos


def test_truth_that_is_none_is_refused(make_clip, write_masks, zip_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for wrong in ("nowhere", "empty"):
        with pytest.raises(UserError, match=wrong):
            Truth(str(tmp_path / wrong))
    folder = write_masks(tmp_path / "masks", make_clip("a"))
    with pytest.raises(UserError, match="a split needs a folder with ImageSets"):
        Truth(str(folder), split="val")
    packed = zip_folder(folder, tmp_path / "m.zip")
    with pytest.raises(UserError, match=r"m\.zip: .*a truth that is a folder; unpack it"):
        Truth(str(packed), frames=folder)


def test_masks_of_two_sizes_in_one_video_are_named(make_clip, write_masks, tmp_path):
    clip = make_clip("a")
    folder = write_masks(tmp_path, clip)
    small = Clip("a", clip.frames[:1, :30], clip.masks[:1, :30], frame_ids=("00003",))
    write_masks(tmp_path, small)
    with pytest.raises(UserError, match=r"a/00003\.png: expected a mask of \(60, 80\) like the first"):
        Truth(str(folder)).annotated(0)
