from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vosforge.data.colour import UNCHANGED, Jitter, colour_matrix, recolour
from vosforge.errors import UserError

# Colours that no jitter here drives out of range, as those are the only ones on which a chain that clips agrees.
FRAME = np.random.default_rng(0).integers(60, 180, (40, 50, 3), dtype=np.uint8)
MEAN = FRAME.reshape(-1, 3).mean(axis=0)


def draw(**values: float) -> np.ndarray:
    names = ("brightness", "contrast", "saturation", "turn")
    return np.array([values.get(name, UNCHANGED[i]) for i, name in enumerate(names)])


def ours(*draws: np.ndarray, grey: bool = False) -> np.ndarray:
    return recolour(FRAME, colour_matrix(list(draws), grey, MEAN)).astype(int)


def enhanced(*steps: tuple[type, float]) -> np.ndarray:
    image = Image.fromarray(FRAME)
    for enhancer, factor in steps:
        image = enhancer(image).enhance(factor)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("name", "enhancer"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_factors_do_as_pillows(name, enhancer, factor):
    assert np.abs(ours(draw(**{name: factor})) - enhanced((enhancer, factor))).max() <= 2


def test_jitter_of_clip_and_frame_in_one_matrix_does_as_a_chain_of_pillows():
    chain = enhanced(
        (ImageEnhance.Brightness, 1.1),
        (ImageEnhance.Contrast, 0.9),
        (ImageEnhance.Color, 1.1),
        (ImageEnhance.Brightness, 0.95),
        (ImageEnhance.Contrast, 1.1),
        (ImageEnhance.Color, 0.9),
    )
    found = ours(
        draw(brightness=1.1, contrast=0.9, saturation=1.1), draw(brightness=0.95, contrast=1.1, saturation=0.9)
    )
    assert np.abs(found - chain).max() <= 5


def test_hue_turns_at_equal_luma_towards_where_hsv_turns():
    turned = ours(draw(turn=2 * np.pi * 0.05))
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs((turned - FRAME) @ luma).max() < 1.5
    reds = np.full((1, 1, 3), (180, 90, 90), np.uint8)
    found = recolour(reds, colour_matrix([draw(turn=2 * np.pi * 0.05)], False, MEAN))[0, 0] / 255
    hue = colorsys.rgb_to_hsv(*found)[0]
    assert 0.02 < hue < 0.09


def test_grey_leaves_luma_alone_and_the_frames_jitter_cannot_colour_it_again():
    found = ours(draw(brightness=1.05), draw(saturation=1.3), grey=True)
    assert np.ptp(found, axis=-1).max() <= 1
    luma = np.asarray(Image.fromarray(FRAME).convert("L")).astype(int)
    assert np.abs(found[..., 0] - 1.05 * luma).max() <= 2


def test_draws_stay_in_their_ranges_and_nothing_changes_without_any():
    rng = np.random.default_rng(0)
    draws = np.stack([Jitter(0.1, 0.2, 0.3, 0.05).draw(rng) for _ in range(500)])
    reach = np.abs(draws - UNCHANGED).max(axis=0)
    limits = np.array([0.1, 0.2, 0.3, 2 * np.pi * 0.05])
    assert (reach <= limits).all()
    assert (reach > 0.95 * limits).all()
    assert (Jitter().draw(rng) == UNCHANGED).all()
    assert (ours(UNCHANGED, UNCHANGED) == FRAME).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("brightness", -0.1), ("contrast", math.nan), ("saturation", math.inf), ("hue", 0.6), ("hue", -0.1)],
)
def test_range_that_cannot_be_names_the_field(field, value):
    with pytest.raises(UserError, match=f"colour jitter: {field} must be a number in 0"):
        Jitter(**{field: value})
