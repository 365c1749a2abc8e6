"""What the masks of a whole video mean, what is refused, and what repair makes of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from trees import png

from vosforge.data.image_files import encode_mask, read_mask
from vosforge.data.mask_lint import LintedMasks, lint_masks
from vosforge.errors import UserError
from vosforge.pictures import davis_palette

SIZE = (60, 80)


def scene(*ids: int) -> np.ndarray:
    """Discs of these values on 0."""
    mask = np.zeros(SIZE, np.uint8)
    for i, k in enumerate(ids):
        cv2.circle(mask, (14 + 22 * i, 28), 10, k, -1)
    return mask


def softened(mask: np.ndarray) -> np.ndarray:
    """Drawn twice as large, then shrunk with interpolation: rims one pixel wide."""
    large = cv2.resize(mask, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    return cv2.resize(large, SIZE[::-1], interpolation=cv2.INTER_AREA)


def linted(*pictures: np.ndarray | bytes | None, repair: bool = False) -> LintedMasks:
    """Each picture as a PNG of its own kind; bytes are files already."""
    names = [f"bear/{t:05d}.png" for t in range(len(pictures))]
    files = [p if p is None or isinstance(p, bytes) else png(p) for p in pictures]
    raws = [None if data is None else read_mask(data, name) for data, name in zip(files, names, strict=True)]
    return lint_masks(raws, names, repair)


def in_colours(mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return colours[mask].astype(np.uint8)


CUSTOM = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])


def test_255_is_the_object_of_a_video_that_knows_nothing_else():
    found = linted(scene(255), scene(), None, scene(255))
    assert [mask is None for mask in found.masks] == [False, False, True, False]
    assert (found.masks[0] == scene(1)).all()
    assert not found.masks[1].any()
    assert found.notes == ()


def test_255_is_void_in_a_frame_that_shows_no_id_when_another_frame_does():
    found = linted(scene(1), scene(255))
    assert (found.masks[1] == scene(255)).all()
    assert found.notes == ("void (255) in 1 masks",)


def test_palette_index_255_alone_is_the_object_and_that_is_told():
    found = linted(encode_mask(scene(255)), encode_mask(scene()))
    assert (found.masks[0] == scene(1)).all()
    assert found.notes == ("palette index 255 alone is taken for object 1",)
    assert found.intact == [False, False]


def test_palette_files_are_intact_and_grey_ones_are_not():
    assert linted(encode_mask(scene(1, 2)), scene(1), None).intact == [True, False, False]


def test_gaps_in_ids_are_noted_over_the_whole_video():
    assert linted(scene(1), scene(3, 7)).notes == ("gaps in ids: 1, 3, 7",)
    assert linted(scene(1), scene(2, 3)).notes == ()


@pytest.mark.parametrize("count", [1, 3])
def test_colours_of_the_davis_palette_are_its_indices(count):
    found = linted(*[in_colours(scene(2, 5), davis_palette())] * count)
    assert (found.masks[0] == scene(2, 5)).all()
    assert found.notes == ("colours are those of the DAVIS palette", "gaps in ids: 2, 5")


def test_other_colours_are_numbered_as_first_seen_over_the_whole_video():
    found = linted(in_colours(scene(3), CUSTOM), in_colours(scene(1, 3), CUSTOM), scene())
    assert (found.masks[0] == scene(1)).all()
    assert (found.masks[1] == scene(2, 1)).all()
    assert not found.masks[2].any()
    assert found.notes == ("colours are numbered as first seen: #0000ff = 1, #ff0000 = 2",)


def test_colours_beside_palettes_are_refused():
    with pytest.raises(UserError, match=r"bear/00001\.png: expected masks of one coding"):
        linted(encode_mask(scene(1)), in_colours(scene(1), CUSTOM))


def test_anti_aliased_masks_are_refused_with_file_number_and_values():
    soft = scene(255)
    soft[(soft > 0) & (cv2.erode(soft, np.ones((3, 3), np.uint8)) == 0)] = 90
    with pytest.raises(UserError) as error:
        linted(scene(255), soft, soft)
    assert str(error.value) == (
        "bear/00001.png and 1 more: expected object ids, found 3 grey levels (90): an anti-aliased mask; "
        "threshold it, or repair with --repair-masks"
    )
    with pytest.raises(UserError, match=r"bear/00000\.png: .* grey levels \(\d+(, \d+){7}, \.\.\.\)"):
        linted(softened(scene(255)))


def test_anti_aliased_colours_are_refused_with_their_values():
    with pytest.raises(UserError, match=r"bear/00000\.png: expected object ids, found \d+ colours \(#[0-9a-f]{6}, "):
        linted(softened(in_colours(scene(1, 2), CUSTOM).astype(np.uint8)))


def test_levels_that_are_few_in_each_mask_but_many_over_the_video_are_refused():
    shades = [scene(10 * t + 7, 10 * t + 8, 10 * t + 9) for t in range(10)]
    with pytest.raises(UserError, match=r"bear/00000\.png and 9 more"):
        linted(*shades)


def test_interpolated_palette_indices_are_refused():
    noisy = scene(40)
    rim = (noisy > 0) & (cv2.erode(noisy, np.ones((3, 3), np.uint8)) == 0)
    noisy[rim] = np.arange(rim.sum()) % 30 + 50
    with pytest.raises(UserError, match=r"bear/00000\.png: .*anti-aliased"):
        linted(encode_mask(noisy))
    assert (linted(encode_mask(noisy), repair=True).masks[0] == np.where(noisy > 0, 40, 0)).mean() > 0.98


def test_repair_of_one_object_is_a_threshold_and_is_counted():
    soft = softened(scene(255))
    found = linted(soft, scene(255), repair=True)
    assert (found.masks[0] == (soft >= 128)).all()
    changed = int(((soft > 0) & (soft < 255)).sum())
    assert found.notes == (f"1 masks repaired, {changed} pixels set to the nearest id",)
    assert (found.masks[1] == scene(1)).all()


def test_repair_of_several_ids_invents_none_between_them():
    hard = np.zeros(SIZE, np.uint8)
    hard[10:50, 10:40], hard[10:50, 40:70] = 60, 120
    found = linted(softened(hard), repair=True)
    assert np.unique(found.masks[0]).tolist() == [0, 60, 120]
    assert (found.masks[0] == hard).mean() > 0.97


@pytest.mark.parametrize("colours", [CUSTOM, davis_palette()], ids=["custom", "davis"])
def test_repair_of_colours_brings_the_ids_back(colours):
    soft = softened(in_colours(scene(1, 2), colours).astype(np.uint8))
    found = linted(soft, repair=True)
    assert np.unique(found.masks[0]).tolist() == [0, 1, 2]
    assert (found.masks[0] == scene(1, 2)).mean() > 0.98
    assert "1 masks repaired" in found.notes[0]


def in_jpeg(mask: np.ndarray, quality: int) -> np.ndarray:
    bgr = mask if mask.ndim == 2 else mask[..., ::-1]
    return cv2.imdecode(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_repair_brings_black_and_white_back_out_of_jpeg(quality):
    found = linted(in_jpeg(scene(255, 0, 255), quality), repair=True)
    assert (found.masks[0] == scene(1, 0, 1)).mean() > 0.99


@pytest.mark.parametrize("quality", [75, 95])
def test_repair_brings_colours_back_out_of_jpeg(quality):
    large = cv2.resize(np.vstack([scene(1), scene(2)]), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    found = linted(in_jpeg(in_colours(large, CUSTOM), quality), repair=True)
    assert np.unique(found.masks[0]).tolist() == [0, 1, 2]
    assert (found.masks[0] == large).mean() > 0.97


def test_repair_keeps_a_small_object_beside_large_ones():
    mask = scene(1, 2)
    mask[46:55, 60:67] = 3
    soft = softened(in_colours(mask, CUSTOM).astype(np.uint8))
    found = linted(soft, repair=True)
    assert np.unique(found.masks[0]).tolist() == [0, 1, 2, 3]
    assert (found.masks[0] == mask).mean() > 0.98


def test_repair_leaves_sound_masks_alone():
    assert linted(scene(1, 2), encode_mask(scene(2)), repair=True).notes == ()
    assert linted(scene(1, 2), encode_mask(scene(2)), repair=True).intact == [False, True]


def test_repair_refuses_grey_codes_that_void_would_swallow():
    with pytest.raises(UserError, match=r"areas of 0, 128, 255; these masks cannot be repaired"):
        linted(softened(scene(128, 255)), repair=True)


def test_repair_refuses_masks_without_any_area():
    noise = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    with pytest.raises(UserError, match="cannot be repaired"):
        linted(noise, repair=True)


def test_masks_read_as_they_are_stored():
    assert read_mask(encode_mask(scene(3)), "m").coding == "palette"
    assert read_mask(png(scene(3)), "m").coding == "grey"
    assert read_mask(png(np.repeat(scene(3)[..., None], 3, axis=2)), "m").coding == "grey"
    found = read_mask(png(in_colours(scene(1), CUSTOM)), "m")
    assert (found.coding, np.unique(found.pixels).tolist()) == ("colour", [0, 0xFF0000])


def test_video_without_masks_stays_so():
    assert lint_masks([None, None], ["a", "b"]) == LintedMasks([None, None], [False, False], ())


def side_by_side(*ids: int) -> np.ndarray:
    """Discs of these ids that touch."""
    mask = np.zeros((100, 160), np.uint8)
    for i, k in enumerate(ids):
        cv2.circle(mask, (40 + 38 * i, 50), 20, k, -1)
    return mask


INTERPOLATIONS = {
    "blurred": lambda mask: cv2.GaussianBlur(mask, (3, 3), 0),
    "shrunk": lambda mask: cv2.resize(mask, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
    "enlarged": lambda mask: cv2.resize(mask, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_LINEAR),
}


@pytest.mark.parametrize("store", [png, encode_mask], ids=["grey", "palette"])
@pytest.mark.parametrize("way", INTERPOLATIONS)
def test_small_ids_that_interpolation_made_are_refused_with_their_values(way, store):
    soft = INTERPOLATIONS[way](side_by_side(1, 4, 2))
    assert np.unique(soft).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError) as error:
        linted(store(side_by_side(1, 4, 2)) if way == "blurred" else store(soft), store(soft))
    first = "bear/00001.png" if way == "blurred" else "bear/00000.png and 1 more"
    assert str(error.value) == (
        f"{first}: expected object ids, found values that only line others (3): an anti-aliased mask; "
        "threshold it, or repair with --repair-masks"
    )


def test_repair_of_small_ids_takes_the_rims_that_look_like_other_objects_too():
    hard = side_by_side(1, 4, 2)
    soft = cv2.GaussianBlur(hard, (3, 3), 0)
    found = linted(encode_mask(hard), encode_mask(soft), repair=True)
    assert found.intact == [True, False]
    assert np.unique(found.masks[1]).tolist() == [0, 1, 2, 4]
    rims = hard != soft
    assert (found.masks[1] == hard)[rims].mean() > 0.4 > (soft == hard)[rims].mean()
    # No ring of object 1 is left around object 4.
    assert cv2.connectedComponents((found.masks[1] == 1).astype(np.uint8))[0] == 2
    assert found.notes[0].startswith("1 masks repaired, ")


def thin_scene(name: str) -> np.ndarray:
    """Objects 1 and 3, and 2 somewhere, nowhere three pixels thick."""
    mask = side_by_side(1, 3)
    if name == "rope":
        cv2.line(mask, (5, 5), (150, 90), 2, 2)
    elif name == "brim of a larger one":
        cv2.ellipse(mask, (78, 50), (20, 20), 0, -90, 20, 2, 1)
    elif name == "between two that touch elsewhere too":
        mask[:, :80], mask[:, 80:] = 1, 3
        mask[10:40, 79:81] = 2
    elif name == "last bit behind a larger one":
        mask[29:31, 73:83] = 2
    elif name == "beside void":
        mask[5, 5:100], mask[6, 5:100] = 2, 255
    return mask


THIN = ["rope", "brim of a larger one", "between two that touch elsewhere too", "last bit behind a larger one"]


@pytest.mark.parametrize("name", [*THIN, "beside void"])
def test_thin_objects_are_no_rims(name):
    mask = thin_scene(name)
    assert 2 in mask
    found = linted(encode_mask(mask), mask)
    assert all((read == mask).all() for read in found.masks)


def test_value_that_is_thin_in_one_mask_and_solid_in_another_is_an_object():
    soft = cv2.GaussianBlur(side_by_side(1, 4, 2), (3, 3), 0)
    found = linted(*[encode_mask(mask) for mask in (soft, side_by_side(1, 3, 2))])
    assert (found.masks[0] == soft).all()


@pytest.mark.parametrize("value", [1, 7, 255])
def test_mask_of_one_object_all_over_in_every_frame_is_noted(value):
    full = np.full(SIZE, value, np.uint8)
    told = f"every mask is {1 if value == 255 else value} all over, without background"
    assert told in linted(full, None, full).notes
    assert told not in linted(full, scene(value)).notes
    assert linted(scene(), scene()).notes == ()
