"""BL30K read out of its tars."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import pytest
from trees import write_tree

from vosforge.data.layouts import check_md5, find_videos, tars_at
from vosforge.errors import UserError


def pack(tmp_path: Path, part: str, *videos: str, inside: str = "BL30K_a/BL30K", mode: str = "w") -> Path:
    tree = write_tree(tmp_path / part, *videos)
    tar = tmp_path / "BL30K" / f"{part}.tar"
    tar.parent.mkdir(exist_ok=True)
    with tarfile.open(tar, mode) as file:
        file.add(tree, inside)
    return tar


@pytest.mark.parametrize("inside", ["BL30K_a/BL30K", "BL30K", "."])
def test_videos_are_read_out_of_tars_with_their_bytes(tmp_path, inside):
    pack(tmp_path, "BL30K_a", "v1", "v2", inside=inside)
    pack(tmp_path, "BL30K_b", "v3", inside=inside)
    found = pickle.loads(pickle.dumps(find_videos(tmp_path / "BL30K")))
    assert (found.layout, found.kind, [v.video_id for v in found.videos]) == ("bl30k", "bl30k", ["v1", "v2", "v3"])
    assert found.reason == "JPEGImages/ and Annotations/ inside BL30K_a.tar, BL30K_b.tar"
    table = found.videos[1].table()
    for column, folder in (("image", "JPEGImages"), ("mask", "Annotations")):
        files = sorted((tmp_path / "BL30K_a" / folder / "v2").iterdir())
        assert table.column(column).to_pylist() == [path.read_bytes() for path in files]
    assert table.column("frame_id").to_pylist() == ["00000", "00001", "00002"]


def test_one_tar_is_a_root_too(tmp_path):
    assert len(find_videos(pack(tmp_path, "BL30K_a", "v1")).videos) == 1


def test_frames_and_masks_that_lack_each_other_are_left_out_and_counted(tmp_path):
    tree = write_tree(tmp_path / "BL30K_a", "v1", "v2")
    (tree / "Annotations" / "v1" / "00000.png").unlink()
    for path in (tree / "JPEGImages" / "v2").iterdir():
        path.unlink()
    tar = tmp_path / "BL30K_a.tar"
    with tarfile.open(tar, "w") as file:
        file.add(tree, "BL30K")
    found = find_videos(tar)
    assert [v.notes for v in found.videos] == [
        ("unequal sets left out: 1 frames without a mask, 0 masks without a frame",)
    ]
    assert [(v.video_id, "no frame that has a mask" in v.problem) for v in found.unusable] == [("v2", True)]


def test_damaged_file_in_a_tar_is_named(tmp_path):
    tar = pack(tmp_path, "BL30K_a", "v1", inside="BL30K")
    video = find_videos(tar).videos[0]
    content = bytearray(tar.read_bytes())
    content[video.frames[1].offset : video.frames[1].offset + 40] = bytes(40)
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"BL30K_a\.tar:BL30K/JPEGImages/v1/00001\.jpg: expected a JPEG"):
        video.table()


def test_compressed_cut_and_empty_tars_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected an uncompressed tar"):
        find_videos(pack(tmp_path, "BL30K_c", "v1", mode="w:gz"))
    tar = tmp_path / "none.tar"
    with tarfile.open(tar, "w") as file:
        file.add(write_tree(tmp_path / "tree", "v1"), "somewhere/else", filter=lambda member: None)
    with pytest.raises(UserError, match="found no frames"):
        find_videos(tar)


def test_digest_changes_with_a_tar(tmp_path):
    tar = pack(tmp_path, "BL30K_a", "v1")
    before = find_videos(tar).digest
    tar.touch()
    assert find_videos(tar).digest != before


def test_md5_of_tars_is_compared(tmp_path):
    tar = pack(tmp_path, "BL30K_a", "v1")
    pack(tmp_path, "BL30K_b", "v2")
    sums, heard = tmp_path / "sums.txt", []
    right = hashlib.md5(tar.read_bytes(), usedforsecurity=False).hexdigest()
    sums.write_text(f"{right}  BL30K_a.tar\n")
    assert check_md5(tars_at(tmp_path / "BL30K"), sums, heard.append) == ["BL30K_b.tar"]
    assert heard[-1] == tar.stat().st_size
    sums.write_text(f"{'0' * 32} *downloads/BL30K_a.tar\n")
    with pytest.raises(UserError, match=rf"BL30K_a\.tar: expected md5 {'0' * 32}, found {right}"):
        check_md5([tar], sums)
    sums.write_text("nothing of use\n")
    with pytest.raises(UserError, match=r"lines of `<md5>  <file name>` for BL30K_a\.tar"):
        check_md5([tar], sums)
