from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from vosforge.clip import Clip
from vosforge.data.image_files import encode_frame
from vosforge.data.shards import SCHEMA_VERSION, ShardSet, clip_table, finish, write_shard
from vosforge.errors import UserError

PART = "part-00000.parquet"


def moving_squares(name: str, frames: int, seed: int = 0) -> Clip:
    """Object 2 in every frame, object 9 from frame 2 on."""
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 40, 60, 3), dtype=np.uint8)
    masks = np.zeros((frames, 40, 60), np.uint8)
    for t in range(frames):
        masks[t, 2:12, t : t + 10] = 2
        if t >= 2:
            masks[t, 20:25, 30 : 34 + t] = 9
    return Clip(name, np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in noise]), masks)


def test_videos_come_back_with_exact_masks_and_nearly_exact_frames(tmp_path, build_shards):
    clips = [moving_squares("b", 5), moving_squares("a", 3, seed=1)]
    shards = build_shards(tmp_path / "set", clips)
    assert [video.video_id for video in shards.videos] == ["b", "a"]
    for video, clip in zip(shards.videos, clips, strict=True):
        back = shards.read(video)
        assert (back.name, back.frame_ids, video.size) == (clip.name, clip.frame_ids, (40, 60))
        assert (back.masks == clip.masks).all()
        assert np.abs(back.frames.astype(int) - clip.frames).mean() < 4


def test_index_knows_areas_and_first_frames(tmp_path, build_shards):
    clip = moving_squares("a", 4)
    video = build_shards(tmp_path, [moving_squares("z", 2), clip]).videos[1]
    assert video.objects.tolist() == [2, 9]
    assert video.first_frames.tolist() == [0, 2]
    assert video.areas.tolist() == [[(m == 2).sum(), (m == 9).sum()] for m in clip.masks]
    assert (video.dataset, video.file, video.first_row) == ("tiny", PART, 2)


def test_frames_are_read_in_the_order_asked(tmp_path, build_shards):
    clip = moving_squares("a", 6)
    shards = build_shards(tmp_path, [moving_squares("z", 3), clip])
    back = shards.read(shards.videos[1], [5, 0, 3])
    assert back.frame_ids == ("00005", "00000", "00003")
    assert (back.masks == clip.masks[[5, 0, 3]]).all()


@pytest.mark.parametrize("frames", [[3], [-1], []])
def test_frames_outside_the_video_are_refused(tmp_path, build_shards, frames):
    shards = build_shards(tmp_path, [moving_squares("a", 3), moving_squares("b", 3)])
    with pytest.raises(UserError, match=r"part-00000\.parquet:a: expected frames in 0\.\.2"):
        shards.read(shards.videos[0], frames)


def test_clip_of_three_frames_reads_hardly_more_than_its_bytes(tmp_path, build_shards):
    shards = build_shards(tmp_path, [moving_squares(str(i), 160, seed=i) for i in range(3)])
    table = pq.read_table(tmp_path / PART).slice(160, 160)
    wanted = [11, 50, 120]
    needed = sum(len(table[name][t].as_py()) for name in ("image", "mask") for t in wanted)
    shards.read(shards.videos[1], wanted)
    assert needed <= shards.reader.bytes_read <= 1.5 * needed


def test_whole_video_is_read_in_a_few_pieces(tmp_path, build_shards):
    clips = [moving_squares("a", 30), moving_squares("b", 600)]
    shards = build_shards(tmp_path, clips)
    # Row groups hold 256 frames at most: images and masks of three.
    assert (shards.read(shards.videos[1]).masks == clips[1].masks).all()
    assert shards.reader.requests <= 6
    assert shards.videos[1].first_row == 30


def test_images_and_masks_are_stored_as_they_are_and_the_rest_is_compressed(tmp_path, build_shards):
    build_shards(tmp_path, [moving_squares("a", 3)])
    group = pq.ParquetFile(tmp_path / PART).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["image"].compression == columns["mask"].compression == "UNCOMPRESSED"
    assert columns["source"].compression == columns["areas.list.element"].compression == "ZSTD"


def test_index_knows_every_box_in_every_frame(tmp_path, build_shards):
    clip = moving_squares("a", 4)
    video = build_shards(tmp_path, [clip]).videos[0]
    assert video.boxes.shape == (4, 2, 4)
    for t, mask in enumerate(clip.masks):
        for k, i in enumerate(video.objects):
            rows, columns = np.nonzero(mask == i)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
            assert video.boxes[t, k].tolist() == box


def test_frames_without_a_mask_stay_unannotated(tmp_path, build_shards):
    clip = moving_squares("a", 4)
    annotated = np.array([True, False, False, True])
    masks = np.where(annotated[:, None, None], clip.masks, 0).astype(np.uint8)
    shards = build_shards(tmp_path, [Clip("a", clip.frames, masks, annotated)])
    assert shards.videos[0].annotated.tolist() == annotated.tolist()
    assert shards.videos[0].first_frames.tolist() == [0, 3]
    assert shards.videos[0].areas[1].tolist() == [0, 0]
    back = shards.read(shards.videos[0])
    assert (back.annotated == annotated).all()
    assert (back.masks == masks).all()
    assert pq.read_table(tmp_path / PART).column("mask").null_count == 2


