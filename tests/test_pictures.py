from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from vosforge import pictures
from vosforge.errors import UserError
from vosforge.pictures import davis_palette


def test_overlay_tints_objects_and_leaves_the_ground():
    frame = np.full((40, 40, 3), 100, np.uint8)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 2
    shown = pictures.overlay(frame, mask, strength=0.5)
    assert (shown[mask == 0] == 100).all()
    assert (shown[20, 20] == [50, 114, 50]).all()
    assert (shown[10, 10:30] == davis_palette()[2]).all()
    assert (frame == 100).all()


def test_heat_glows_where_the_map_is_high_and_leaves_a_grey_frame_where_it_is_zero():
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[..., 0] = 200
    values = np.zeros((4, 6))
    values[1, 4], values[3, 0] = 1, 0.25
    shown = pictures.heat(frame, values).astype(int)
    assert shown.shape == frame.shape
    # The middles of cells (1, 4), (3, 0) and of two that are 0.
    brightness = shown.sum(axis=2)
    assert brightness[15, 45] > brightness[35, 5] > brightness[35, 45] == brightness[5, 15]
    assert (shown[35, 45] == shown[35, 45, 0]).all()
    assert (frame[..., 0] == 200).all()


@pytest.mark.parametrize("cell", [(0, 0), (1, 4), (3, 5)])
def test_cross_lies_on_the_middle_of_its_cell(cell):
    frame = np.full((80, 120, 3), 90, np.uint8)
    shown = pictures.cross(frame, cell, (4, 6))
    rows, columns = np.nonzero((shown != 90).any(axis=2))
    middle = 20 * cell[0] + 10, 20 * cell[1] + 10
    assert (shown[middle] == 255).all()
    assert abs(rows.mean() - middle[0]) < 1
    assert abs(columns.mean() - middle[1]) < 1
    assert (pictures.heat(frame, np.zeros((4, 6)), cell)[middle] == 255).all()


@pytest.mark.parametrize(
    "values", [np.zeros((4, 6, 1)), np.full((4, 6), 1.1), np.full((4, 6), -0.1), np.full((4, 6), np.nan)]
)
def test_heat_of_another_form_or_range_is_refused(values):
    with pytest.raises(UserError, match=r"a map of heat must be \(h, w\) in \[0, 1\], found \(4, 6"):
        pictures.heat(np.zeros((40, 60, 3), np.uint8), values)


def test_palette_begins_as_the_field_has_it():
    assert davis_palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert len(np.unique(davis_palette(), axis=0)) == 256


def test_contact_sheet_stacks_rows_of_different_lengths():
    red, blue = np.zeros((2, 20, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = pictures.contact_sheet([("reds", [red, red, red]), ("blue", [blue])], height=30)
    assert sheet.shape == (2 * (18 + 30), 3 * 60, 3)
    assert (sheet[18:48, :180] == [255, 0, 0]).all()
    assert (sheet[66:96, :60] == [0, 0, 255]).all()
    assert (sheet[66:96, 60:] == 255).all()
    assert (sheet[:18] < 128).any()


def test_contact_sheet_shrinks_large_pictures():
    assert pictures.contact_sheet([("", [np.zeros((400, 200, 3), np.uint8)])], height=100).shape == (118, 50, 3)


def test_png_comes_back_as_written(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    pictures.write_png(tmp_path / "new" / "a.png", picture)
    assert (np.asarray(Image.open(tmp_path / "new" / "a.png")) == picture).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_video_of_odd_size_has_all_frames_in_their_colours(tmp_path):
    frames = [np.full((33, 47, 3), [200, 60, 20], np.uint8) for _ in range(5)]
    pictures.write_video(tmp_path / "a.mp4", frames)
    reader = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    read = [reader.read()[1] for _ in range(int(reader.get(cv2.CAP_PROP_FRAME_COUNT)))]
    assert len(read) == 5
    assert read[0].shape == (34, 48, 3)
    assert np.abs(read[0][..., ::-1].mean(axis=(0, 1)) - [200, 60, 20]).max() < 12
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
