from __future__ import annotations

import numpy as np
import pytest

from vosforge.clip import Clip, frame_order
from vosforge.errors import UserError

FRAMES = np.zeros((3, 4, 6, 3), np.uint8)
MASKS = np.zeros((3, 4, 6), np.uint8)


def test_clip_tells_its_length_size_and_objects():
    masks = MASKS.copy()
    masks[1, 0, 0], masks[2, 1, 1] = 200, 5
    clip = Clip("a", FRAMES, masks)
    assert (len(clip), clip.size, clip.objects) == (3, (4, 6), [5, 200])


def test_frames_are_annotated_and_numbered_by_default():
    clip = Clip("a", FRAMES, MASKS)
    assert clip.annotated.tolist() == [True, True, True]
    assert clip.frame_ids == ("00000", "00001", "00002")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"frames": FRAMES[..., :1]}, "frames"),
        ({"frames": FRAMES[0]}, "frames"),
        ({"frames": FRAMES.astype(np.float32)}, "frames"),
        ({"masks": MASKS[:2]}, "masks"),
        ({"masks": MASKS.astype(np.int64)}, "masks"),
        ({"masks": np.zeros((3, 6, 4), np.uint8)}, "masks"),
        ({"annotated": np.ones(2, bool)}, "2 annotated"),
        ({"frame_ids": ("a",)}, "1 frame ids"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_clip_and_field(change, field):
    with pytest.raises(UserError, match=f"clip rhino: .*{field}"):
        Clip(**{"name": "rhino", "frames": FRAMES, "masks": MASKS, **change})


def test_clip_cannot_be_changed():
    clip = Clip("a", FRAMES, MASKS)
    with pytest.raises(AttributeError):
        clip.name = "b"


def test_frames_are_in_the_order_of_their_numbers():
    names = ["10", "9", "2", "00003", "frame-12", "frame-3", "1"]
    assert sorted(names, key=frame_order) == ["1", "2", "00003", "9", "10", "frame-3", "frame-12"]
