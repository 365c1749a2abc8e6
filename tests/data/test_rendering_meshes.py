from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh
from numpy_rasteriser import pixel_ids
from PIL import Image

from vosforge.data.rendered import Pictures, Production, SceneItem, rendered_table
from vosforge.data.rendering import build_scene, preset, render_frame, user_meshes
from vosforge.data.rendering.user_meshes import MeshLibrary, find_meshes, load_model, survey
from vosforge.errors import UserError

RECIPE = preset("bl30k", frames=2, height=48, width=64, mesh_probability=1.0, own_look=1.0)


@pytest.fixture
def folder(tmp_path):
    """A box with a texture in OBJ, a ball with inside-out faces in PLY, a two-part GLB, an open sheet."""
    texture = np.zeros((16, 16, 3), np.uint8)
    texture[:8] = (250, 10, 10)
    Image.fromarray(texture).save(tmp_path / "skin.png")
    (tmp_path / "box.mtl").write_text("newmtl skin\nmap_Kd skin.png\n")
    corners = [(x, y, z) for x in (0, 30) for y in (0, 20) for z in (0, 10)]
    quads = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    lines = ["mtllib box.mtl", "usemtl skin", *(f"v {x} {y} {z}" for x, y, z in corners)]
    lines += ["vt 0 0", "vt 1 0", "vt 1 1", "vt 0 1"]
    lines += ["f " + " ".join(f"{v}/{n + 1}" for n, v in enumerate(quad)) for quad in quads]
    (tmp_path / "box.obj").write_text("\n".join(lines))
    ball = trimesh.creation.icosphere(subdivisions=2)
    ball.faces = ball.faces[:, ::-1]
    ball.export(tmp_path / "ball.ply")
    scene = trimesh.Scene([trimesh.creation.box((1, 1, 3)), trimesh.creation.cylinder(0.3, 2)])
    scene.export(tmp_path / "two.glb")
    sheet = trimesh.Trimesh([[0, 0, 0], [2, 0, 0], [2, 0, 2], [0, 0, 2]], [[0, 1, 2], [0, 2, 3]], process=False)
    sheet.export(tmp_path / "sheet.ply")
    return tmp_path


def library(folder):
    return MeshLibrary(folder, [survey(folder, name) for name in find_meshes(folder)])


def test_meshes_of_three_kinds_become_models_of_unit_size(folder):
    assert find_meshes(folder) == ["ball.ply", "box.obj", "sheet.ply", "two.glb"]
    for name in find_meshes(folder):
        model = load_model(folder / name)
        points = np.concatenate([mesh.points for mesh in model.meshes])
        assert np.linalg.norm(np.ptp(points, axis=0)) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(points.max(axis=0) + points.min(axis=0), 0, atol=1e-5)
        for mesh in model.meshes:
            np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)
            assert mesh.faces.max() < len(mesh.points) == len(mesh.uvs)
    assert len(load_model(folder / "two.glb").meshes) == 2


def test_texture_and_its_coordinates_come_along(folder):
    mesh = load_model(folder / "box.obj").meshes[0]
    assert mesh.look.shape == (16, 16, 3)
    # The upper half of the picture is red, where files put v above 0.5 and we below.
    assert mesh.look[0, 0].tolist() == [250, 10, 10]
    assert set(np.round(mesh.uvs.ravel(), 5)) == {0.0, 1.0}


def test_edges_of_a_box_are_sharp_and_a_ball_is_smooth_however_it_is_wound(folder):
    box, ball = load_model(folder / "box.obj").meshes[0], load_model(folder / "ball.ply").meshes[0]
    assert (np.abs(box.normals).max(axis=1) > 0.999).all()
    outwards = ball.points / np.linalg.norm(ball.points, axis=1, keepdims=True)
    assert (np.abs((ball.normals * outwards).sum(axis=1)) > 0.98).all()
    assert len(ball.points) < len(ball.faces)


def test_masks_of_user_meshes_agree_with_the_independent_rasteriser(folder):
    models = library(folder)
    for video in range(4):
        scene = build_scene(RECIPE, 0, video, (), models)
        assert not scene.closed.any()
        np.testing.assert_array_equal(render_frame(scene, 1)[1], pixel_ids(scene, 1))


def test_both_sides_of_an_open_sheet_are_seen_and_lit_alike(folder):
    models = [load_model(folder / "sheet.ply")]
    scene = build_scene(dataclasses.replace(RECIPE, objects=(1, 1)), 0, 0, (), models)
    turned = dataclasses.replace(scene, faces=np.ascontiguousarray(scene.faces[:, ::-1]), normals=-scene.normals)
    for t in range(2):
        (a, ids), (b, same) = render_frame(scene, t), render_frame(turned, t)
        np.testing.assert_array_equal(ids, same)
        assert ids.any()
        # Weights of corners are summed in another order.
        assert np.abs(a.astype(int) - b).max() <= 1


