"""The hand-drawn masks of scikit-image's photographs are fit to train and demonstrate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.measure import label

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "photographs"
MASKS = sorted(FOLDER.glob("*.png"))
DAVIS_COLOURS = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
SMALLEST_OBJECT = 200


def read_mask(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def test_there_are_enough_photographs() -> None:
    assert len(MASKS) >= 8


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_mask_is_a_palette_image_in_davis_colours(path: Path) -> None:
    with Image.open(path) as image:
        assert image.mode == "P"
        palette = image.getpalette()
        drawn = len(np.unique(np.array(image)))
    colours = [tuple(palette[3 * k : 3 * k + 3]) for k in range(min(drawn, len(DAVIS_COLOURS)))]
    assert colours == DAVIS_COLOURS[: len(colours)]


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_mask_has_the_size_of_its_photograph(path: Path) -> None:
    photograph = getattr(skimage.data, path.stem)()
    if isinstance(photograph, tuple):
        photograph = photograph[0]
    assert read_mask(path).shape == photograph.shape[:2]


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_ids_are_contiguous_from_one_over_a_background(path: Path) -> None:
    ids = np.unique(read_mask(path))
    assert ids.size >= 2
    assert ids.tolist() == list(range(ids.size))


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_each_object_is_one_region_of_reasonable_size(path: Path) -> None:
    mask = read_mask(path)
    for k in range(1, int(mask.max()) + 1):
        regions = np.bincount(label(mask == k, connectivity=2).ravel())[1:]
        assert regions.sum() > SMALLEST_OBJECT, f"object {k} covers {regions.sum()} pixels"
        # What stands in front of an object may part it: the cameraman's hand lies beyond his tripod.
        assert regions.max() > 0.95 * regions.sum(), f"object {k} is scattered over {regions.size} regions"
        assert regions.min() > 20, f"object {k} has a speck of {regions.min()} pixels"
