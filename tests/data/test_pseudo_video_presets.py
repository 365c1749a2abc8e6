from __future__ import annotations

import hashlib
import math
import os
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.data.pseudo_presets import PRESETS, preset
from vosforge.data.pseudo_video import PseudoVideoRecipe, pseudo_video
from vosforge.data.redrawn import Affine, RedrawnRecipe
from vosforge.data.sampling import ClipSampler, SamplingRecipe
from vosforge.data.stills import Still, open_stills, pseudo_video_table
from vosforge.errors import UserError

REDRAWN = [name for name, recipe in PRESETS.items() if isinstance(recipe, RedrawnRecipe)]
RED, GREEN, GREY = (230, 20, 20), (20, 230, 20), (110, 110, 110)
PLACES = np.array([[225, 165], [285, 170], [230, 225]])


def picture(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (240, 320), radius: int = 50) -> Clip:
    """A disc of one colour on grey ground."""
    mask = cv2.circle(np.zeros(size, np.uint8), (size[1] // 2, size[0] // 2), radius, 1, -1)
    frame = np.where(mask[..., None] > 0, np.array(colour), np.array(GREY)).astype(np.uint8)
    return Clip("disc", frame[None], mask[None])


def marked() -> Clip:
    """Three small discs as objects 1, 2 and 3, near the middle of a square picture."""
    mask = np.zeros((400, 520), np.uint8)
    for k, place in enumerate(PLACES, 1):
        cv2.circle(mask, place.tolist(), 9, k, -1)
    frame = np.random.default_rng(0).integers(0, 256, (400, 520, 3), dtype=np.uint8)
    return Clip("marked", frame[None], mask[None])


def make(recipe: PseudoVideoRecipe | RedrawnRecipe, seed: int, image: Clip | None = None, others: list = ()) -> Clip:
    return pseudo_video("clip", image or picture(), list(others), recipe, np.random.default_rng(seed))


def linear_parts(recipe: RedrawnRecipe, clips: int) -> list[np.ndarray]:
    """`(T, 2, 2)` of each clip in which all three marks are seen in all frames: how the picture was turned."""
    recipe = replace(recipe, objects=3, smallest=0.0, thin_plate=0.0, merge=0.0, paste_chance=0.0)
    source = (PLACES[1:] - PLACES[0]).T
    found = []
    for seed in range(clips):
        clip = make(recipe, seed, marked())
        if all(set(np.unique(mask)) == {0, 1, 2, 3} for mask in clip.masks):
            centres = [np.stack([np.argwhere(m == k).mean(axis=0)[::-1] for k in (1, 2, 3)]) for m in clip.masks]
            found.append(np.stack([(c[1:] - c[0]).T @ np.linalg.inv(source) for c in centres]))
    assert len(found) >= clips // 3
    return found


def shear_of(linear: np.ndarray) -> float:
    """How far from a right angle the picture's axes lie, in degrees."""
    x, y = linear[:, 0], linear[:, 1]
    return float(90 - np.degrees(np.arccos(abs(x @ y) / np.linalg.norm(x) / np.linalg.norm(y))))


def scale_of(linear: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(linear))))


def turn_of(linear: np.ndarray) -> float:
    """Degrees from the x axis, of the picture as it was before any mirroring."""
    across = linear[:, 0] * (-1 if np.linalg.det(linear) < 0 else 1)
    return float(np.degrees(np.arctan2(across[1], across[0])))


def spreads(parts: list[np.ndarray], measure) -> list[float]:
    """How much a measure varies within each clip."""
    return [float(np.ptp([measure(linear) for linear in clip])) for clip in parts]


def test_stcn_turns_shears_and_scales_every_frame_and_mirrors_whole_clips():
    parts = linear_parts(PRESETS["stcn"], 60)
    assert 6 < max(shear_of(linear) for clip in parts for linear in clip) < 12
    assert 24 < max(spreads(parts, turn_of)) < 42
    assert 0.1 < max(spreads(parts, lambda m: scale_of(m) / (384 / 400))) < 0.2 * 1.5 + 0.03
    signs = np.sign([np.linalg.det(clip) for clip in parts])
    assert (signs == signs[:, :1]).all()
    assert set(signs[:, 0]) == {-1, 1}
    scales = [np.mean([scale_of(linear) for linear in clip]) / (384 / 400) for clip in parts]
    assert min(scales) < 0.95
    assert max(scales) > 1.2