def test_useless_files_are_skipped_and_named(folder):
    (folder / "broken.glb").write_bytes(b"glTF but not really")
    (folder / "empty.obj").write_text("# nothing\n")
    (folder / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (folder / "copy.ply").write_bytes((folder / "ball.ply").read_bytes())
    models = library(folder)
    assert len(models) == 4
    assert [file.name for file in models.skipped] == ["broken.glb", "empty.obj", "flat.obj"]
    assert all(str(folder / file.name) in file.reason for file in models.skipped)
    with pytest.raises(UserError, match="none of 1 meshes"):
        MeshLibrary(folder, [survey(folder, "empty.obj")])


def test_models_beyond_the_limits_are_refused_and_fine_ones_made_coarser(folder, monkeypatch):
    fine = trimesh.creation.icosphere(subdivisions=6)
    fine.export(folder / "fine.ply")
    assert len(fine.faces) > user_meshes.DRAWN_TRIANGLES
    model = load_model(folder / "fine.ply").meshes[0]
    assert 2000 < len(model.faces) <= user_meshes.DRAWN_TRIANGLES
    radii = np.linalg.norm(model.points, axis=1)
    assert np.ptp(radii) < 0.02
    used = np.unique(
        np.sort(np.unique(model.points.round(6), axis=0, return_inverse=True)[1][model.faces], axis=1), axis=0
    )
    assert len(used) == len(model.faces)
    monkeypatch.setattr(user_meshes, "MOST_TRIANGLES", 1000)
    assert "found 81,920" in survey(folder, "fine.ply").reason


def test_shapenets_layout_takes_its_normalised_models_alone(folder):
    place = folder / "02691156" / "1a04e3" / "models"
    place.mkdir(parents=True)
    (place / "model_normalized.obj").write_text((folder / "box.obj").read_text())
    assert find_meshes(folder) == ["02691156/1a04e3/models/model_normalized.obj"]


def test_a_library_is_known_by_its_content_and_refuses_changed_files(folder, tmp_path_factory):
    models = library(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in folder.iterdir():
        (elsewhere / path.name.replace("ball", "zebra")).write_bytes(path.read_bytes())
    other = library(elsewhere)
    assert other.digest == models.digest
    production = Production(RECIPE, models=models)
    same = rendered_table(dataclasses.replace(production, models=other), SceneItem(0, 3))
    assert rendered_table(production, SceneItem(0, 3)).equals(same)
    third = tmp_path_factory.mktemp("third")
    (third / "ball.ply").write_bytes((folder / "ball.ply").read_bytes())
    changing = library(third)
    trimesh.creation.box().export(third / "ball.ply")
    with pytest.raises(UserError, match="has changed"):
        changing[0]
    (third / "ball.ply").unlink()
    with pytest.raises(UserError, match="every node"):
        changing[0]


def test_pictures_are_found_below_a_folder_and_known_by_content(tmp_path):
    (tmp_path / "below").mkdir()
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "below" / "a.png")
    Image.fromarray(np.full((9, 9, 3), 40, np.uint8)).save(tmp_path / "b.png")
    pictures = Pictures(tmp_path)
    assert [picture.shape for picture in pictures] == [(9, 9, 3), (20, 30, 3)]
    assert len(pictures.digest) == 64
    assert len(Pictures(None)) == 0


def test_pictures_that_cannot_be_read_are_skipped_and_named_and_hidden_files_ignored(tmp_path):
    Image.fromarray(np.full((9, 9, 3), 40, np.uint8)).save(tmp_path / "b.png")
    alone = Pictures(tmp_path)
    (tmp_path / "._b.jpg").write_bytes(b"left by a Mac")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "d.jpg").write_bytes(b"no picture")
    assert Pictures(tmp_path).skipped == []
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    (tmp_path / "e.jpg").symlink_to(tmp_path / "nowhere.jpg")
    pictures = Pictures(tmp_path)
    assert len(pictures) == 1
    assert pictures.digest == alone.digest
    for name, reason in zip(("c.jpg", "e.jpg"), pictures.skipped, strict=True):
        assert str(tmp_path / name) in reason
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match=r"none of 2 pictures can be used; .*c\.jpg"):
        Pictures(tmp_path)


def test_links_to_nowhere_and_hidden_files_are_no_meshes(folder):
    (folder / "gone.obj").symlink_to(folder / "nowhere.obj")
    (folder / "._ball.ply").write_bytes(b"left by a Mac")
    models = library(folder)
    assert len(models) == 4
    assert [file.name for file in models.skipped] == ["gone.obj"]
    assert "gone.obj: cannot be read (No such file or directory)" in models.skipped[0].reason


def test_a_rejected_scene_is_named_as_its_video_would_be():
    item = SceneItem(3, 17)
    table = rendered_table(Production(preset("bl30k", frames=1, height=32, width=48)), item)
    assert set(table.column("video_id").to_pylist()) == {item.video_id} == {"3-000017"}


@pytest.mark.parametrize("quality", [0, 101, 9.5])
def test_quality_out_of_range_is_refused(quality):
    with pytest.raises(UserError, match=r"quality must be a whole number in 1\.\.100"):
        Production(RECIPE, quality=quality)
