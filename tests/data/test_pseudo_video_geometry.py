from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from vosforge.data.geometry import affine, keep_objects, moved, resample
from vosforge.data.layers import Layer, draw
from vosforge.data.thin_plate import ThinPlate, between_nodes
from vosforge.errors import UserError

SIZE = (192, 256)


def pixels(size: tuple[int, int] = SIZE) -> np.ndarray:
    """(x, y) of every pixel."""
    return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), axis=-1).reshape(-1, 2).astype(float)


def bend(seed: int, spread: float = 0.02) -> ThinPlate:
    return ThinPlate.draw(np.random.default_rng(seed), 12, spread)


def layer(picture: np.ndarray, mask: np.ndarray, maps: list[np.ndarray], bends: list | None = None) -> Layer:
    same = np.hstack([np.eye(3), np.zeros((3, 1))])
    return Layer(picture, mask, np.stack(maps), bends or [None] * len(maps), np.stack([same] * len(maps)))


def grating(frequency: float, places: np.ndarray) -> np.ndarray:
    return 127.5 + 100 * np.sin(2 * np.pi * frequency * places)


def kept_contrast(found: np.ndarray, wanted: np.ndarray) -> float:
    """The share of a grating's amplitude that resampling keeps; 1 is all of it."""
    found, wanted = found.astype(float) - found.mean(), wanted - wanted.mean()
    return float((found * wanted).sum() / (wanted**2).sum())


def test_spline_takes_its_points_where_it_should():
    rng = np.random.default_rng(0)
    bent, flat = rng.uniform(0, 1, (12, 2)), rng.uniform(0, 1, (12, 2))
    assert np.allclose(ThinPlate(bent, flat).exactly(bent), flat, atol=1e-8)


def test_spline_through_points_that_an_affine_map_moves_is_that_map():
    bent = np.random.default_rng(1).uniform(0, 1, (12, 2))
    places = np.random.default_rng(2).uniform(0, 1, (50, 2))
    matrix, shift = np.array([[0.9, 0.1], [-0.2, 1.1]]), np.array([0.05, -0.03])
    spline = ThinPlate(bent, bent @ matrix.T + shift)
    assert np.allclose(spline.exactly(places), places @ matrix.T + shift, atol=1e-9)


def test_grid_between_nodes_stays_within_half_a_pixel_of_the_spline():
    size = (384, 384)
    shares = (pixels(size) + 0.5) / 384
    for seed in range(8):
        spline = bend(seed)
        exact = (spline.exactly(shares) * 384 - 0.5).reshape(*size, 2)
        errors = np.abs(between_nodes(spline.nodes(size), size) - exact)
        assert errors.max() < 0.5
        assert errors.mean() < 0.02
        assert np.abs(exact - pixels(size).reshape(*size, 2)).max() > 5


@pytest.mark.parametrize("size", [(97, 130), (64, 61)])
def test_grid_of_sizes_that_no_node_divides_has_its_pixels_in_place(size):
    height, width = size
    spline = ThinPlate(np.array([[0, 0], [1, 0], [0, 1], [1, 1.0]]), np.array([[0, 0], [1, 0], [0, 1], [1, 1.0]]))
    assert np.allclose(between_nodes(spline.nodes(size), size), pixels(size).reshape(height, width, 2), atol=1e-3)


def test_drawn_bends_do_not_fold_the_frame_and_differ():
    bends = [bend(seed) for seed in range(40)]
    assert min(b.thinnest() for b in bends) > 0
    assert len({b.weights.tobytes() for b in bends}) == 40


def test_spread_that_always_folds_is_refused():
    with pytest.raises(UserError, match=r"thin-plate spline: .* all fold the frame at a spread of 0\.5"):
        bend(0, spread=0.5)


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("projective", [False, True])
def test_marked_points_of_picture_and_mask_land_together_where_the_maps_say(bent, projective):
    matrix = affine(0.9, 12, 6, shift=(20, -14))
    if projective:
        matrix = np.array([[1, 0, 0], [0, 1, 0], [4e-4, -3e-4, 1]]) @ matrix
    spline = bend(3) if bent else None
    nodes = spline.nodes(SIZE) if bent else None
    places = np.array([[70, 60], [180, 70], [120, 130]])
    picture, mask = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    for k, place in enumerate(places, 1):
        cv2.circle(mask, place.tolist(), 7, k, -1)
        picture[mask == k, k - 1] = 255
    shown = resample(picture, matrix, SIZE, cv2.INTER_CUBIC, nodes, cv2.BORDER_REPLICATE)
    ids = resample(mask, matrix, SIZE, cv2.INTER_NEAREST, nodes)
    for k, place in enumerate(places, 1):
        weights = shown[..., k - 1].reshape(-1, 1).astype(float)
        seen = (pixels() * weights).sum(axis=0) / weights.sum()
        labelled = pixels()[ids.ravel() == k].mean(axis=0)
        assert np.linalg.norm(seen - labelled) < 0.3
        # The bend says where a place of the bent frame lay before.
        if spline is not None:
            seen = spline.exactly((seen[None] + 0.5) / SIZE[::-1])[0] * SIZE[::-1] - 0.5
        assert np.linalg.norm(seen - moved(place[None].astype(float), matrix)[0]) < 0.6


