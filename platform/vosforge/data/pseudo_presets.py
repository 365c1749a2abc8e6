"""Recipes of pseudo-video by name: those of papers and of public training code, and our own."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from vosforge.data.colour import Jitter
from vosforge.data.pseudo_video import PseudoVideoRecipe
from vosforge.data.redrawn import Affine, RedrawnRecipe
from vosforge.errors import UserError

# The public training code of STCN, dataset/static_dataset.py and dataset/tps.py; Mask-Propagation, XMem and QDMN do
# the same. Numbers in the order of that code.
_STCN = RedrawnRecipe(
    frames=3,
    size=(384, 384),  # Resize(384), RandomCrop((384, 384)), drawn per frame
    crop="frame",
    objects=1,  # its static sets have one object an image
    shared=Affine(scale=(0.8, 1.5)),  # RandomAffine(0, scale=(0.8, 1.5))
    flip=0.5,  # RandomHorizontalFlip()
    each=Affine(rotation=20, shear=10, scale=(0.9, 1.1)),  # RandomAffine(20, scale=(0.9, 1.1), shear=10)
    shared_colour=Jitter(0.1, 0.05, 0.05, 0.05),  # ColorJitter(0.1, 0.05, 0.05, 0.05)
    grey=0.05,  # RandomGrayscale(0.05)
    each_colour=Jitter(0.1, 0.05, 0.05, 0.0),  # ColorJitter(0.1, 0.05, 0.05, 0)
    thin_plate=0.33,  # rand() < 0.33
    points=12,  # n_ctrl_pts = 12
    spread=0.02,  # scale = 0.02
)

# The public re-training of STM on COCO, dataset/coco.py.
_STM_COCO = RedrawnRecipe(
    frames=3,
    size=(384, 384),
    zoom=480 / 384,  # the shorter side becomes 480, the crop is of 384
    crop="objects",  # one crop a clip that holds the objects of all frames
    objects=5,  # at most 5 stay
    smallest=350 / 384**2,  # those of more than 350 pixels in the first frame
    flip=0.5,
    plain_first=True,  # the first frame is the picture itself
    corners=0.1,  # homographies: corners move by up to a tenth, then once more in the same direction
    paste=(1, 3),  # randint(1, 3) instances of other images
    paste_chance=0.5,  # in half of the clips
    paste_motion=Affine(rotation=30, shear=20, scale=(0.8, 1.2)),  # sampled_aug, once more in every frame
    paste_drift=(40 / 384, 20 / 384),  # randint(0, 40) and randint(0, 20) pixels a frame
)

# AOT's public training code, dataloaders/train_datasets.py StaticTrain.
_AOT = RedrawnRecipe(
    frames=5,  # seq_len = 5
    size=(465, 465),
    crop="frame",
    area=(0.8, 1.0),  # RandomResizedCrop(scale (0.8, 1), ratio 3/4 to 4/3)
    aspect=(3 / 4, 4 / 3),
    objects=10,  # max_obj_n = 10
    smallest=100 / 465**2,  # min_obj_pixels = 100
    flip=0.5,  # pre_random_horizontal_flip
    plain_first=True,  # the first frame is cropped alone
    each=Affine(rotation=20, shear=10, scale=(0.9, 1.1), shift=0.1),
    each_flip=0.3,  # random_horizontal_flip
    each_colour=Jitter(0.1, 0.1, 0.1, 0.03),  # ColorJitter(0.1, 0.1, 0.1, 0.03)
    merge=1.0,  # merge_prob = 1.0
)

# EMN (2019), section 3.1: "rotation, flip, saturation", patches of 384, one instance of an image. The paper gives no
# numbers: the angle is the STCN family's, the saturation ours.
_EMN = RedrawnRecipe(
    frames=3,
    size=(384, 384),
    crop="frame",
    objects=1,
    flip=0.5,
    each=Affine(rotation=20),
    each_colour=Jitter(saturation=0.2),
)

# SKN (2021), section on training: image and mask "are randomly flipped and rotated to generate three images"; the
# shortest edge becomes 480. Its crop of 380 is 384 in the code that it builds on, whose angle this is, too.
_SKN = RedrawnRecipe(
    frames=3,
    size=(384, 384),
    zoom=480 / 384,
    crop="clip",
    objects=5,
    each=Affine(rotation=30),
    each_flip=0.5,
)

# Ours: steady motion, so that clips may be long and previous masks are a help, as they are in video.
_STEADY = PseudoVideoRecipe(drift=0.06, paste=2, paste_drift=0.08, rotation=15, shear=5)

# QPM (2021), section 3.1, follows MiVOS, whose code does as STCN's.
PRESETS: dict[str, PseudoVideoRecipe | RedrawnRecipe] = {
    "steady": _STEADY,
    "stcn": _STCN,
    "stm-coco": _STM_COCO,
    "aot": _AOT,
    "emn": _EMN,
    "skn": _SKN,
    "qpm": _STCN,
}

# Values that lie in a part of a recipe.
_PARTS = {"rotation": ("each", "rotation"), "shear": ("each", "shear")}


def preset(name: str, **changes: Any) -> PseudoVideoRecipe | RedrawnRecipe:
    """The recipe of that name with single values changed.

    Args:
        name: one of `PRESETS`.
        changes: fields of the recipe; for one that draws every frame anew also `rotation` and `shear` of each frame,
            `paste` as a largest number and `paste_drift` as one share for both
            directions. None leaves a value as it is.

    Raises:
        UserError: for an unknown name, a value that the recipe does not have, or one out of range.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r} of pseudo-video; valid: {', '.join(PRESETS)}")
    recipe = PRESETS[name]
    for key, value in changes.items():
        if value is not None:
            recipe = _changed(name, recipe, key, value)
    return recipe


def _changed(
    name: str, recipe: PseudoVideoRecipe | RedrawnRecipe, key: str, value: Any
) -> PseudoVideoRecipe | RedrawnRecipe:
    known = {field.name for field in fields(recipe)}
    if isinstance(recipe, RedrawnRecipe):
        if key in _PARTS:
            part, inner = _PARTS[key]
            return replace(recipe, **{part: replace(getattr(recipe, part), **{inner: value})})
        if key == "paste" and isinstance(value, int):
            value = (min(recipe.paste[0], value), value)
        if key == "paste_drift" and isinstance(value, float):
            value = (value, value)
    if key not in known:
        raise UserError(f"pseudo-video: preset {name} has no {key}; valid: {', '.join(sorted(known | set(_PARTS)))}")
    return replace(recipe, **{key: value})
