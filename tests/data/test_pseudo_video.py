from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.data.geometry import affine, keep_objects, warp
from vosforge.data.pseudo_video import PseudoVideoRecipe, pseudo_video
from vosforge.errors import UserError

RECIPE = PseudoVideoRecipe(size=(96, 128))
STILL = replace(
    RECIPE, rotation=0, shear=0, zoom=0, drift=0, flip=0, sequence_zoom=(1, 1), brightness=0, contrast=0, saturation=0
)
RED, GREEN, GREY = (230, 20, 20), (20, 230, 20), (120, 120, 130)


def still(colour: tuple[int, int, int] = RED, identity: int = 1, size: tuple[int, int] = (120, 160)) -> Clip:
    """A disc of one colour on grey ground."""
    mask = cv2.circle(np.zeros(size, np.uint8), (size[1] // 2, size[0] // 2), size[0] // 4, identity, -1)
    frame = np.where(mask[..., None] > 0, np.array(colour), np.array(GREY)).astype(np.uint8)
    return Clip("disc", frame[None], mask[None])


def make(seed: int, recipe: PseudoVideoRecipe = RECIPE, image: Clip | None = None, others: list | None = None) -> Clip:
    others = [still(GREEN, size=(60, 60))] if others is None else others
    return pseudo_video("clip", image or still(), others, recipe, np.random.default_rng(seed))


def coloured(frames: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    channel = int(np.argmax(colour))
    rest = np.delete(frames, channel, axis=-1).max(axis=-1)
    return frames[..., channel].astype(int) - rest > 70


def test_same_generator_state_gives_the_same_clip():
    one, two, other = make(3), make(3), make(4)
    assert (one.frames == two.frames).all()
    assert (one.masks == two.masks).all()
    assert (one.frames != other.frames).any()


def test_clip_has_the_recipes_length_and_size_and_objects_from_one_upward():
    clip = make(0, replace(RECIPE, frames=5), image=still(identity=77))
    assert clip.frames.shape == (5, 96, 128, 3)
    assert set(clip.objects) == set(np.unique(clip.masks[0])) - {0} == set(range(1, len(clip.objects) + 1))


def test_at_most_the_recipes_objects_are_kept():
    others = [still(GREEN, size=(60, 60)), still((20, 20, 230), size=(60, 60))]
    counts = [len(make(seed, replace(RECIPE, objects=2), others=others).objects) for seed in range(12)]
    assert max(counts) == 2


@pytest.mark.parametrize("seed", range(6))
def test_masks_follow_the_picture(seed):
    clip = make(seed, others=[])
    for frame, mask in zip(clip.frames, clip.masks, strict=True):
        red, masked = coloured(frame[None], RED)[0], mask > 0
        assert (red & masked).sum() > 0.95 * (red | masked).sum()


def test_pasted_object_is_drawn_over_the_ground_with_its_own_mask():
    seen = 0
    for seed in range(6):
        clip = make(seed)
        for k in clip.objects:
            shown = [bool(coloured(clip.frames, c)[clip.masks == k].mean() > 0.8) for c in (RED, GREEN)]
            assert sum(shown) == 1
            seen += shown[1]
    assert seen >= 2


def test_pasted_object_moves_while_the_ground_rests():
    moves = []
    for seed in range(5):
        clip = make(seed, STILL)
        assert (
            np.abs(clip.frames[0, :4].astype(int) - clip.frames[-1, :4]).max() <= 2
            or coloured(clip.frames, GREEN).any()
        )
        green = coloured(clip.frames, GREEN)
        centres = [np.argwhere(plane).mean(axis=0) for plane in (green[0], green[-1]) if plane.any()]
        moves.append(np.linalg.norm(centres[0] - centres[1]) if len(centres) == 2 else 0.0)
        ground = ~(green.any(axis=0) | coloured(clip.frames, RED).any(axis=0))
        rested = cv2.erode(ground.astype(np.uint8), np.ones((5, 5))) > 0
        assert np.abs(clip.frames[0].astype(int) - clip.frames[-1])[rested].max() <= 1
    assert np.median(moves) > 2


@pytest.mark.parametrize("identity", [1, 200, 201, 255])
def test_picture_whose_ids_are_high_keeps_its_object_apart_from_pasted_ones(identity):
    for seed in range(4):
        clip = make(seed, STILL, image=still(identity=identity))
        red, green = coloured(clip.frames, RED), coloured(clip.frames, GREEN)
        assert set(np.unique(clip.masks[red])).isdisjoint(set(np.unique(clip.masks[green])) - {0})


def test_one_frame_is_a_still_picture():
    assert len(make(0, replace(RECIPE, frames=1))) == 1


def test_picture_without_objects_to_paste_from_changes_nothing_but_the_picture():
    empty = Clip("empty", np.zeros((1, 60, 60, 3), np.uint8), np.zeros((1, 60, 60), np.uint8))
    clip = make(0, STILL, others=[empty])
    assert clip.objects == [1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", 0),
        ("frames", 2.5),
        ("size", (8, 96)),
        ("size", (96, 5000)),
        ("size", 96),
        ("objects", 0),
        ("rotation", -1),
        ("rotation", math.nan),
        ("paste_rotation", math.inf),
        ("shear", 90),
        ("shear", -5),
        ("zoom", 1),
        ("sequence_zoom", (0, 1)),
        ("sequence_zoom", (1.5, 0.8)),
        ("drift", math.inf),
        ("drift", -0.1),
        ("paste_drift", -0.1),
        ("flip", 1.5),
        ("flip", -0.5),
        ("paste", -1),
        ("paste", 1.5),
        ("brightness", -0.1),
        ("saturation", 2),
    ],
)
def test_recipe_out_of_range_names_the_field(field, value):
    with pytest.raises(UserError, match=rf"pseudo-video: {field} must be .*, found "):
        PseudoVideoRecipe(**{field: value})


def test_recipe_from_json_stays_the_same():
    assert PseudoVideoRecipe(**json.loads(json.dumps(asdict(RECIPE)))) == RECIPE


@pytest.mark.parametrize("scale", [0.45, 0.2, 0.1])
def test_shrinking_warp_keeps_frame_and_mask_on_each_other(scale):
    # A wide ramp is its own measure: the value at a pixel tells where in the source it came from.
    ramp = np.linspace(0, 255, 400).round().astype(np.uint8)
    frame = np.broadcast_to(ramp[None, :, None], (300, 400, 3)).copy()
    matrix, size = affine(scale), (int(300 * scale), int(400 * scale))
    warped, _ = warp(frame, np.zeros((300, 400), np.uint8), matrix, size, cv2.BORDER_REPLICATE)
    columns = np.arange(4, size[1] - 4)
    source = warped[size[0] // 2, columns, 0] / 255 * 399
    assert abs((source - columns / scale).mean() * scale) < 0.12


def test_kept_objects_are_the_large_ones_numbered_from_one():
    masks = np.zeros((2, 100, 100), np.uint8)
    masks[0, :10, :10], masks[0, 50:60, :10], masks[0, 90, 90] = 40, 9, 3
    masks[1] = 40
    kept = keep_objects(masks, 3, np.random.default_rng(0))
    assert (kept[0, 55, 5], kept[0, 5, 5], kept[0, 90, 90]) == (1, 2, 0)
    assert (kept[1] == 2).all()
    assert len(np.unique(keep_objects(masks, 1, np.random.default_rng(0)))) == 2
