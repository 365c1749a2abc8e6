from __future__ import annotations

import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.data.sampling import ClipSampler, SamplingRecipe
from vosforge.errors import UserError

RECIPE = SamplingRecipe(frames=3, crop=(64, 80), gaps=((0.0, 3),))
PLAIN = replace(RECIPE, rotation=0, shear=0, colour=0)
STEP = 6


def numbered_video(name: str, frames: int = 30, annotated: np.ndarray | None = None) -> Clip:
    """Frame t has the grey level STEP * t all over, and a drifting object."""
    levels = (STEP * np.arange(frames)).astype(np.uint8)
    masks = np.zeros((frames, 90, 120), np.uint8)
    for t in range(frames):
        masks[t, 20:70, 30 + t : 80 + t] = 4
    if annotated is not None:
        masks[~annotated] = 0
    return Clip(name, np.broadcast_to(levels[:, None, None, None], (frames, 90, 120, 3)).copy(), masks, annotated)


def textured(name: str, seed: int, frames: int = 1) -> Clip:
    noise = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    mask[20:70, 30:80] = 1
    return Clip(name, np.repeat(cv2.GaussianBlur(noise, (0, 0), 3)[None], frames, 0), np.repeat(mask[None], frames, 0))


def shown_frames(clip: Clip) -> list[int]:
    return [round(float(np.median(frame)) / STEP) for frame in clip.frames]


def equal(one: Clip, two: Clip) -> bool:
    return bool((one.frames == two.frames).all() and (one.masks == two.masks).all())


@pytest.fixture
def mixed(tmp_path, build_shards):
    stills = build_shards(tmp_path / "stills", [textured(f"s{i}", i) for i in range(4)], kind="images")
    videos = build_shards(tmp_path / "videos", [textured(f"v{i}", 10 + i, frames=8) for i in range(3)])
    return [stills, videos]


def test_clip_depends_on_its_number_alone_and_not_on_the_order(mixed):
    forward = ClipSampler(mixed, RECIPE, seed=1, stage="videos")
    backward = pickle.loads(pickle.dumps(ClipSampler(mixed, RECIPE, seed=1, stage="videos")))
    there = {i: backward.clip(i) for i in reversed(range(10))}
    assert all(equal(forward.clip(i), there[i]) for i in range(10))


def test_sampler_that_has_read_files_still_travels(mixed):
    sampler = ClipSampler(mixed, RECIPE, seed=1, stage="videos")
    first = sampler.clip(5)
    assert equal(pickle.loads(pickle.dumps(sampler)).clip(5), first)


def test_clip_changes_with_number_seed_stage_and_recipe(mixed):
    first = ClipSampler(mixed, RECIPE, seed=1, stage="videos").clip(0)
    others = [
        ClipSampler(mixed, RECIPE, seed=1, stage="videos").clip(1),
        ClipSampler(mixed, RECIPE, seed=2, stage="videos").clip(0),
        ClipSampler(mixed, RECIPE, seed=1, stage="images").clip(0),
        ClipSampler(mixed, replace(RECIPE, gaps=((0.0, 2),)), seed=1, stage="videos").clip(0),
    ]
    assert not any(equal(first, other) for other in others)


def test_clips_have_the_crop_and_objects_from_one_upward(mixed):
    sampler = ClipSampler(mixed, RECIPE, seed=0, stage="videos")
    for i in range(12):
        clip = sampler.clip(i)
        assert clip.frames.shape == (3, 64, 80, 3)
        present = set(np.unique(clip.masks[0]).tolist()) - {0}
        assert present == set(range(1, len(present) + 1))
        assert 1 <= len(present) <= RECIPE.objects


def test_neighbouring_frames_are_at_most_the_gap_apart_in_both_directions(tmp_path, build_shards):
    sampler = ClipSampler([build_shards(tmp_path, [numbered_video("a")])], PLAIN, seed=0, stage="videos")
    steps = np.stack([np.diff(shown_frames(sampler.clip(i))) for i in range(40)])
    assert set(np.abs(steps).ravel().tolist()) == {1, 2, 3}
    assert (np.sign(steps[:, 0]) == np.sign(steps[:, 1])).all()
    assert 5 < (steps[:, 0] > 0).sum() < 35


def test_short_video_gives_all_frames_there_are(tmp_path, build_shards):
    shards = build_shards(tmp_path, [numbered_video("a", frames=2)])
    clip = ClipSampler([shards], PLAIN, seed=0, stage="videos").clip(0)
    assert len(clip) == 3
    assert set(shown_frames(clip)) == {0, 1}


def test_only_annotated_frames_are_used(tmp_path, build_shards):
    annotated = np.arange(30) % 5 == 0
    shards = build_shards(tmp_path, [numbered_video("a", annotated=annotated)])
    sampler = ClipSampler([shards], PLAIN, seed=0, stage="videos")
    for i in range(15):
        clip = sampler.clip(i)
        assert all(t % 5 == 0 for t in shown_frames(clip))
        assert (clip.masks.reshape(3, -1).max(axis=1) == 1).all()


