from __future__ import annotations

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.data.sampling import SamplingRecipe
from vosforge.training.clip_order import stage_sampler
from vosforge.training.sheets import scribbled_picture, spoilt_pictures, stage_rows
from vosforge.training.stages import Corruption, Stage


def two_boxes() -> Clip:
    masks = np.zeros((3, 60, 80), np.uint8)
    masks[:, 5:25, 5:30], masks[:, 35:55, 45:75] = 1, 2
    return Clip("0", np.full((3, 60, 80, 3), 90, np.uint8), masks)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["frame 1", "frame 2"]),
        ({"rounds": 2}, ["frame 1", "frame 2", "first scribbles"]),
        ({"corruption": Corruption(swap=0.1)}, ["frame 1", "frame 2", "mask 2", *["swapped"] * 5]),
    ],
)
def test_rows_show_clips_and_what_the_stage_makes_of_them(tmp_path, build_shards, settings, names):
    shards = build_shards(tmp_path / "shards", [two_boxes()])
    sampling = SamplingRecipe(frames=2, crop=(48, 48))
    stage = Stage("videos", ("videos",), 10, 2, sampling, 1e-3, **{"corruption": Corruption(), **settings})
    rows = stage_rows(stage, stage_sampler(stage, [shards], 0), seed=0, clips=3)
    assert [caption for caption, _ in rows] == [f"videos, clip {i}: {' | '.join(names)}" for i in (0, 9, 19)]
    assert all(picture.shape == (48, 48, 3) for _, pictures in rows for picture in pictures)


def test_spoilt_pictures_differ_from_the_mask_and_from_each_other():
    # Wide enough that no two draws on such small objects are alike.
    corruption = Corruption(swap=0.1, morph=0.1, radius=(0.1, 0.4))
    (_, mask), *spoilt = spoilt_pictures(two_boxes(), corruption, np.random.default_rng(0))
    assert [name for name, _ in spoilt][:3] == ["swapped", "grown or shrunk", "swapped, grown or shrunk"]
    pictures = [mask, *(picture for _, picture in spoilt)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_strokes_of_objects_and_background_are_told_apart():
    clip = two_boxes()
    shown = [scribbled_picture(clip, np.random.default_rng(seed)) for seed in range(8)]
    white = [(picture == 255).all(axis=2) for picture in shown]
    assert any(plane.any() for plane in white)
    assert not any((plane & (clip.masks[0] > 0)).any() for plane in white)
    assert all((picture == (128, 0, 0)).all(axis=2)[5:25, 5:30].any() for picture in shown)
    assert all((picture == (0, 128, 0)).all(axis=2)[35:55, 45:75].any() for picture in shown)
