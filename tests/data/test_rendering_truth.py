from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy_rasteriser import pixel_ids

from vosforge.data.rendered import Production, SceneItem, rendered_table
from vosforge.data.rendering import build_scene, encodings, preset, render_frame, truth
from vosforge.data.rendering.drawing import BACKGROUND_DEPTH
from vosforge.data.rendering.render import frame_buffers
from vosforge.errors import UserError

SIZE = {"height": 96, "width": 128}


def scenes(name, count=4, **changes):
    recipe = preset(name, **{"frames": 6, "speed": 2.0, "distractors": (0, 0), **SIZE, **changes})
    return [build_scene(recipe, 5, video) for video in range(count)]


def drawn(scene, t):
    buffers = frame_buffers(scene)
    frame, ids = render_frame(scene, t, buffers)
    return buffers, frame, ids


@pytest.mark.parametrize("name", ["bl30k", "hard"])
def test_flow_carries_the_mask_to_the_next_frame(name):
    wrong = total = moved = 0
    for scene in scenes(name, 6, speed=6.0):
        buffers, _, ids = drawn(scene, 2)
        flow, valid = truth.flow(scene, 2, buffers)
        _, following = drawn(scene, 3)[1:]
        after = frame_buffers(scene)
        depth = truth.depth(scene, 3, after)
        rows, columns = np.indices(ids.shape)
        x = np.floor(columns + 0.5 + flow[..., 0]).astype(int)
        y = np.floor(rows + 0.5 + flow[..., 1]).astype(int)
        # Pixels near outlines may land on either side; what is hidden there lies deeper than what is seen.
        inside = valid & (x >= 2) & (y >= 2) & (x < 126) & (y < 94) & interior(ids)
        here = truth.depth(scene, 2, buffers)
        there = np.zeros_like(inside)
        there[inside] = interior(following)[y[inside], x[inside]]
        inside &= there
        seen = inside & (ids > 0)
        seen[inside] &= depth[y[inside], x[inside]] > here[inside] - 0.3
        wrong += (following[y[seen], x[seen]] != ids[seen]).sum()
        total += seen.sum()
        moved += (np.abs(flow[seen]).max(axis=-1) > 2).sum()
    assert moved > 0.3 * total > 1000
    assert wrong < 0.005 * total


def interior(ids):
    same = np.ones_like(ids, bool)
    for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        same &= np.roll(ids, (down, right), axis=(0, 1)) == ids
    return same


def test_flow_agrees_with_the_projected_motion_of_a_known_point():
    scene = scenes("bl30k", 1)[0]
    buffers, _, ids = drawn(scene, 0)
    flow, valid = truth.flow(scene, 0, buffers)
    world = np.array([0.5, BACKGROUND_DEPTH, -0.4])

    def pixel(t):
        view = scene.cameras[t, 0, :, :3] @ world + scene.cameras[t, 0, :, 3]
        return view[:2] / view[2] * scene.focal + np.array([scene.width / 2, scene.height / 2])

    column, row = np.floor(pixel(0)).astype(int)
    assert ids[row, column] == 0
    assert valid.all()
    np.testing.assert_allclose(flow[row, column], pixel(1) - pixel(0), atol=0.05)


def test_the_last_frame_has_no_flow():
    scene = scenes("bl30k", 1)[0]
    assert not truth.flow(scene, 5, drawn(scene, 5)[0])[1].any()


@pytest.mark.parametrize("name", ["bl30k", "hard"])
def test_depth_orders_objects_as_ids_do(name):
    pairs = 0
    for scene in scenes(name):
        buffers, _, ids = drawn(scene, 1)
        depth = truth.depth(scene, 1, buffers)
        assert depth.min() > 0.05
        assert depth[ids > 0].max() < depth[ids == 0].min() + 6
        whole = truth.amodal(scene, 1, buffers)
        for n in range(1, scene.objects + 1):
            alone = only(scene, n)
            own = truth.depth(alone, 1, drawn(alone, 1)[0])
            hidden = whole[n - 1] & (ids != n) & (ids != 0) & interior(ids)
            assert (depth[hidden] < own[hidden] + 0.05).all()
            seen = whole[n - 1] & (ids == n)
            np.testing.assert_allclose(depth[seen & interior(ids)], own[seen & interior(ids)], atol=0.1)
            pairs += hidden.sum()
    assert pairs > 50


def only(scene, label):
    """The scene with all objects but one far behind the background, where they cover nothing that counts."""
    poses = scene.poses.copy()
    poses[:, :, scene.labels != label, :, 3] = (0, -60, 0)
    return dataclasses.replace(scene, poses=poses)


@pytest.mark.parametrize("name", ["bl30k", "hard"])
def test_amodal_masks_contain_the_seen_ones_and_are_what_an_object_covers_alone(name):
    shares = []
    for scene in scenes(name):
        buffers, _, ids = drawn(scene, 4)
        whole = truth.amodal(scene, 4, buffers)
        for n in range(1, scene.objects + 1):
            assert whole[n - 1][ids == n].all()
            np.testing.assert_array_equal(whole[n - 1], (pixel_ids(only(scene, n), 4) == n) | (ids == n))
        present = [n for n in range(1, scene.objects + 1) if (ids == n).any()]
        found = truth.visible_shares(ids, whole)
        np.testing.assert_allclose(found, [(ids == n).sum() / whole[n - 1].sum() for n in present])
        shares += found
    assert max(shares) == 1.0
    assert min(shares) < 1.0