def test_emn_turns_but_neither_shears_nor_scales_and_changes_saturation_alone():
    parts = linear_parts(PRESETS["emn"], 30)
    assert max(shear_of(linear) for clip in parts for linear in clip) < 1.5
    assert all(scale_of(linear) == pytest.approx(384 / 400, rel=0.02) for clip in parts for linear in clip)
    assert 20 < max(spreads(parts, turn_of)) < 41
    clips = [make(PRESETS["emn"], seed) for seed in range(8)]
    reds = np.stack([np.median(clip.frames[clip.masks == 1], axis=0) for clip in clips if clip.objects])
    luma = reds @ [0.299, 0.587, 0.114]
    assert np.ptp(luma) < 4
    assert np.ptp(reds[:, 0] - reds[:, 1]) > 15


def test_skn_turns_and_mirrors_every_frame_and_leaves_colours():
    parts = linear_parts(PRESETS["skn"], 40)
    assert max(shear_of(linear) for clip in parts for linear in clip) < 1.5
    assert all(scale_of(linear) == pytest.approx(480 / 400, rel=0.02) for clip in parts for linear in clip)
    assert 35 < max(spreads(parts, turn_of)) < 61
    assert any(len(set(np.sign(np.linalg.det(clip)))) == 2 for clip in parts)
    clip = make(PRESETS["skn"], 1)
    assert (np.abs(np.median(clip.frames[clip.masks == 1], axis=0) - RED) <= 1).all()


def test_aot_crops_its_first_frame_alone_squeezed_and_moves_the_others():
    parts = linear_parts(PRESETS["aot"], 30)
    firsts = np.stack([clip[0] for clip in parts])
    assert np.abs(firsts[:, 0, 1]).max() < 0.03
    assert np.abs(firsts[:, 1, 0]).max() < 0.03
    squeezes = np.abs(firsts[:, 1, 1] / firsts[:, 0, 0])
    # A window of 0.8 of the picture at 4 : 3 or less is at least 1.04 times as wide as high.
    assert 1.02 < squeezes.min() < 1.15 < 1.25 < squeezes.max() < 1.36
    assert max(shear_of(linear) for clip in parts for linear in clip[1:]) > 5
    assert {np.sign(np.linalg.det(linear)) for clip in parts for linear in clip[1:]} == {-1, 1}


def test_aot_lays_the_objects_of_another_picture_over_the_first():
    both = 0
    for seed in range(6):
        clip = make(PRESETS["aot"], seed, picture(radius=90), [picture(GREEN, radius=30)])
        assert clip.frames.shape == (5, 465, 465, 3)
        kinds = {int(np.argmax(np.median(clip.frames[0][clip.masks[0] == k], axis=0))) for k in clip.objects}
        both += kinds == {0, 1}
    assert both >= 5


def test_stm_coco_starts_from_the_plain_picture_and_moves_its_corners_on_and_on():
    found = 0
    for seed in range(20):
        clip = make(replace(PRESETS["stm-coco"], paste_chance=0.0), seed, picture(size=(400, 480), radius=60))
        widths = [cv2.boundingRect((mask == 1).astype(np.uint8))[2:] for mask in clip.masks]
        assert widths[0] == pytest.approx((121 * 480 / 400, 121 * 480 / 400), abs=2)
        change = [abs(w - widths[0][0]) + abs(h - widths[0][1]) for w, h in widths]
        found += change[2] > change[1] > 3
    assert found >= 10


def test_stm_coco_crops_so_that_objects_are_seen_in_all_frames():
    for seed in range(12):
        image = picture(size=(400, 800), radius=40)
        image = replace(image, frames=np.roll(image.frames, 320, 2), masks=np.roll(image.masks, 320, 2))
        clip = make(replace(PRESETS["stm-coco"], paste_chance=0.0), seed, image)
        assert all((mask == 1).any() for mask in clip.masks)


def test_stm_coco_pastes_up_to_three_drifting_objects_in_half_of_the_clips():
    others = [picture(GREEN, radius=25)] * 3
    counts = []
    for seed in range(40):
        clip = make(PRESETS["stm-coco"], seed, others=others)
        greens = [np.median(clip.frames[0][clip.masks[0] == k], axis=0).argmax() == 1 for k in clip.objects]
        counts.append(sum(greens))
    assert max(counts) >= 2
    assert 8 < sum(count > 0 for count in counts) < 30


