from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy_rasteriser import pixel_ids

from vosforge.data.rendering import PRESETS, SceneRecipe, build_scene, preset, render_clip, render_frame
from vosforge.data.rendering.build import _draw_scene
from vosforge.data.rendering.meshes import _from_sheet, draw_mesh
from vosforge.data.rendering.numerics import BYTE_OF_LINEAR, LINEAR_LEVELS, LINEAR_OF_BYTE, sines
from vosforge.data.rendering.random_streams import RandomStream, Streams
from vosforge.data.rendering.raster import rasterise
from vosforge.data.rendering.shading import majority
from vosforge.data.rendering.textures import fit_picture
from vosforge.errors import UserError

SMALL = SceneRecipe(height=48, width=64, frames=6)
MEDIUM = SceneRecipe(height=96, width=128, frames=12)

IN_ANOTHER_PROCESS = """
import hashlib, sys
from vosforge.data.rendering import preset, render_clip
for job in sys.argv[1:]:
    name, video = job.split(":")
    clip = render_clip(preset(name, height=48, width=64, frames=6, speed=4.0, blur=0.5), 3, int(video))
    print(job, hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes()).hexdigest())
"""
JOBS = [f"{name}:{video}" for name in ("bl30k", "hard") for video in (8, 9, 10)]


def digest(clip) -> str:
    return hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes()).hexdigest()


