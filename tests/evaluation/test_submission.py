from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from vosforge.errors import UserError
from vosforge.evaluation.predictions import open_masks
from vosforge.evaluation.submission import Gathering, write_submission
from vosforge.evaluation.truth import Truth
from vosforge.pictures import davis_palette


@pytest.fixture
def gathering(make_clip, write_davis, write_masks, tmp_path):
    clips = [make_clip("b"), make_clip("a", objects=2)]
    truth = Truth(str(write_davis(tmp_path / "truth", *clips)))
    masks = open_masks(str(write_masks(tmp_path / "masks", *clips)))
    return lambda meta=None, to="gathered": Gathering(truth, masks, meta, tmp_path / to)


def test_zip_holds_every_frame_as_palette_png_without_a_top_folder(gathering, make_clip, tmp_path):
    assert write_submission(tmp_path / "out.zip", gathering()) == 10
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert names[:2] == ["a/00000.png", "a/00001.png"]
        image = Image.open(io.BytesIO(archive.read("a/00002.png")))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), make_clip("a", objects=2).masks[2])
    assert np.array_equal(np.reshape(image.getpalette(), (-1, 3))[:9], davis_palette()[:9])


def test_same_masks_give_the_same_bytes(gathering, zip_folder, tmp_path):
    write_submission(tmp_path / "one.zip", gathering())
    again = gathering(to="again")
    again.masks = open_masks(str(zip_folder(again.masks.folder, tmp_path / "masks.zip", top="Annotations")))
    write_submission(tmp_path / "two.zip", again, workers=2)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_frames_listed_by_meta_are_those_submitted(gathering, tmp_path):
    meta = {
        "a": {"objects": {"1": {"frames": ["00000", "00004"]}, "2": {"frames": ["00002", "00004"]}}},
        "b": {"objects": {"1": {"frames": ["00003"]}}},
    }
    write_submission(tmp_path / "out.zip", gathering(meta), top="Annotations")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == [
            f"Annotations/{name}.png" for name in ("a/00000", "a/00002", "a/00004", "b/00003")
        ]


def test_submission_that_is_not_complete_is_not_written(gathering, tmp_path):
    (tmp_path / "masks" / "a" / "00004.png").unlink()
    with pytest.raises(UserError, match=r"out\.zip: not written, .*a/00004\.png: no predicted mask"):
        write_submission(tmp_path / "out.zip", gathering())
    assert not (tmp_path / "out.zip").exists()
    assert not list(tmp_path.glob("*.aside"))
