from __future__ import annotations

import cv2
import numpy as np
import pytest

from vosforge.data.layouts import find_videos
from vosforge.data.video_files import open_video
from vosforge.errors import UserError
from vosforge.evaluation.predictions import MaskFolder
from vosforge.evaluation.truth import Truth


def write_video(root, frames=12):
    for t in range(1, frames + 1):
        for kind, suffix, value in (("JPEGImages", "jpg", np.full((24, 32, 3), 10 * t, np.uint8)),
                                    ("Annotations", "png", np.full((24, 32), 1, np.uint8))):  # fmt: skip
            path = root / kind / "a" / f"{t}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), value)


def test_frames_named_without_leading_zeros_are_in_order_everywhere(tmp_path):
    write_video(tmp_path)
    expected = [str(t) for t in range(1, 13)]
    assert list(find_videos(tmp_path).videos[0].read().frame_ids) == expected
    assert open_video(tmp_path / "JPEGImages" / "a").names == expected
    assert MaskFolder(tmp_path / "Annotations").frames("a") == expected


def test_hidden_files_are_no_frames(tmp_path):
    write_video(tmp_path, 3)
    (tmp_path / "JPEGImages" / "a" / "._1.jpg").write_bytes(b"shadow")
    assert open_video(tmp_path / "JPEGImages" / "a").names == ["1", "2", "3"]


def test_mask_without_its_frame_makes_the_video_a_bad_one(tmp_path):
    write_video(tmp_path, 5)
    (tmp_path / "JPEGImages" / "a" / "3.jpg").unlink()
    with pytest.raises(UserError, match="masks without a frame: 3"):
        Truth(str(tmp_path))