def digests(jobs, **environment) -> dict[str, str]:
    """What a process of its own renders, by job."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS, *jobs],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return dict(line.split() for line in run.stdout.splitlines())


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    """What this process renders."""
    result = {}
    for job in JOBS:
        name, video = job.split(":")
        recipe = preset(name, height=48, width=64, frames=6, speed=4.0, blur=0.5)
        result[job] = digest(render_clip(recipe, 3, int(video)))
    return result


@pytest.mark.parametrize("video", range(6))
def test_masks_agree_pixel_for_pixel_with_an_independent_rasteriser(video):
    scene = build_scene(SMALL, 1, video)
    for t in (0, SMALL.frames - 1):
        _, ids = render_frame(scene, t)
        np.testing.assert_array_equal(ids, pixel_ids(scene, t))
        assert ids.any()


@pytest.mark.parametrize("video", range(4))
def test_hard_masks_agree_with_the_independent_rasteriser(video):
    scene = build_scene(preset("hard", height=48, width=64, frames=6), 1, video)
    for t in (0, 5):
        _, ids = render_frame(scene, t)
        np.testing.assert_array_equal(ids, pixel_ids(scene, t))
    assert (scene.bends != 0).any() or video


@pytest.mark.parametrize("ahead", [(0.2, -0.1, 0.3), (-0.4, 0.1, 0.0), (0.0, 0.3, -0.1), (0.0, 0.0, 0.45)])
def test_masks_agree_when_objects_are_cut_by_the_near_plane(ahead):
    scene = build_scene(SMALL, 1, 0)
    poses, cameras = scene.poses.copy(), scene.cameras
    axes = cameras[0, 0, :, :3]
    poses[:, :, 0, :, 3] = axes.T @ (np.array(ahead) - cameras[0, 0, :, 3])
    scene = dataclasses.replace(scene, poses=poses)
    world = scene.points[scene.point_part == 0] @ poses[0, 0, 0, :, :3].T + poses[0, 0, 0, :, 3]
    depth = world @ cameras[0, 0, 2, :3] + cameras[0, 0, 2, 3]
    assert depth.min() < 0.05 < depth.max()
    ids = render_frame(scene, 0)[1]
    np.testing.assert_array_equal(ids, pixel_ids(scene, 0))
    assert (ids == 1).any()


def test_a_square_owns_its_top_and_left_edges_alone():
    corners = np.array([[2, 1], [6, 1], [6, 5], [2, 5]]) * 256 + 128
    # Seen from the camera, front faces turn clockwise in memory order 0, 2, 1.
    faces = np.array([[0, 2, 1], [0, 3, 2]], dtype=np.int32)
    part, open_sided, covered = np.zeros(2, np.int32), np.zeros(1, bool), np.zeros((8, 9), bool)
    covered[1:5, 2:6] = True
    for order in (faces, faces[:, ::-1]):
        triangle, nearest = np.full((8, 9), -1, np.int32), np.zeros((8, 9), np.float32)
        rasterise(order, 0, 2, part, open_sided, corners, np.ones(4), triangle, nearest)
        np.testing.assert_array_equal(triangle >= 0, covered)
    triangle, nearest = np.full((8, 9), -1, np.int32), np.zeros((8, 9), np.float32)
    rasterise(faces[:, ::-1], 0, 2, part, ~open_sided, corners, np.ones(4), triangle, nearest)
    assert (triangle < 0).all()


def test_samples_of_a_pixel_vote_and_the_first_wins_a_tie():
    for votes in np.ndindex(4, 4, 4, 4):
        counts = np.bincount(votes, minlength=4)
        expected = next(v for v in votes if counts[v] == counts.max())
        assert majority(*votes) == expected


def test_two_processes_that_share_the_work_in_any_order_give_the_same_bytes(expected):
    with ThreadPoolExecutor() as pool:
        halves = list(pool.map(digests, (JOBS[::-2], JOBS[::2])))
    assert {**halves[0], **halves[1]} == expected


def test_kernels_for_any_processor_give_the_same_bytes(expected, tmp_path):
    plain = "X86_V4 X86_V3 AVX512F AVX2 FMA3"
    found = digests(JOBS, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="generic", NPY_DISABLE_CPU_FEATURES=plain)
    assert found == expected


def test_videos_and_seeds_differ():
    clips = {digest(render_clip(SMALL, seed, video)) for seed, video in ((0, 0), (0, 1), (1, 0))}
    assert len(clips) == 3


@pytest.mark.parametrize("video", range(4))
def test_a_longer_clip_starts_with_the_frames_of_a_shorter_one(video):
    short = render_clip(SMALL, 5, video)
    fast = dataclasses.replace(SMALL, speed=2.0)
    hard = preset("hard", height=48, width=64, frames=6, speed=20.0, blur=0.5)
    for changed, first in ((SMALL, short), (fast, render_clip(fast, 5, video)), (hard, render_clip(hard, 5, video))):
        longer = render_clip(dataclasses.replace(changed, frames=60), 5, video)
        np.testing.assert_array_equal(longer.frames[: len(first)], first.frames)
        np.testing.assert_array_equal(longer.masks[: len(first)], first.masks)


@pytest.mark.parametrize("name", ["bl30k", "hard"])
def test_every_object_is_seen_in_the_first_frame(name):
    for video in range(20):
        scene = build_scene(preset(name, height=96, width=128, frames=12), 0, video)
        counts = np.bincount(render_frame(scene, 0)[1].ravel(), minlength=scene.objects + 1)
        assert 3 <= scene.objects <= 5
        assert len(counts) == scene.objects + 1
        assert counts[1:].min() > 0.005 * MEDIUM.height * MEDIUM.width


def test_a_clip_whose_objects_find_no_room_is_drawn_again():
    recipe = dataclasses.replace(SMALL, frames=1, objects=(5, 5), size=(0.4, 3.5), visible=0.03)
    attempts = []
    for video in range(8):
        clips = [_draw_scene(recipe, Streams(0, video, attempt), ())[2] for attempt in range(8)]
        first = next((n for n, faults in enumerate(clips) if faults == (0, 0)), clips.index(min(clips)))
        expected = _draw_scene(recipe, Streams(0, video, first), ())[0]
        np.testing.assert_array_equal(build_scene(recipe, 0, video).poses, expected.poses)
        attempts.append(first)
    assert max(attempts) > 0


@pytest.mark.parametrize("paths", ["polynomial", "spline"])
def test_objects_keep_their_ids_and_move_smoothly(paths):
    recipe = dataclasses.replace(MEDIUM, frames=321, pause_enter=0.0, paths=paths)
    scene = build_scene(recipe, 2, 1)
    places = scene.poses[:, 0, :, :, 3]
    steps = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    assert (steps.sum(axis=0) > 1.0).all()
    assert steps.max() < 0.4
    assert np.linalg.norm(np.diff(places, n=2, axis=0), axis=-1).max() < 0.05
    masks = [render_frame(scene, t)[1] for t in range(0, 321, 8)]
    assert set(np.unique(masks)) <= set(range(scene.objects + 1))


def spheres(scene):
    """Centres `(T, P, 3)` and radii `(P,)` of parts."""
    radii = []
    for n in range(len(scene.labels)):
        points = scene.points[scene.point_part == n]
        radii.append(max(np.linalg.norm(points @ pose.T, axis=1).max() for pose in scene.poses[::8, 0, n, :, :3]))
    return scene.poses[:, 0, :, :, 3], np.array(radii)


@pytest.mark.parametrize("paths", ["polynomial", "spline"])
def test_objects_hardly_ever_touch_one_another_or_the_camera(paths):
    touching = total = 0
    for video in range(20):
        scene = build_scene(dataclasses.replace(SMALL, frames=81, paths=paths), 4, video)
        places, radii = spheres(scene)
        eyes = -np.einsum("tji,tj->ti", scene.cameras[:, 0, :, :3], scene.cameras[:, 0, :, 3])
        for a in range(scene.objects):
            assert (np.linalg.norm(places[:, a] - eyes, axis=-1) > radii[a]).all()
            for b in range(a):
                gap = np.linalg.norm(places[:, a] - places[:, b], axis=-1) - radii[a] - radii[b]
                touching += int((gap < -0.05).any())
                total += 1
    assert touching < 0.02 * total


def test_polynomial_paths_go_through_five_control_points_without_regard_to_the_clips_length():
    scene = build_scene(dataclasses.replace(SMALL, frames=161), 3, 0)
    places = scene.poses[:, 0, :, :, 3].reshape(161, -1)
    times = np.arange(161) / 40
    through = np.polynomial.polynomial.polyfit(np.arange(5), places[::40], 4)
    np.testing.assert_allclose(places, np.polynomial.polynomial.polyval(times, through).T, atol=1e-8)
    fast = build_scene(dataclasses.replace(SMALL, frames=21, speed=8.0), 3, 0)
    np.testing.assert_allclose(fast.poses[:, 0, :, :, 3].reshape(21, -1), places[::8], atol=1e-9)


def test_linked_parts_stay_joined_and_keep_their_label():
    recipe = dataclasses.replace(SMALL, links=(3, 3), frames=40, objects=(2, 2), distractors=(1, 1))
    scene = build_scene(recipe, 0, 0)
    np.testing.assert_array_equal(scene.labels, [1, 1, 1, 2, 2, 2, 0, 0, 0])
    centres, radii = spheres(scene)
    for first in (0, 1, 3, 4, 6, 7):
        apart = np.linalg.norm(centres[:, first] - centres[:, first + 1], axis=-1)
        assert apart.max() < radii[first] + radii[first + 1]
        turned = np.einsum("tji,tjk->tik", scene.poses[:, 0, first, :, :3], scene.poses[:, 0, first + 1, :, :3])
        assert np.ptp(turned, axis=0).max() > 0.05


def test_distractors_hide_objects_but_have_no_id():
    recipe = dataclasses.replace(SMALL, frames=1, objects=(1, 1), distractors=(1, 1))
    scene = build_scene(recipe, 0, 0)
    poses = scene.poses.copy()
    poses[..., 1, :, :3] *= 3
    # Between the camera and the object.
    poses[..., 1, :, 3] = 0.5 * poses[..., 0, :, 3] + 0.5 * np.array([0.0, -5.5, 0.0])
    hidden = render_frame(dataclasses.replace(scene, poses=poses), 0)[1]
    assert set(np.unique(hidden)) <= {0, 1}
    assert (hidden == 1).sum() < 0.7 * (render_frame(scene, 0)[1] == 1).sum()


def test_shadows_darken_what_lies_behind_and_nothing_else():
    dark = 0
    for video in range(6):
        scene = build_scene(MEDIUM, 0, video)
        lit = render_frame(dataclasses.replace(scene, shadows=0), 0)
        shaded = render_frame(dataclasses.replace(scene, shadows=1), 0)
        np.testing.assert_array_equal(lit[1], shaded[1])
        assert (shaded[0] <= lit[0]).all()
        changed = (shaded[0] < lit[0]).any(axis=-1)
        assert not changed[lit[1] == 0].mean() > 0.02
        dark += changed.sum()
    assert dark > 200


def test_a_ball_does_not_shade_its_own_lit_side():
    scene = build_scene(dataclasses.replace(MEDIUM, objects=(1, 1), frames=1), 0, 0)
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 65), np.linspace(-np.pi / 2, np.pi / 2, 33), indexing="ij")
    ball = np.stack([np.cos(u) * np.cos(v), np.sin(u) * np.cos(v), np.sin(v)], axis=-1)
    mesh = _from_sheet(ball, np.stack([u, v], axis=-1), tube=False)
    parts = np.zeros(len(mesh.points), np.int32), np.zeros(len(mesh.faces), np.int32)
    scene = dataclasses.replace(scene, points=mesh.points, normals=mesh.normals, uvs=mesh.uvs, faces=mesh.faces)
    scene = dataclasses.replace(scene, point_part=parts[0], face_part=parts[1])
    for lamp in ((0.0, -11.0, 0.0), (8.0, -6.0, 4.0), (-9.0, 1.0, 6.0)):
        lamps = {"lamps": np.array([lamp]), "lamp_colours": np.full((1, 3), 90.0)}
        lit = render_frame(dataclasses.replace(scene, shadows=0, **lamps), 0)[0].astype(int)
        shaded = render_frame(dataclasses.replace(scene, shadows=1, **lamps), 0)[0].astype(int)
        assert lit.max() > 80
        assert np.abs(shaded - lit).max() <= 6


def test_motion_blur_smears_pixels_and_keeps_the_masks_of_the_middle():
    recipe = dataclasses.replace(MEDIUM, frames=2, speed=8.0)
    sharp, smeared = build_scene(recipe, 1, 0), build_scene(dataclasses.replace(recipe, blur=1.0), 1, 0)
    assert smeared.moments > 1
    np.testing.assert_array_equal(sharp.poses[:, -1], smeared.poses[:, -1])
    (plain, ids), (blurred, same) = render_frame(sharp, 1), render_frame(smeared, 1)
    np.testing.assert_array_equal(ids, same)
    assert np.abs(np.diff(blurred.astype(int), axis=1)).mean() < 0.8 * np.abs(np.diff(plain.astype(int), axis=1)).mean()
    assert abs(blurred.mean() - plain.mean()) < 3


def test_a_paused_object_stands_still():
    scene = build_scene(dataclasses.replace(SMALL, pause_enter=1.0, pause_stay=1.0), 0, 0)
    assert np.ptp(scene.poses, axis=0).max() == 0
    assert np.ptp(scene.cameras, axis=0).max() == 0


def test_clips_are_neither_dark_nor_burnt_out():
    for video in range(10):
        frames = render_clip(dataclasses.replace(SMALL, frames=1), 0, video).frames
        assert 60 < frames.mean() < 200


def test_user_pictures_show_up_and_keep_masks_unchanged():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[..., 0] = 200
    recipe = dataclasses.replace(SMALL, frames=2, picture_probability=1.0, gloss=(0.0, 0.0))
    clip = render_clip(recipe, 0, 0, [picture])
    assert clip.frames[..., 0].mean() > 60
    assert clip.frames[..., 1:].max() == 0
    np.testing.assert_array_equal(clip.masks, render_clip(recipe, 0, 0).masks)
    with pytest.raises(UserError, match=r"pictures\[0\]"):
        build_scene(recipe, 0, 0, [picture[..., 0]])


@pytest.mark.parametrize("shape", [(700, 500, 3), (10, 10, 3), (1, 1, 3), (64, 64, 3)])
def test_a_fitted_picture_keeps_its_colours_and_tiles_without_a_seam(shape):
    across = np.linspace(0, 250, shape[1])[None, :, None]
    picture = np.broadcast_to(across, shape).astype(np.uint8)
    fitted = fit_picture(picture, 64)
    assert fitted.shape == (64, 64, 3)
    assert picture.min() <= fitted.min() <= fitted.max() <= picture.max()
    row = fitted[0, :, 0].astype(int)
    assert abs(row[0] - row[-1]) <= np.abs(np.diff(row)).max()


@pytest.mark.parametrize("number", range(30))
def test_meshes_are_closed_and_wound_outwards(number):
    mesh = draw_mesh(RandomStream(0, number, "mesh"), 0.4)
    _, weld = np.unique(mesh.points, axis=0, return_inverse=True)
    faces = weld.reshape(-1)[mesh.faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward, counts = np.unique(edges, axis=0, return_counts=True)
    backward, counts_back = np.unique(edges[:, ::-1], axis=0, return_counts=True)
    np.testing.assert_array_equal(forward, backward)
    np.testing.assert_array_equal(counts, counts_back)
    corners = mesh.points[mesh.faces]
    assert np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) > 0
    assert np.linalg.norm(np.ptp(mesh.points, axis=0)) == pytest.approx(1.0)


def test_draws_are_frozen():
    stream = RandomStream(7, 11, "object", 2, "size")
    assert [stream.integer(0, 999) for _ in range(4)] == [374, 711, 541, 755]


def test_sine_and_srgb_tables_agree_with_the_mathematics():
    angles = np.linspace(-50, 50, 10001)
    np.testing.assert_allclose(sines(angles), np.sin(angles), atol=1e-10)
    round_trip = BYTE_OF_LINEAR[np.rint(LINEAR_OF_BYTE * LINEAR_LEVELS).astype(int)]
    np.testing.assert_array_equal(round_trip[20:], range(20, 256))
    assert LINEAR_OF_BYTE[128] == pytest.approx(0.2158605, abs=1e-6)


def test_a_recipe_survives_json():
    recipe = dataclasses.replace(SMALL, objects=(2, 7), textures=("cells", "dots"))
    assert SceneRecipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objects", (0, 3)),
        ("objects", (1, 256)),
        ("objects", (5, 3)),
        ("objects", 4),
        ("height", 0),
        ("width", 12.5),
        ("frames", 0),
        ("speed", float("nan")),
        ("textures", ("marble",)),
        ("textures", ()),
        ("brightness", (0.0, 0.5)),
        ("exits", 2),
        ("paths", "straight"),
        ("lights", (0, 1)),
        ("links", (1, 9)),
        ("blur", -0.1),
    ],
)
def test_a_bad_recipe_names_the_field(field, value):
    with pytest.raises(UserError, match=f"scene recipe: {field} "):
        SceneRecipe(**{field: value})


def test_a_preset_takes_changes_and_must_exist():
    assert preset("hard", frames=7, width=None) == dataclasses.replace(PRESETS["hard"], frames=7)
    with pytest.raises(UserError, match="bl30k, hard"):
        preset("easy")


def test_sizes_from_tiny_to_portrait_and_crowds_work():
    for size in ((16, 16), (128, 96), (50, 333)):
        clip = render_clip(SceneRecipe(height=size[0], width=size[1], frames=2), 0, 0)
        assert clip.size == size
        assert clip.objects
    crowd = render_clip(SceneRecipe(height=96, width=128, frames=1, objects=(40, 40)), 0, 0)
    assert len(crowd.objects) > 30
