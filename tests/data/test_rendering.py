from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy_rasteriser import pixel_ids

from vosforge.data.rendering import SceneRecipe, build_scene, render_clip, render_frame
from vosforge.data.rendering.meshes import draw_mesh
from vosforge.data.rendering.numerics import BYTE_OF_LINEAR, LINEAR_LEVELS, LINEAR_OF_BYTE, sines
from vosforge.data.rendering.random_streams import RandomStream
from vosforge.data.rendering.raster import project, rasterise
from vosforge.data.rendering.textures import fit_picture
from vosforge.errors import UserError

SMALL = SceneRecipe(height=48, width=64, frames=6)
MEDIUM = SceneRecipe(height=96, width=128, frames=12)

IN_ANOTHER_PROCESS = """
import hashlib
from vosforge.data.rendering import SceneRecipe, render_clip
clip = render_clip(SceneRecipe(height=48, width=64, frames=6), 3, 8)
print(hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes()).hexdigest())
"""


def digest(clip) -> str:
    return hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes()).hexdigest()


@pytest.mark.parametrize("video", range(6))
def test_masks_agree_pixel_for_pixel_with_an_independent_rasteriser(video):
    scene = build_scene(SMALL, 1, video)
    for t in (0, SMALL.frames - 1):
        _, ids = render_frame(scene, t)
        np.testing.assert_array_equal(ids, pixel_ids(scene, t))
        assert ids.any()


def test_masks_agree_when_objects_reach_beyond_the_near_plane():
    scene = build_scene(SMALL, 1, 0)
    poses = scene.poses.copy()
    poses[:, 0, :, 3] = (0.2, -5.8, 0.1)
    scene = dataclasses.replace(scene, poses=poses)
    depth = (scene.points[scene.point_object == 0] @ poses[0, 0, :, :3].T + poses[0, 0, :, 3])[:, 1] + 5.8
    assert depth.min() < -0.5
    assert depth.max() > 0.1
    np.testing.assert_array_equal(render_frame(scene, 0)[1], pixel_ids(scene, 0))


def test_a_square_owns_its_top_and_left_edges_alone():
    corners = np.array([[2, 1], [6, 1], [6, 5], [2, 5]]) * 256 + 128
    # Seen from the camera, front faces turn clockwise in memory order 0, 2, 1.
    faces = np.array([[0, 2, 1], [0, 3, 2]], dtype=np.int32)
    triangle, nearest = np.empty((8, 9), np.int32), np.empty((8, 9), np.float32)
    rasterise(faces, corners, np.ones(4), triangle, nearest)
    covered = np.zeros((8, 9), bool)
    covered[1:5, 2:6] = True
    np.testing.assert_array_equal(triangle >= 0, covered)


@pytest.mark.parametrize(("depth", "drawn"), [(0.06, True), (0.04, False), (-1.0, False)])
def test_a_triangle_with_a_vertex_nearer_than_the_near_plane_is_dropped(depth, drawn):
    points = np.array([[-9.0, -9.0, 9.0], [9.0, -9.0, 9.0], [0.0, 0.0, depth]])
    camera = pose = np.eye(3, 4)
    world, screen, inverse_depth = np.empty((3, 3)), np.zeros((3, 2), np.int64), np.empty(3)
    project(points, np.zeros(3, np.int32), pose[None], camera, 8.0, 8.0, 8.0, 1, world, screen, inverse_depth)
    triangle, nearest = np.empty((16, 16), np.int32), np.empty((16, 16), np.float32)
    rasterise(np.array([[0, 2, 1]], dtype=np.int32), screen, inverse_depth, triangle, nearest)
    assert (triangle >= 0).any() == drawn


@pytest.mark.parametrize("target", ["host", "generic"])
def test_another_process_gives_the_same_bytes(target, tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)} if target == "generic" else dict(os.environ)
    if target == "generic":
        environment["NUMBA_CPU_NAME"] = "generic"
        environment["NPY_DISABLE_CPU_FEATURES"] = "X86_V4 X86_V3 AVX512F AVX2 FMA3"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == digest(render_clip(SMALL, 3, 8))


def test_videos_and_seeds_differ():
    clips = {digest(render_clip(SMALL, seed, video)) for seed, video in ((0, 0), (0, 1), (1, 0))}
    assert len(clips) == 3


@pytest.mark.parametrize("video", range(4))
def test_a_longer_clip_starts_with_the_frames_of_a_shorter_one(video):
    short = render_clip(SMALL, 5, video)
    recipe = dataclasses.replace(SMALL, speed=2.0)
    for changed, first in ((SMALL, short), (recipe, render_clip(recipe, 5, video))):
        longer = render_clip(dataclasses.replace(changed, frames=60), 5, video)
        np.testing.assert_array_equal(longer.frames[: len(first)], first.frames)
        np.testing.assert_array_equal(longer.masks[: len(first)], first.masks)


def test_every_object_is_seen_in_the_first_frame():
    for video in range(20):
        scene = build_scene(MEDIUM, 0, video)
        counts = np.bincount(render_frame(scene, 0)[1].ravel(), minlength=scene.objects + 1)
        assert 3 <= scene.objects <= 5
        assert len(counts) == scene.objects + 1
        assert counts[1:].min() > 0.005 * MEDIUM.height * MEDIUM.width


def test_objects_keep_their_ids_and_move_smoothly():
    scene = build_scene(dataclasses.replace(MEDIUM, frames=161, exits=0.0, pause_enter=0.0), 2, 1)
    steps = np.linalg.norm(np.diff(scene.poses[..., 3], axis=0), axis=-1)
    assert (steps.sum(axis=0) > 1.0).all()
    assert steps.max() < 0.4
    assert np.linalg.norm(np.diff(scene.poses[..., 3], n=2, axis=0), axis=-1).max() < 0.05
    masks = [render_frame(scene, t)[1] for t in range(0, 161, 4)]
    assert set(np.unique(masks)) <= set(range(scene.objects + 1))
    for n in range(1, scene.objects + 1):
        sight = np.linalg.inv(np.vstack([scene.cameras[0], [0, 0, 0, 1]]))[:3, 3]
        assert np.linalg.norm(scene.poses[0, n - 1, :, 3] - sight) > 1.0


def test_objects_hardly_ever_touch():
    touching = total = 0
    for video in range(20):
        scene = build_scene(dataclasses.replace(SMALL, frames=81), 4, video)
        reach = [np.linalg.norm(scene.points[scene.point_object == n], axis=1).max() for n in range(scene.objects)]
        radii = np.array(reach) * np.linalg.norm(scene.poses[0, :, :, 0], axis=-1)
        places = scene.poses[..., 3]
        for a in range(scene.objects):
            for b in range(a):
                gap = np.linalg.norm(places[:, a] - places[:, b], axis=-1) - radii[a] - radii[b]
                touching += int((gap < -0.05).any())
                total += 1
    assert touching < 0.03 * total


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
    ],
)
def test_a_bad_recipe_names_the_field(field, value):
    with pytest.raises(UserError, match=f"scene recipe: {field} "):
        SceneRecipe(**{field: value})


def test_sizes_from_tiny_to_portrait_and_crowds_work():
    for size in ((16, 16), (128, 96), (50, 333)):
        clip = render_clip(SceneRecipe(height=size[0], width=size[1], frames=2), 0, 0)
        assert clip.size == size
        assert clip.objects
    crowd = render_clip(SceneRecipe(height=96, width=128, frames=1, objects=(40, 40)), 0, 0)
    assert len(crowd.objects) > 30