@pytest.mark.parametrize("name", REDRAWN)
def test_masks_follow_the_picture_in_every_preset(name):
    recipe = replace(preset(name, thin_plate=0.5, grey=0.0, objects=9), smallest=0.0)
    others = [picture(GREEN, radius=25)] * recipe.others
    for seed in range(4):
        clip = make(recipe, seed, others=others)
        assert clip.objects
        for frame, mask in zip(clip.frames, clip.masks, strict=True):
            coloured = np.ptp(frame.astype(int), axis=-1) > 90
            assert (coloured != (mask > 0)).sum() <= 0.05 * max(coloured.sum(), 400)


@pytest.mark.parametrize("name", list(PRESETS))
def test_clips_have_the_presets_length_size_and_objects_from_one_upward(name):
    recipe = PRESETS[name]
    others = [picture(GREEN, radius=25)] * recipe.others
    clip = make(recipe, 0, others=others)
    assert clip.frames.shape == (recipe.frames, *recipe.size, 3)
    assert clip.objects == list(range(1, len(clip.objects) + 1))
    assert 1 <= len(clip.objects) <= recipe.objects


@pytest.mark.parametrize("name", list(PRESETS))
def test_same_generator_state_gives_the_same_bytes_on_any_number_of_opencvs_threads(name):
    recipe = preset(name, size=(200, 264), thin_plate=None if name == "steady" else 0.5)
    others = [picture(GREEN, radius=25)] * recipe.others
    threads, clips = cv2.getNumThreads(), []
    try:
        for count in (1, 2, 5):
            cv2.setNumThreads(count)
            clips.append(make(recipe, 7, others=others))
    finally:
        cv2.setNumThreads(threads)
    assert all((c.frames == clips[0].frames).all() and (c.masks == clips[0].masks).all() for c in clips)
    assert (make(recipe, 8, others=others).frames != clips[0].frames).any()


def test_another_process_with_other_threads_makes_the_same_bytes(tmp_path):
    changes, images = {"thin_plate": 1.0, "merge": 1.0, "objects": 3}, [picture(), picture(GREEN)]
    np.savez(tmp_path / "images.npz", frames=[i.frames for i in images], masks=[i.masks for i in images])
    code = f"""
import hashlib, numpy as np
from vosforge.clip import Clip
from vosforge.data.pseudo_presets import preset
from vosforge.data.pseudo_video import pseudo_video
with np.load("images.npz") as arrays:
    clips = [Clip("disc", f, m) for f, m in zip(arrays["frames"], arrays["masks"])]
clip = pseudo_video("clip", clips[0], clips[1:], preset("stcn", **{changes}), np.random.default_rng(3))
print(hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes()).hexdigest())
"""
    threads = {**os.environ, "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=threads, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    clip = make(preset("stcn", **changes), 3, images[0], images[1:])
    assert done.stdout.strip() == hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes()).hexdigest(), done.stderr


def test_image_row_is_the_same_whatever_was_made_before(tmp_path, build_shards):
    shards = build_shards(tmp_path, [replace(picture(), name=f"p{i}") for i in range(3)], kind="images")
    recipe = preset("aot", size=(96, 96), frames=2)
    items = [Still(image, copy, 5) for image in range(3) for copy in range(2)]
    there = {item: pseudo_video_table(open_stills(shards.uri, None, None), recipe, item) for item in items}
    stills = open_stills(shards.uri, None, None)
    assert all(pseudo_video_table(stills, recipe, item).equals(there[item]) for item in reversed(items))


def test_sampler_moves_stills_by_a_preset_on_the_fly(tmp_path, build_shards):
    shards = build_shards(tmp_path, [replace(picture(), name=f"p{i}") for i in range(3)], kind="images")
    recipe = SamplingRecipe(frames=4, crop=(80, 96), objects=2, still=PRESETS["aot"])
    sampler = ClipSampler([shards], recipe, seed=0, stage="images")
    clips = [sampler.clip(i) for i in range(6)]
    assert all(clip.frames.shape == (4, 80, 96, 3) and len(clip.objects) <= 2 for clip in clips)
    assert max(len(clip.objects) for clip in clips) == 2
    again = pickle.loads(pickle.dumps(sampler)).clip(3)
    assert (again.frames == clips[3].frames).all()
    other = ClipSampler([shards], replace(recipe, still=PRESETS["stcn"]), seed=0, stage="images")
    assert other.key != sampler.key