def test_crop_shows_an_object_and_masks_move_with_the_picture(tmp_path, build_shards):
    clip = textured("a", 0, frames=5)
    frames = np.where(clip.masks[..., None] > 0, np.uint8([230, 20, 20]), np.uint8([110, 110, 120]))
    shards = build_shards(tmp_path, [Clip("a", frames, clip.masks)])
    sampler = ClipSampler([shards], RECIPE, seed=0, stage="videos")
    for i in range(10):
        drawn = sampler.clip(i)
        red = drawn.frames[..., 0].astype(int) - drawn.frames[..., 1] > 90
        assert (red & (drawn.masks == 1)).sum() > 0.95 * (red | (drawn.masks == 1)).sum()


def test_still_images_become_moving_clips(tmp_path, build_shards):
    shards = build_shards(tmp_path, [textured(f"s{i}", i) for i in range(3)], kind="images")
    sampler = ClipSampler([shards], RECIPE, seed=0, stage="images")
    clip = sampler.clip(0)
    assert clip.frames.shape == (3, 64, 80, 3)
    assert np.abs(clip.frames[0].astype(int) - clip.frames[2]).mean() > 1
    assert clip.masks[0].any()


def test_data_sets_are_drawn_by_their_repeats(tmp_path, build_shards):
    sets = [
        build_shards(tmp_path / name, [numbered_video(f"{name}{i}") for i in range(count)], dataset=name.upper())
        for name, count in (("davis", 2), ("youtube", 8))
    ]
    sampler = ClipSampler(sets, PLAIN, 0, "videos", repeats=[("davis", 4.0)])
    drawn = [sampler._video(np.random.default_rng(i))[1].dataset for i in range(400)]
    # Two videos four times against eight once.
    assert 160 < drawn.count("DAVIS") < 240
    with pytest.raises(UserError, match=r"repeats must be at least 0 and leave something to draw, found"):
        ClipSampler(sets, PLAIN, 0, "videos", repeats=[("davis", 0), ("youtube", 0)])


def test_gaps_follow_the_progress_of_the_stage(tmp_path, build_shards):
    recipe = replace(PLAIN, gaps=((0.0, 1), (0.5, 6)))
    sampler = ClipSampler([build_shards(tmp_path, [numbered_video("a")])], recipe, 0, "videos", clips=60)
    largest = [int(np.abs(np.diff(shown_frames(sampler.clip(i)))).max()) for i in range(60)]
    assert set(largest[:30]) == {1}
    assert max(largest[30:]) > 3
    # Probe clips lie beyond the stage's last one, and have its largest gap.
    assert max(int(np.abs(np.diff(shown_frames(sampler.clip((1 << 40) + i)))).max()) for i in range(20)) > 3


def test_gaps_count_frames_of_the_video_where_every_fifth_is_annotated(tmp_path, build_shards):
    video = numbered_video("a", frames=20)
    ids = tuple(f"{5 * t:05d}" for t in range(20))
    shards = build_shards(tmp_path, [replace(video, frame_ids=ids)])
    sampler = ClipSampler([shards], replace(PLAIN, gaps=((0.0, 10),)), 0, "videos")
    steps = {int(step) for i in range(30) for step in np.abs(np.diff(shown_frames(sampler.clip(i))))}
    assert steps == {1, 2}


def test_void_is_background_in_training(tmp_path, build_shards):
    video = numbered_video("a")
    masks = video.masks.copy()
    masks[:, :12] = 255
    shards = build_shards(tmp_path, [replace(video, masks=masks)])
    (found,) = shards.videos
    without = replace(found, objects=found.objects[found.objects != 255])
    shards.__dict__["videos"] = [without]
    sampler = ClipSampler([shards], PLAIN, 0, "videos")
    assert max(int(sampler.clip(i).masks.max()) for i in range(10)) <= len(without.objects)


@pytest.mark.parametrize("gaps", [(), ((0.1, 3),), ((0.0, 0),), ((0.0, 3), (0.5, 2), (0.2, 9))])
def test_gaps_that_mean_nothing_are_refused(gaps):
    with pytest.raises(UserError, match="expected gaps from progress 0 on"):
        SamplingRecipe(gaps=gaps)


def test_sets_without_objects_are_refused_by_name(tmp_path, build_shards):
    clip = Clip("a", np.zeros((3, 32, 32, 3), np.uint8), np.zeros((3, 32, 32), np.uint8))
    shards = build_shards(tmp_path, [clip])
    with pytest.raises(UserError, match=f"stage videos: no video with an object in {tmp_path}"):
        ClipSampler([shards], RECIPE, seed=0, stage="videos")
