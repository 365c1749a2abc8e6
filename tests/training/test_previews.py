from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vosforge.training.loop import fit_locally
from vosforge.training.previews import is_due, preview


@pytest.mark.parametrize(
    ("steps", "every", "number"), [(1000, 100, 10), (800_000, 100, 50), (4, 3, 2), (50, 100, 1), (1050, 100, 11)]
)
def test_checkpoints_get_previews_but_long_stages_not_all_of_them(steps, every, number):
    checkpoints = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    due = [step for step in checkpoints if is_due(step, steps, every)]
    assert due[0] == checkpoints[0]
    assert due[-1] == steps
    assert number <= len(due) <= number + 1


def test_preview_shows_frame_truth_and_prediction_of_each_clip():
    frames = np.full((2, 64, 96, 3), 100, np.uint8)
    truth, predicted = np.zeros((2, 64, 96), np.uint8), np.zeros((2, 64, 96), np.uint8)
    truth[:, 10:50, 10:50], predicted[1, 10:50, 10:50] = 1, 1
    with Image.open(io.BytesIO(preview(frames, truth, predicted, [0.0, 1.0]))) as image:
        assert image.format == "PNG"
        picture = np.asarray(image)
    first, second = np.split(picture, 2)
    columns = [np.split(row[18:], 3, axis=1) for row in (first, second)]
    tinted = [[bool((panel[..., 0] > 110).any()) for panel in row] for row in columns]
    assert tinted == [[False, True, False], [False, True, True]]


def test_previews_of_large_crops_stay_small():
    noise = np.random.default_rng(0).integers(0, 256, (4, 384, 640, 3), dtype=np.uint8)
    masks = np.ones((4, 384, 640), np.uint8)
    assert len(preview(noise, masks, masks)) < 1_500_000


def test_loop_tells_previews_with_the_probe(make_plan, tmp_path):
    heard = []
    fit_locally(make_plan(), str(tmp_path), heard.append)
    shown = {metrics["step"]: metrics["preview"] for metrics in heard if "preview" in metrics}
    assert sorted(shown) == [3, 4, 6, 8]
    assert all(0 < len(picture) < 100_000 for picture in shown.values())


def test_weights_that_broke_are_probed_as_no_number(make_plan, tmp_path):
    plan = make_plan(steps=1)
    wild = replace(plan.stages[0], learning_rate=1e30, clip_norm=None)
    heard = []
    fit_locally(replace(plan, stages=[wild]), str(tmp_path), heard.append)
    assert np.isnan(heard[-1]["probe_J"])
    assert not heard[-1].get("preview")