def test_single_values_change_and_the_rest_stays():
    assert preset("stcn", rotation=5.0, thin_plate=0.0, frames=8) == replace(
        PRESETS["stcn"], each=Affine(rotation=5.0, shear=10, scale=(0.9, 1.1)), thin_plate=0.0, frames=8
    )
    assert preset("stm-coco", paste=2, paste_drift=0.1).paste == (1, 2)
    assert preset("stm-coco", paste=0).paste == (0, 0)
    assert preset("steady", drift=0.01, shear=None) == replace(PRESETS["steady"], drift=0.01)


def test_paste_and_merge_work_together():
    recipe = replace(preset("stcn", merge=1.0, paste=1, objects=9), paste=(1, 1), grey=0.0)
    assert recipe.others == 2
    image, merged, pasted = picture(radius=80), picture(GREEN, radius=30), picture((20, 20, 230), radius=25)
    kinds = set()
    for seed in range(5):
        clip = make(recipe, seed, image, [merged, pasted])
        kinds |= {int(np.median(clip.frames[0][clip.masks[0] == k], axis=0).argmax()) for k in clip.objects}
    assert kinds == {0, 1, 2}


def test_other_pictures_without_objects_lie_nowhere():
    empty = Clip("empty", np.zeros((1, 60, 60, 3), np.uint8), np.zeros((1, 60, 60), np.uint8))
    for name in ("aot", "stm-coco"):
        clip = make(PRESETS[name], 0, others=[empty] * PRESETS[name].others)
        assert clip.objects == [1]


def test_grey_clips_are_grey_in_all_frames():
    clip = make(preset("stcn", grey=1.0), 0)
    assert np.ptp(clip.frames[clip.masks == 1].astype(int), axis=-1).max() <= 8


@pytest.mark.parametrize("name", list(PRESETS))
def test_image_without_an_object_is_refused_by_name(name):
    empty = Clip("beach", np.zeros((1, 60, 60, 3), np.uint8), np.zeros((1, 60, 60), np.uint8))
    with pytest.raises(UserError, match="beach: pseudo-video needs a picture with an object, its mask is empty"):
        make(PRESETS[name], 0, empty)


def test_unknown_presets_and_values_are_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"unknown preset 'davis' of pseudo-video; valid: steady, stcn, .*skn"):
        preset("davis")
    with pytest.raises(UserError, match=r"pseudo-video: preset stcn has no drift; valid: .*rotation.*thin_plate"):
        preset("stcn", drift=0.1)
    with pytest.raises(UserError, match="pseudo-video: preset steady has no thin_plate"):
        preset("steady", thin_plate=0.1)


def test_program_refuses_what_a_preset_does_not_have_before_it_reads_anything():
    program = Path(__file__).resolve().parents[2] / "datasets" / "pseudo_video.py"
    command = [sys.executable, program, "--data", "nowhere", "--out", "nowhere", "--preset", "emn", "--drift", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "preset emn has no drift" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", 0),
        ("size", (384, 1 << 20)),
        ("objects", 0),
        ("flip", -0.1),
        ("thin_plate", 1.5),
        ("merge", -1),
        ("grey", math.nan),
        ("smallest", -0.1),
        ("spread", math.inf),
        ("corners", 0.5),
        ("points", 2),
        ("zoom", 0.5),
        ("zoom", math.inf),
        ("area", (0.0, 1.0)),
        ("aspect", (-1, 1)),
        ("paste", (3, 1)),
        ("paste", (-1, 1)),
        ("paste_drift", (0.1, -0.1)),
        ("paste_drift", (math.nan, 0.1)),
        ("crop", "middle"),
    ],
)
def test_recipe_out_of_range_names_the_field(field, value):
    with pytest.raises(UserError, match=rf"pseudo-video: {field} must be .*, found "):
        RedrawnRecipe(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("rotation", -1), ("rotation", math.nan), ("shear", 90), ("scale", (0, 1)), ("scale", (2, 1)), ("shift", -0.1)],
)
def test_affine_map_out_of_range_names_the_field(field, value):
    with pytest.raises(UserError, match=rf"pseudo-video: affine map: {field} must be .*, found "):
        Affine(**{field: value})


@pytest.mark.parametrize(
    ("name", "change"), [("stcn", {"shear": 90.0}), ("stm-coco", {"paste": -1}), ("steady", {"drift": -1.0})]
)
def test_changed_value_out_of_range_is_refused(name, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} must be"):
        preset(name, **change)


def test_presets_are_plain_values_that_a_manifest_can_hold():
    for recipe in PRESETS.values():
        assert all(isinstance(v, (int, float, str, tuple, dict, type(None))) for v in asdict(recipe).values())
