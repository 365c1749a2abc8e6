from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vosforge.clip import Clip
from vosforge.data.geometry import only_ids
from vosforge.data.image_files import decode_frame, encode_frame, encode_mask
from vosforge.data.layouts import static_videos
from vosforge.data.pseudo_presets import preset
from vosforge.data.shards import ShardSet
from vosforge.data.shards.writing import finish, write_shard
from vosforge.data.stills import Still, open_stills, pseudo_video_table
from vosforge.errors import UserError

PROGRAMS = Path(__file__).resolve().parents[2] / "datasets"
RED, GREY, BLUE = (230, 20, 20), (110, 110, 110), (20, 20, 230)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A red disc, object 1, beside a large blue field of void, on grey ground."""
    mask = cv2.circle(np.zeros((120, 160), np.uint8), (100, 60), 30, 1, -1)
    mask[:, :50] = 255
    frame = np.full((120, 160, 3), GREY, np.uint8)
    frame[mask == 1], frame[:, :50] = RED, BLUE
    return frame, mask


def folders(tmp_path: Path, count: int, mask: np.ndarray | None = None) -> tuple[Path, Path]:
    """Folders of equal pictures 00, 01, ... and of their masks."""
    images, masks = tmp_path / "photos", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    frame, usual = picture()
    for i in range(count):
        (images / f"{i:02d}.jpg").write_bytes(encode_frame(frame))
        (masks / f"{i:02d}.png").write_bytes(encode_mask(usual if mask is None else mask))
    return images, masks


def shown(table: pa.Table) -> set[str]:
    """Whether objects of a clip are red or blue."""
    found = set()
    for row in table.to_pylist():
        frame = decode_frame(row["image"], "frame").astype(int)
        ids = np.asarray(Image.open(io.BytesIO(row["mask"])))
        for k in row["objects"]:
            red, _, blue = frame[ids == k].mean(axis=0)
            found.add("red" if red > blue else "blue")
    return found


@pytest.mark.parametrize("name", ["steady", "stm-coco", "aot"])
@pytest.mark.parametrize("source", ["shards", "files"])
def test_void_of_images_becomes_no_object(name, source, tmp_path):
    images, masks = folders(tmp_path, 3)
    if source == "files":
        stills = open_stills(None, images, masks)
    else:
        part = tmp_path / "shards" / "part-00000.parquet"
        part.parent.mkdir()
        write_shard([video.table() for video in static_videos(images, masks, "photos")], [], part)
        finish(str(part.parent), "images", {"made": "by a test"}, [part.name])
        shards = ShardSet(str(part.parent))
        assert 255 in shards.read(shards.videos[0]).masks
        stills = open_stills(str(part.parent), None, None)
    assert stills.read(0).objects == [1]
    recipe = preset(name, frames=2, size=(96, 96), objects=9)
    for copy in range(4):
        assert shown(pseudo_video_table(stills, recipe, Still(0, copy, 0))) == {"red"}


def test_255_alone_is_the_object_of_a_file(tmp_path):
    _, mask = picture()
    images, masks = folders(tmp_path, 1, np.where(mask == 1, 255, 0).astype(np.uint8))
    clip = open_stills(None, images, masks).read(0)
    assert (clip.masks[0] == (mask == 1)).all()


def test_object_255_of_a_shard_stays(tmp_path, build_shards):
    frame, mask = picture()
    shards = build_shards(tmp_path, [Clip("a", frame[None], mask[None])], kind="images")
    assert open_stills(shards.uri, None, None).read(0).objects == [1, 255]


def test_only_the_given_ids_are_kept():
    masks = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert set(np.unique(only_ids(masks, [3, 200]))) == {0, 3, 200}
    assert not only_ids(masks, []).any()


def test_bad_pictures_are_left_out_named_and_never_drawn(tmp_path):
    images, masks = folders(tmp_path, 40)
    (images / "03.jpg").write_bytes(b"no picture")
    (images / "05.jpg").unlink()
    (images / "05.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (masks / "07.png").write_bytes(encode_mask(np.zeros((120, 160), np.uint8)))
    (masks / "09.png").write_bytes(encode_mask(picture()[1][:50]))
    stills = open_stills(None, images, masks)
    assert len(stills) == len(stills.names) == 36
    assert set(stills.names).isdisjoint({"03", "05", "07", "09"})
    for name, reason in zip(("photos/03.jpg", "photos/05.jpg", "07.png", "09.png"), stills.skipped, strict=True):
        assert name in reason
    recipe = preset("steady", frames=1, size=(96, 96))
    assert all(len(pseudo_video_table(stills, recipe, item)) == 1 for item in stills.items(1, 0))


def test_too_many_bad_pictures_are_refused_and_one_never_is(tmp_path):
    images, masks = folders(tmp_path, 6)
    (images / "02.jpg").write_bytes(b"no picture")
    assert len(open_stills(None, images, masks, max_rejects=0.0)) == 5
    (images / "04.jpg").write_bytes(b"nor this")
    with pytest.raises(
        UserError, match=r"photos: 2 of 6 pictures are of no use, more than --max-rejects 0\.1.*02\.jpg"
    ):
        open_stills(None, images, masks)
    assert len(open_stills(None, images, masks, max_rejects=0.5)) == 4


def test_folder_whose_only_picture_is_bad_is_refused(tmp_path):
    images, masks = folders(tmp_path, 1)
    (images / "00.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 1 pictures are of no use"):
        open_stills(None, images, masks, max_rejects=1.0)


def test_clips_are_named_after_their_image(tmp_path, build_shards):
    frame, mask = picture()
    shards = build_shards(tmp_path, [Clip("beach", frame[None], mask[None])], kind="images")
    stills = open_stills(shards.uri, None, None)
    items = stills.items(3, 0)
    assert [item.video_id for item in items] == ["beach-00000", "beach-00001", "beach-00002"]
    table = pseudo_video_table(stills, preset("steady", size=(96, 96)), items[2])
    assert set(table.column("video_id").to_pylist()) == {"beach-00002"}


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        ("pseudo_video.py", ["--data", "nowhere", "--clips-per-image", "0"], "--clips-per-image: expected at least 1"),
        ("pseudo_video.py", ["--data", "nowhere", "--max-rejects", "2"], "--max-rejects: expected a share from 0 to 1"),
        ("pseudo_video.py", ["--data", "nowhere", "--flip", "1.5"], "flip must be a number in 0..1, found 1.5"),
        ("bl30k.py", ["--videos", "0"], "--videos: expected at least 1, found 0"),
        ("bl30k.py", ["--videos", "1", "--quality", "101"], "--quality: expected 1 to 100, found 101"),
    ],
)
def test_programs_refuse_flags_out_of_range_by_name(program, flags, message, tmp_path):
    command = [sys.executable, PROGRAMS / program, "--out", tmp_path / "out", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