def passes(picture: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """The field's two bicubic passes: an affine map at the picture's size, then a resize."""
    # PIL measures from the corner of a pixel, and wants the map from target to source.
    backward = affine(shift=(0.5, 0.5)) @ np.linalg.inv(matrix) @ affine(shift=(-0.5, -0.5))
    coefficients = backward[:2].ravel().tolist()
    moved_by_pil = Image.fromarray(picture).transform(
        picture.shape[1::-1], Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return np.asarray(moved_by_pil.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("frequency", [0.1, 0.2, 0.25, 0.3, 0.35, 0.4])
@pytest.mark.parametrize("bent", [False, True])
def test_one_interpolation_resolves_more_than_two_bicubic_passes(frequency, bent):
    stripes = np.broadcast_to(grating(frequency, np.arange(256.0)), (256, 256))
    picture, side = np.repeat(stripes.round().astype(np.uint8)[..., None], 3, axis=-1), 230
    turned = affine(1.03, 17, shift=(127.5, 127.5)) @ affine(shift=(-127.5, -127.5))
    matrix = affine(side / 256, shift=(side / 512 - 0.5, side / 512 - 0.5)) @ turned
    # A bend that moves nothing sends the same map through the sampling grid.
    rest = ThinPlate(*[np.array([[0, 0], [1, 0], [0, 1], [1, 1.0]])] * 2)
    nodes = rest.nodes((side, side)) if bent else None
    ours = resample(picture, matrix, (side, side), cv2.INTER_CUBIC, nodes)[60:170, 60:170, 0]
    theirs = passes(picture, turned, side)[60:170, 60:170, 0]
    wanted = grating(frequency, moved(pixels((side, side)), np.linalg.inv(matrix))[:, 0]).reshape(side, side)
    wanted = wanted[60:170, 60:170]
    assert np.square(ours - wanted).mean() < 0.7 * np.square(theirs - wanted).mean()
    # PIL's kernel exaggerates coarse stripes; fine ones tell who resolves more.
    if frequency > 0.2:
        assert kept_contrast(ours, wanted) > kept_contrast(theirs, wanted) + 0.02


@pytest.mark.parametrize("bent", [False, True])
def test_window_is_that_part_of_the_whole(bent):
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    nodes, window = bend(1).nodes(SIZE) if bent else None, np.s_[31:95, 50:211]
    whole = resample(picture, affine(1.1, 8), SIZE, cv2.INTER_CUBIC, nodes)
    part = resample(picture, affine(1.1, 8), SIZE, cv2.INTER_CUBIC, nodes, window=window)
    assert np.abs(whole[window].astype(int) - part).max() <= 1


def test_picture_that_every_frame_shrinks_does_not_alias():
    # Stripes of 2 pixels are grey at a quarter of the size; sampled at points they would come out black or white.
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    frames, _ = draw([layer(stripes, np.ones((400, 400), np.uint8), [affine(0.25)])], (96, 96))
    inner = frames[0, 8:-8, 8:-8].astype(int)
    assert np.abs(inner - 127).max() < 30


def test_outside_of_the_picture_lies_the_mean_colour_and_background():
    picture, mask = np.full((40, 40, 3), 255, np.uint8), np.ones((40, 40), np.uint8)
    for bends in (None, [bend(0)]):
        frames, masks = draw([layer(picture, mask, [affine(shift=(60, 60))], bends)], (160, 160))
        assert (frames[0, :20, :20] == (124, 116, 104)).all()
        assert not masks[0, :20, :20].any()
        assert (frames[0, 76:84, 76:84] == 255).all()


def test_upper_layers_hide_lower_ones_and_ids_are_counted_through():
    ground = layer(np.full((64, 64, 3), 50, np.uint8), np.full((64, 64), 9, np.uint8), [np.eye(3)])
    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 10:30], mask[40:50, 40:50] = 9, 200
    upper = layer(np.full((64, 64, 3), 200, np.uint8), mask, [np.eye(3)])
    frames, masks = draw([ground, upper.alone()], (64, 64))
    assert (masks[0][mask == 9] == 2).all()
    assert (masks[0][mask == 200] == 3).all()
    assert (masks[0][mask == 0] == 1).all()
    assert (frames[0][mask > 0] == 200).all()
    assert (frames[0][mask == 0] == 50).all()
    _, masks = draw([ground, upper.alone(200)], (64, 64))
    assert (masks[0][mask == 200] == 2).all()
    assert (masks[0][mask == 9] == 1).all()


def test_layers_with_more_than_255_objects_keep_255():
    many = np.zeros((64, 64), np.uint8)
    many.ravel()[: 255 * 4] = np.repeat(np.arange(1, 256), 4)
    one = np.ones((8, 8), np.uint8)
    layers = [layer(np.zeros((*m.shape, 3), np.uint8), m, [np.eye(3)]) for m in (many, one)]
    _, masks = draw(layers, (64, 64))
    assert masks.max() == 255
    assert (masks[0] == many).all()


def test_layer_that_moves_in_and_out_of_the_frame_is_drawn_where_it_is():
    ground = layer(np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), np.uint8), [np.eye(3)] * 3)
    square = layer(
        np.full((20, 20, 3), 255, np.uint8),
        np.ones((20, 20), np.uint8),
        [affine(shift=(-200, 0)), affine(shift=(54, 22)), affine(shift=(22, -40))],
    )
    _, masks = draw([ground, square], (64, 64))
    assert [(mask == 2).sum() for mask in masks] == [0, 200, 0]
    assert (masks[1][22:42, 54:] == 2).all()


def test_kept_objects_cover_the_share_asked_for():
    masks = np.zeros((1, 100, 100), np.uint8)
    masks[0, 0, :5], masks[0, 1, :50] = 1, 2
    rng = np.random.default_rng(0)
    assert set(np.unique(keep_objects(masks, 5, rng, smallest=0.001))) == {0, 1}
    assert set(np.unique(keep_objects(masks, 5, rng, smallest=0.0))) == {0, 1, 2}