def test_annotated_frame_without_objects_is_no_missing_mask(tmp_path, build_shards):
    clip = Clip("a", np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16), np.uint8))
    shards = build_shards(tmp_path, [clip])
    assert shards.videos[0].annotated.all()
    assert shards.videos[0].areas.shape == (2, 0)
    assert shards.read(shards.videos[0]).annotated.all()


def test_given_image_bytes_are_stored_as_they_are(tmp_path):
    clip = moving_squares("a", 2)
    images = [encode_frame(frame, quality=31) for frame in clip.frames]
    write_shard([clip_table(clip, "tiny", images=images)], [], tmp_path / PART)
    assert pq.read_table(tmp_path / PART).column("image").to_pylist() == images


def test_manifest_counts_and_keeps_recipe_and_rejected_inputs(tmp_path):
    rejected = [{"video": "bad", "reason": "mask of another size"}]
    write_shard((clip_table(moving_squares(n, 3), "tiny") for n in "ab"), rejected, tmp_path / PART)
    write_shard([clip_table(moving_squares("c", 1), "tiny")], [], tmp_path / "part-00001.parquet")
    finish(str(tmp_path), "images", {"quality": 95}, [PART, "part-00001.parquet"])
    manifest = ShardSet(str(tmp_path)).manifest
    size = sum(path.stat().st_size for path in tmp_path.glob("part-*"))
    assert manifest["totals"] == {"videos": 3, "frames": 7, "objects": 5, "bytes": size}
    assert (manifest["kind"], manifest["recipe"], manifest["rejected"]) == ("images", {"quality": 95}, rejected)
    assert [file["rows"] for file in manifest["files"]] == [6, 1]


def test_inputs_rejected_while_the_shard_is_written_are_kept(tmp_path):
    rejected: list[dict[str, str]] = []

    def tables():
        yield clip_table(moving_squares("a", 1), "tiny")
        rejected.append({"video": "b", "reason": "does not decode"})

    write_shard(tables(), rejected, tmp_path / PART)
    assert finish(str(tmp_path), "videos", {}, [PART])["rejected"] == [{"video": "b", "reason": "does not decode"}]


def test_digest_follows_the_bytes(tmp_path, build_shards):
    same = [build_shards(tmp_path / name, [moving_squares("a", 2)]).digest for name in ("one", "two")]
    other = build_shards(tmp_path / "three", [moving_squares("a", 2, seed=1)]).digest
    assert same[0] == same[1] != other


def test_set_with_open_files_travels_to_another_process(tmp_path, build_shards):
    shards = build_shards(tmp_path, [moving_squares("a", 3)])
    here = shards.read(shards.videos[0])
    there = pickle.loads(pickle.dumps(shards))
    assert (there.read(there.videos[0]).frames == here.frames).all()


def test_folder_without_manifest_is_refused_by_name(tmp_path):
    write_shard([clip_table(moving_squares("a", 1), "tiny")], [], tmp_path / PART)
    with pytest.raises(UserError, match=f"{tmp_path}: no manifest.json"):
        ShardSet(str(tmp_path))


def test_other_schema_version_is_refused_with_both_numbers(tmp_path, build_shards):
    build_shards(tmp_path, [moving_squares("a", 1)])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(UserError, match=f"{tmp_path}: shards of schema 99, expected {SCHEMA_VERSION}"):
        ShardSet(str(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_shard_is_refused_by_name(tmp_path, build_shards, share):
    shards = build_shards(tmp_path, [moving_squares("a", 3)])
    data = (tmp_path / PART).read_bytes()
    (tmp_path / PART).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"part-00000\.parquet:a: the shard cannot be read"):
        shards.read(shards.videos[0])


def test_damaged_image_inside_a_shard_is_named_by_video_and_frame(tmp_path):
    clip = moving_squares("a", 2)
    images = [encode_frame(clip.frames[0]), b"no picture"]
    write_shard([clip_table(clip, "tiny", images=images)], [], tmp_path / PART)
    finish(str(tmp_path), "videos", {}, [PART])
    shards = ShardSet(str(tmp_path))
    with pytest.raises(UserError, match=r"part-00000\.parquet:a/00001: expected a JPEG"):
        shards.read(shards.videos[0])


@pytest.mark.parametrize("name", ["videos.parquet", "manifest.json"])
def test_damaged_index_or_manifest_is_refused_by_name(tmp_path, build_shards, name):
    build_shards(tmp_path, [moving_squares("a", 1)])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(UserError, match=name):
        _ = ShardSet(str(tmp_path)).videos
