from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from vosforge.errors import UserError
from vosforge.evaluation.predictions import open_masks, read_masks
from vosforge.pictures import davis_palette


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def read(masks, clip, known=(1,), needed=None) -> np.ndarray:
    return read_masks(masks, clip.name, clip.frame_ids, clip.size, known, needed)


def test_folder_zip_and_shards_give_the_same_masks(make_clip, write_masks, zip_folder, build_shards, tmp_path):
    clips = [make_clip("a"), make_clip("b", objects=2)]
    folder = write_masks(tmp_path / "masks", *clips)
    build_shards(tmp_path / "shards", clips)
    for uri in (folder, zip_folder(folder, tmp_path / "masks.zip"), tmp_path / "shards"):
        masks = pickle.loads(pickle.dumps(open_masks(str(uri))))
        assert masks.videos() == ["a", "b"]
        assert masks.note == ""
        for clip in clips:
            assert masks.frames(clip.name) == list(clip.frame_ids)
            assert np.array_equal(read(masks, clip, known=(1, 2)), clip.masks)


def test_top_folder_of_a_zip_is_looked_through_and_told(make_clip, write_masks, zip_folder, tmp_path):
    clip = make_clip("a")
    packed = zip_folder(write_masks(tmp_path / "m", clip), tmp_path / "m.zip", top="Annotations")
    masks = open_masks(str(packed))
    assert "top folder Annotations/" in masks.note
    assert np.array_equal(read(masks, clip), clip.masks)


def test_shadow_files_of_macos_archives_are_not_masks(make_clip, write_masks, zip_folder, tmp_path):
    clip = make_clip("a")
    folder = write_masks(tmp_path / "m", clip)
    (folder / "__MACOSX" / "a").mkdir(parents=True)
    (folder / "__MACOSX" / "a" / "._00000.png").write_bytes(b"shadow")
    assert open_masks(str(zip_folder(folder, tmp_path / "m.zip"))).videos() == ["a"]


def test_masks_with_a_capital_ending_are_read(make_clip, write_masks, tmp_path):
    clip = make_clip("a")
    folder = write_masks(tmp_path / "m", clip)
    (folder / "a" / "00001.png").rename(folder / "a" / "00001.PNG")
    (folder / "a" / "._00001.png").write_bytes(b"shadow")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.mkdir("a/folder.png/")
        for file in folder.glob("a/0*"):
            archive.write(file, file.relative_to(folder))
    for uri in (folder, tmp_path / "m.zip"):
        masks = open_masks(str(uri))
        assert masks.frames("a") == list(clip.frame_ids)
        assert masks.where("a", "00001").endswith("a/00001.PNG")
        assert np.array_equal(read(masks, clip), clip.masks)


def test_mask_that_cannot_be_opened_is_named(make_clip, write_masks, zip_folder, tmp_path, monkeypatch):
    clip = make_clip("a")
    folder = write_masks(tmp_path / "m", clip)
    packed = zip_folder(folder, tmp_path / "m.zip")
    (folder / "a" / "00002.png").unlink()
    (folder / "a" / "00002.png").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"a/00002\.png: cannot be read \(No such file or directory\)$"):
        read(open_masks(str(folder)), clip)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for uri in (folder, packed):
        with pytest.raises(UserError, match=r"a/00001\.png: cannot be read \(Image size .* exceeds limit"):
            read(open_masks(str(uri)), clip)


def test_every_missing_frame_is_named_in_one_error(make_clip, write_masks, tmp_path):
    clip = make_clip("a")
    folder = write_masks(tmp_path, clip)
    for frame in ("00001", "00003"):
        (folder / "a" / f"{frame}.png").unlink()
    with pytest.raises(UserError) as error:
        read(open_masks(str(folder)), clip)
    assert "a/00001.png: no predicted mask for this frame; " in str(error.value)
    assert "a/00003.png: no predicted mask for this frame" in str(error.value)


def test_frames_that_are_not_looked_at_may_be_missing(make_clip, write_masks, tmp_path):
    clip = make_clip("a")
    folder = write_masks(tmp_path, clip)
    for frame in ("00000", "00004"):
        (folder / "a" / f"{frame}.png").unlink()
    found = read(open_masks(str(folder)), clip, needed=np.array([False, True, True, True, False]))
    assert np.array_equal(found[1:4], clip.masks[1:4])
    assert not found[[0, 4]].any()


def coloured(mask: np.ndarray) -> bytes:
    return png(davis_palette()[mask])


def anti_aliased(mask: np.ndarray) -> bytes:
    grey = np.repeat(np.linspace(0, 254, mask.shape[1]).astype(np.uint8)[None], len(mask), 0)
    return png(grey)


BAD_FILES = {
    "another size": (lambda mask: png(mask[:20]), r"expected the frame's size \(60, 80\), found \(20, 80\)"),
    "unknown id": (lambda mask: png(np.where(mask, 7, 0).astype(np.uint8)), r"expected ids of \[1\], found id 7"),
    "RGB": (coloured, "found RGB colours"),
    "anti-aliased": (anti_aliased, "anti-aliased mask"),
    "few anti-aliased levels": (lambda mask: png(mask * 9 + np.arange(80, dtype=np.uint8) % 8), "anti-aliased"),
    "no image": (lambda mask: b"nothing", "found 7 bytes that do not decode"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_mask_is_refused_by_the_name_of_its_file(case, make_clip, write_masks, tmp_path):
    clip = make_clip("a")
    folder = write_masks(tmp_path, clip)
    make, message = BAD_FILES[case]
    (folder / "a" / "00002.png").write_bytes(make(clip.masks[2]))
    with pytest.raises(UserError, match=rf"a/00002\.png: .*{message}"):
        read(open_masks(str(folder)), clip)


def test_many_bad_files_are_counted(make_clip, write_masks, tmp_path):
    clip = make_clip("a", frames=9)
    folder = write_masks(tmp_path, clip, masks=clip.masks[:, :30])
    with pytest.raises(UserError, match=r"00003\.png: .*; and 5 more$"):
        read(open_masks(str(folder)), clip)


def test_video_without_masks_is_named(make_clip, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"/a: no predicted masks of this video"):
        read(open_masks(str(tmp_path)), make_clip("a"))


def test_what_holds_no_masks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder, zip or shards"):
        open_masks(str(tmp_path / "nowhere"))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"text\.zip: expected a zip"):
        open_masks(str(tmp_path / "text.zip"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_entry_of_a_zip_is_named(method, make_clip, write_masks, tmp_path):
    clip = make_clip("a")
    folder, packed = write_masks(tmp_path / "m", clip), tmp_path / "m.zip"
    with zipfile.ZipFile(packed, "w", method) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    data = bytearray(packed.read_bytes())
    start = data.index(b"a/00000.png") + len(b"a/00000.png")
    data[start + 20 : start + 60] = bytes(255 - b for b in data[start + 20 : start + 60])
    packed.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"m\.zip:a/00000\.png: damaged in the zip"):
        read(open_masks(str(packed)), clip)
