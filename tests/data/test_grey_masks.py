"""Which grey masks are ids and which are anti-aliased, and captions on pictures."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from vosforge import pictures
from vosforge.data.image_files import decode_mask
from vosforge.errors import UserError

MOST = 24


def grey(mask: np.ndarray, mode: str = "L") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask).convert(mode).save(stream, format="PNG")
    return stream.getvalue()


def stripes(*levels: int) -> np.ndarray:
    """One column of pixels for each level."""
    return np.tile(np.array(levels, np.uint8), (4, 1))


def soft(top: int, edge: list[int]) -> np.ndarray:
    """A square of one level whose border fades through others."""
    mask = np.zeros((40, 40), np.uint8)
    for i, level in enumerate(edge):
        mask[i + 1 : 39 - i, i + 1 : 39 - i] = level
    inner = len(edge) + 1
    mask[inner : 40 - inner, inner : 40 - inner] = top
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        stripes(*range(MOST)),
        stripes(0, *range(254 - MOST + 2, 255)),
        stripes(0, 1, 2, 255),
        stripes(0, 1, 3, 255),
        stripes(0, 2, 255),
        stripes(1, 2, 255),
        np.pad(stripes(2, 2, 2), ((0, 40), (0, 40)), constant_values=255),
        stripes(*range(MOST - 1), 255),
        stripes(0, 200),
        stripes(0, 3, 254),
        stripes(7),
    ],
    ids=[
        "as many as may be",
        "high",
        "void",
        "gap beside void",
        "one id beside void",
        "void without background",
        "thick beside much void",
        "void and as many as may be",
        "one",
        "gaps",
        "no background",
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_grey_levels_that_can_be_ids_are_kept(mask, mode):
    found = decode_mask(grey(mask, mode), "m.png")
    assert (found == mask).all()
    assert found.dtype == np.uint8


@pytest.mark.parametrize(
    ("mask", "levels"),
    [
        (stripes(*range(MOST + 1)), MOST + 1),
        (stripes(*range(MOST), 255), MOST + 1),
        (soft(255, [51, 102, 153, 204]), 6),
        (soft(255, [128]), 3),
        (soft(255, [1, 5]), 4),
        (soft(255, [3, 2]), 4),
        (np.pad(stripes(128, 128, 128), ((0, 4), (0, 40)), constant_values=255), 2),
        (cv2.GaussianBlur(soft(100, []), (0, 0), 3), None),
    ],
    ids=["one too many", "one too many with void", "a few", "one", "low", "low with a gap", "two grey codes", "dim"],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "LA"])
def test_anti_aliased_masks_are_refused_with_their_levels(mask, levels, mode):
    levels = levels or len(np.unique(mask))
    with pytest.raises(UserError) as error:
        decode_mask(grey(mask, mode), "bear/00003.png")
    assert str(error.value) == (
        f"bear/00003.png: expected object ids, found {levels} grey levels: an anti-aliased mask; threshold it"
    )


def test_the_same_levels_in_a_palette_are_ids():
    mask = soft(255, [51, 102, 153, 204])
    image = Image.fromarray(mask, mode="P")
    image.putpalette([value for value in range(256) for _ in range(3)])
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    assert (decode_mask(stream.getvalue(), "m.png") == mask).all()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (80, 200, 3), np.uint8)


def test_caption_stands_at_the_lower_edge_in_white_with_a_dark_border(picture):
    before = picture.copy()
    shown = pictures.captioned(picture, "quality 3: 0.97")
    assert (picture == before).all()
    assert (shown.shape, shown.dtype) == (picture.shape, np.uint8)
    rows, columns = np.nonzero((shown != picture).any(axis=2))
    # Letters stand on a line 8 pixels above the edge.
    assert 52 <= rows.min() < rows.max() < 80
    assert 0 <= columns.min() <= 8
    assert (shown == 255).all(axis=2).any()
    assert (shown == 0).all(axis=2).any()


def test_pictures_without_text_stay_as_they_are(picture):
    before = picture.copy()
    shown = pictures.captioned(picture, "")
    assert (shown == before).all()
    assert shown.shape == before.shape


def test_longer_captions_are_wider_and_other_words_look_different(picture):
    def width(text: str) -> int:
        return int(np.nonzero((pictures.captioned(picture, text) != picture).any(axis=(0, 2)))[0].max())

    assert width("3") < width("3: 0.97") < width("3: 0.97, 6: 0.42")
    assert (pictures.captioned(picture, "3: 0.97") != pictures.captioned(picture, "3: 0.41")).any()


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (33, 47)])
def test_captions_that_do_not_fit_leave_the_size(size):
    shown = pictures.captioned(np.full((*size, 3), 90, np.uint8), "quality " + "3: 0.97, " * 20)
    assert shown.shape == (*size, 3)


def test_captioned_pictures_go_into_sheets_and_films_with_plain_ones(picture, tmp_path):
    rows = [("clip", [picture, pictures.captioned(picture, "quality 3: 0.97")])]
    assert pictures.contact_sheet(rows, height=80).shape == (18 + 80, 2 * 200, 3)
    pictures.write_video(tmp_path / "a.mp4", rows[0][1])
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2
