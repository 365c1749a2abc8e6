"""Void in predicted masks, and truth in shards whose masks are read without its frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vosforge.clip import VOID, Clip
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.evaluation import score
from vosforge.evaluation.truth import Truth


@pytest.fixture
def masks(make_clip) -> np.ndarray:
    """Two objects over five frames."""
    return make_clip("a", objects=2).masks


def test_void_beside_objects_of_a_prediction_is_background(masks):
    voided = masks.copy()
    voided[:, 40:, 40:][voided[:, 40:, 40:] == 0] = VOID
    assert (voided == VOID).any()
    assert score(masks, voided, "davis2016") == score(masks, masks, "davis2016")
    found = score(masks, voided, "davis2016")[1]
    assert found["J"]["mean"] == found["F"]["mean"] == 1


def test_object_that_is_predicted_as_void_is_missed(masks):
    voided, dropped = masks.copy(), masks.copy()
    voided[voided == 2], dropped[dropped == 2] = VOID, 0
    found = score(masks, voided, "davis2016")
    assert found == score(masks, dropped, "davis2016")
    assert 0 < found[1]["J"]["mean"] < 0.7


def test_one_frame_with_another_id_makes_void_of_255_in_all(masks):
    binary = np.where(masks > 0, VOID, 0).astype(np.uint8)
    assert score(masks, binary, "davis2016")[1]["J"]["mean"] == 1
    binary[0][masks[0] > 0] = 1
    assert score(masks, binary, "davis2016")[1]["J"]["mean"] == 0


def test_void_of_the_prediction_is_judged_apart_from_that_of_the_truth(masks):
    binary = np.where(masks > 0, VOID, 0).astype(np.uint8)
    voided = np.where(masks == 2, VOID, masks)
    dropped = np.where(masks == 2, 0, masks)
    # 255 is the object on one side and void on the other.
    assert score(binary, voided, "davis2016") == score(masks, dropped, "davis2016")
    assert score(voided, binary, "davis2016") == score(dropped, masks, "davis2016")


def test_prediction_of_nothing_but_void_is_an_object_everywhere(masks):
    everywhere = np.full_like(masks, VOID)
    found = score(masks, everywhere, "davis2016")[1]["J"]["frames"]
    assert found == pytest.approx([(mask > 0).mean() for mask in masks[1:-1]])


@pytest.fixture
def clips(make_clip) -> list[Clip]:
    """Two videos, the second one annotated in three frames, of which one shows no object."""
    clip = make_clip("b", objects=2)
    annotated = np.array([True, False, True, False, True])
    shown = clip.masks * annotated[:, None, None].astype(np.uint8)
    shown[4] = 0
    return [make_clip("a"), Clip("b", clip.frames, shown, annotated, ("f0", "f3", "f7", "f8", "f9"))]


def without_images(shards: ShardSet) -> ShardSet:
    """The shards with zeros where their images' bytes lay."""
    path = Path(shards.uri) / shards.videos[0].file
    data, metadata = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata
    for group in range(metadata.num_row_groups):
        row = metadata.row_group(group)
        (column,) = (row.column(i) for i in range(row.num_columns) if row.column(i).path_in_schema == "image")
        start, size = column.data_page_offset, column.total_compressed_size
        data[start : start + size] = bytes(size)
    path.write_bytes(data)
    return ShardSet(shards.uri)


def test_masks_of_shards_are_those_that_come_with_the_frames(clips, build_shards, tmp_path):
    shards = build_shards(tmp_path, clips)
    for video in shards.videos:
        clip, found = shards.read(video), shards.read_masks(video)
        assert tuple(found) == clip.frame_ids
        assert [mask is not None for mask in found.values()] == clip.annotated.tolist()
        for mask, expected in zip(found.values(), clip.masks, strict=True):
            assert mask is None or (mask == expected).all()
    assert found["f9"].shape == (60, 80)
    assert not found["f9"].any()


def test_masks_of_shards_are_read_where_images_are_destroyed(clips, build_shards, tmp_path):
    shards = without_images(build_shards(tmp_path, clips))
    for video, clip in zip(shards.videos, clips, strict=True):
        with pytest.raises(UserError, match=f"part-00000.parquet:{clip.name}/{clip.frame_ids[0]}: expected a JPEG"):
            shards.read(video)
        found = shards.read_masks(video)
        assert all((mask == clip.masks[t]).all() for t, mask in enumerate(found.values()) if mask is not None)
    truth = Truth(str(tmp_path))
    assert (truth.annotated(0).masks == clips[0].masks).all()
    assert [isinstance(clip, UserError) for clip in truth.clips()] == [True, True]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_masks_of_truncated_shards_are_refused_by_name(clips, build_shards, tmp_path, share):
    shards = build_shards(tmp_path, clips)
    path = tmp_path / shards.videos[0].file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"part-00000\.parquet:b: the shard cannot be read .*datasets/check\.py"):
        shards.read_masks(shards.videos[1])


def test_truth_in_shards_gives_masks_and_pictures_of_its_clips(clips, build_shards, tmp_path):
    build_shards(tmp_path, clips)
    truth = Truth(str(tmp_path))
    for i, clip in enumerate(truth):
        found = truth.annotated(i)
        assert found.name == clip.name
        assert found.every_frame == clip.frame_ids
        assert found.frame_ids == tuple(np.array(clip.frame_ids)[clip.annotated])
        assert (found.masks == clip.masks[clip.annotated]).all()
        assert (found.masks.dtype, found.masks.shape[1:]) == (np.uint8, clip.size)
        chosen = [3, 0, 4]
        shown = truth.pictures(i, [clip.frame_ids[t] for t in chosen])
        assert all((picture == clip.frames[t]).all() for picture, t in zip(shown, chosen, strict=True))


def test_truth_in_shards_without_a_mask_is_named(make_clip, build_shards, tmp_path):
    clip = make_clip("a")
    bare = Clip("bare", clip.frames, np.zeros_like(clip.masks), np.zeros(len(clip), bool))
    build_shards(tmp_path, [clip, bare])
    with pytest.raises(UserError, match="video bare: no frame is annotated"):
        Truth(str(tmp_path)).annotated(1)