def test_truth_does_not_depend_on_what_the_buffers_drew_before():
    scene = scenes("hard", 1)[0]
    fresh = frame_buffers(scene)
    expected = truth.flow(scene, 1, fresh)[0], truth.depth(scene, 1, fresh), truth.amodal(scene, 1, fresh)
    used = drawn(scene, 4)[0]
    found = truth.flow(scene, 1, used)[0], truth.depth(scene, 1, used), truth.amodal(scene, 1, used)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_flow_and_depth_hold_where_the_near_plane_cuts_an_object():
    scene = scenes("bl30k", 1)[0]
    poses, camera = scene.poses.copy(), scene.cameras[0, 0]
    poses[:, :, 0, :, 3] = camera[:, :3].T @ (np.array([0.0, 0.0, 0.45]) - camera[:, 3])
    cut = dataclasses.replace(scene, poses=poses, cameras=np.repeat(scene.cameras[:1], 6, axis=0))
    still = dataclasses.replace(cut, poses=np.repeat(poses[:1], 6, axis=0))
    buffers, _, ids = drawn(still, 0)
    assert buffers.faces_drawn > len(still.faces)
    assert (ids == 1).mean() > 0.2
    flow, valid = truth.flow(still, 0, buffers)
    assert valid.all()
    assert np.abs(flow).max() < 1e-3
    assert truth.depth(still, 0, buffers)[ids == 1].min() >= 0.0499


def test_encoded_flow_comes_back_to_a_64th_and_marks_what_does_not_fit():
    rng = np.random.default_rng(0)
    flow = rng.uniform(-500, 500, (20, 30, 2)).astype(np.float32)
    valid = rng.random((20, 30)) < 0.8
    flow[0, 0], valid[0, 0] = (600, 0), True
    found, kept = encodings.decode_flow(encodings.encode_flow(flow, valid))
    valid[0, 0] = False
    np.testing.assert_array_equal(kept, valid)
    np.testing.assert_allclose(found[valid], flow[valid], atol=0.5 / 64 + 1e-4)
    assert (found[~valid] == 0).all()


def test_encoded_flow_is_in_kittis_form():
    import cv2

    data = encodings.encode_flow(np.array([[[1.5, -2.25]]]), np.array([[True]]))
    blue, green, red = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[0, 0]
    assert (red, green, blue) == (32768 + 96, 32768 - 144, 1)


def test_encoded_depth_comes_back_to_a_2000th():
    depth = np.random.default_rng(0).uniform(0.05, 32, (20, 30)).astype(np.float32)
    np.testing.assert_allclose(encodings.decode_depth(encodings.encode_depth(depth)), depth, atol=0.0003)


@pytest.mark.parametrize("objects", [1, 3, 8, 9, 40])
def test_encoded_amodal_masks_come_back(objects):
    masks = np.random.default_rng(0).random((objects, 20, 30)) < 0.5
    np.testing.assert_array_equal(encodings.decode_amodal(encodings.encode_amodal(masks), objects), masks)


def test_bytes_of_another_kind_are_refused():
    depth = encodings.encode_depth(np.ones((20, 30)))
    with pytest.raises(UserError, match="flow: expected a PNG of 3"):
        encodings.decode_flow(depth)
    with pytest.raises(UserError, match="bytes that do not decode"):
        encodings.decode_depth(b"nothing")
    with pytest.raises(UserError, match="amodal: expected planes for 57 objects"):
        encodings.decode_amodal(encodings.encode_amodal(np.ones((8, 20, 30), bool)), 57)


def test_shards_carry_what_is_asked_for():
    recipe = preset("hard", frames=3, height=48, width=64)
    plain = rendered_table(Production(recipe), SceneItem(2, 7))
    rich = rendered_table(Production(recipe, outputs=truth.OUTPUTS), SceneItem(2, 7))
    for name in plain.column_names:
        if name not in truth.OUTPUTS:
            assert plain.column(name).equals(rich.column(name))
        else:
            assert plain.column(name).null_count == 3
    assert rich.column("flow").null_count == 1
    assert rich.column("video_id").to_pylist() == ["2-000007"] * 3
    for row in rich.to_pylist():
        whole = encodings.decode_amodal(row["amodal"], 5)
        areas = [int(whole[n - 1].sum()) for n in row["objects"]]
        expected = [seen / area for seen, area in zip(row["areas"], areas, strict=True)]
        np.testing.assert_allclose(row["visible"], expected, rtol=1e-6)
        assert encodings.decode_depth(row["depth"]).shape == (48, 64)
    with pytest.raises(UserError, match="outputs: expected some of flow"):
        Production(recipe, outputs=("normals",))
