from __future__ import annotations

import numpy as np

from vosforge.clip import Clip
from vosforge.propagation import CopyFirstMask, given_masks, segment_clip, segment_frame


def clip_of(masks: list[list[int]], annotated: list[bool] | None = None) -> Clip:
    planes = np.array(masks, np.uint8)[:, None]
    frames = np.zeros((*planes.shape, 3), np.uint8)
    return Clip("a", frames, planes, None if annotated is None else np.array(annotated))


def test_every_object_is_given_where_it_is_seen_first():
    given = given_masks(clip_of([[0, 0, 0], [5, 0, 0], [5, 9, 0], [0, 9, 2], [5, 9, 2]]))
    assert {t: mask.tolist() for t, mask in given.items()} == {1: [[5, 0, 0]], 2: [[0, 9, 0]], 3: [[0, 0, 2]]}
    assert all(mask.dtype == np.uint8 for mask in given.values())


def test_objects_that_enter_together_are_given_together():
    assert given_masks(clip_of([[1, 2, 200], [1, 2, 200]]))[0].tolist() == [[1, 2, 200]]


def test_frames_without_annotation_give_nothing():
    clip = clip_of([[0, 0], [3, 0], [3, 4]], annotated=[True, False, True])
    assert {t: mask.tolist() for t, mask in given_masks(clip).items()} == {2: [[3, 4]]}


def test_clip_without_objects_gives_nothing():
    assert given_masks(clip_of([[0, 0], [0, 0]])) == {}


def test_segmented_clip_has_the_ids_and_length_of_the_clip():
    labels = segment_clip(CopyFirstMask(), clip_of([[0, 0, 0], [5, 0, 0], [0, 0, 200]]))
    assert labels.dtype == np.uint8
    assert labels[:, 0].tolist() == [[0, 0, 0], [5, 0, 0], [5, 0, 200]]


def test_void_beside_other_ids_is_no_object_and_alone_it_is_one():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[:, 0], masks[:, 3] = 1, 255
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    assert set(np.unique(given_masks(Clip("void", frames, masks))[0])) == {0, 1}
    alone = np.where(masks == 255, 255, 0).astype(np.uint8)
    assert set(np.unique(given_masks(Clip("binary", frames, alone))[0])) == {0, 255}


def test_object_of_one_pixel_enters_at_a_reduced_size():
    mask = np.zeros((100, 178), np.uint8)
    mask[51, 77], mask[10:60, 100:150] = 5, 9
    segmenter = CopyFirstMask()
    found = segment_frame(segmenter, np.zeros((100, 178, 3), np.uint8), mask, 32)
    assert segmenter.objects == [5, 9]
    assert found[51, 77] == 5
