"""Pseudo-video: a static image becomes a clip by moving the picture and objects of others that lie over it.

A static image is a video of one frame, so this is a transform from T = 1 to T frames. All geometry of a frame is
composed into one map and applied with one interpolation for the image and one (nearest) for the mask. Motion is
steady here; `redrawn` draws every frame anew, as the field does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vosforge.clip import MAX_OBJECTS, Clip
from vosforge.data.geometry import affine, keep_objects, warp
from vosforge.data.ranges import require_number, require_pair
from vosforge.data.redrawn import LARGEST_SHEAR, LARGEST_TURN, SCALES, RedrawnRecipe, redrawn_video, require_clip
from vosforge.errors import UserError


@dataclass(frozen=True)
class PseudoVideoRecipe:
    """How images move steadily. Angles in degrees, lengths as shares of the frame's size.

    Attributes:
        frames: T.
        size: (height, width) of the clip in pixels.
        rotation: how far the picture turns over the whole clip, uniform in +-value.
        drift: how far it moves from frame to frame, in one direction, uniform in 0.3 to 1 times this share.
        shear, zoom: per-frame jitter of its shear, uniform in +-value, and of its scale, uniform in 1 +- value.
            Turn and motion jitter too, by 0.3 of their values.
        sequence_zoom: range of the scale that all frames share.
        flip: probability of mirroring the whole clip.
        paste: number of other images' objects pasted in, each with a motion of its own.
        paste_drift, paste_rotation: `drift` and `rotation` of those.
        brightness, contrast, saturation: per-clip colour jitter, uniform in 1 +- value; per frame a tenth of it.
        objects: largest number of objects kept.

    Ranges are those of the STCN family's published training on static images (rotation 20, scale 0.9 to 1.1,
    shear 10, sequence scale 0.8 to 1.5), which draws every frame anew; here most of the motion is steady, so that
    clips may be long. Pasting follows the public re-training of STM on objects cut from other images.

    Raises:
        UserError: when a value is out of range; the message names it.
    """

    frames: int = 3
    size: tuple[int, int] = (384, 384)
    rotation: float = 20.0
    shear: float = 10.0
    zoom: float = 0.1
    sequence_zoom: tuple[float, float] = (0.8, 1.5)
    drift: float = 0.03
    flip: float = 0.5
    paste: int = 2
    paste_drift: float = 0.06
    paste_rotation: float = 8.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    objects: int = 3

    def __post_init__(self) -> None:
        require_clip(self)
        for name in ("rotation", "paste_rotation"):
            require_number("pseudo-video", self, name, 0, LARGEST_TURN)
        require_number("pseudo-video", self, "shear", 0, LARGEST_SHEAR)
        # A factor of 1 - zoom must leave something of the picture.
        require_number("pseudo-video", self, "zoom", 0, 0.9)
        require_pair("pseudo-video", self, "sequence_zoom", *SCALES)
        for name in ("drift", "flip", "paste_drift", "brightness", "contrast", "saturation"):
            require_number("pseudo-video", self, name, 0, 1)
        require_number("pseudo-video", self, "paste", 0, MAX_OBJECTS, whole=True)

    @property
    def others(self) -> int:
        """How many other pictures a clip takes objects from."""
        return self.paste


def pseudo_video(
    name: str,
    image: Clip,
    others: list[Clip],
    recipe: PseudoVideoRecipe | RedrawnRecipe,
    rng: np.random.Generator,
) -> Clip:
    """A clip of moving pictures made from one image.

    Args:
        name: the clip's id.
        image: a clip of one frame, the picture whose objects move with it.
        others: clips of one frame; objects are cut from them and pasted, or all of them laid over the picture. At
            most `recipe.others` are used.
        recipe: how things move.
        rng: every draw comes from it, in a fixed order.

    Returns:
        A clip of `recipe.frames` frames of `recipe.size` whose objects are 1..K, K <= `recipe.objects`. K is 0 where
        the draw shows no object that is large enough in the first frame.

    Raises:
        UserError: when the picture has no object.
    """
    if not image.masks.any():
        raise UserError(f"{image.name}: pseudo-video needs a picture with an object, its mask is empty")
    make = redrawn_video if isinstance(recipe, RedrawnRecipe) else _steady_video
    return make(name, image, others, recipe, rng)


def _steady_video(
    name: str, image: Clip, others: list[Clip], recipe: PseudoVideoRecipe, rng: np.random.Generator
) -> Clip:
    height, width = recipe.size
    cover = _cover(image.size, recipe)
    base = _motion(recipe, rng, recipe.drift, recipe.rotation)
    mirror = rng.random() < recipe.flip
    pasted = [_cut_out(other, rng) for other in others[: recipe.paste]]
    paths = [_motion(recipe, rng, recipe.paste_drift, recipe.paste_rotation, spread=0.35) for _ in pasted]
    sizes = rng.uniform(0.25, 0.6, len(pasted))
    # The picture's own objects may bear any id, so pasted ones take ids that it does not use.
    taken = set(image.objects)
    free = [i for i in (*range(200, 256), *range(199, 0, -1)) if i not in taken]
    gains = _colour_gains(recipe, rng)

    frames = np.empty((recipe.frames, height, width, 3), np.uint8)
    masks = np.empty((recipe.frames, height, width), np.uint8)
    for t in range(recipe.frames):
        matrix = base[t] @ cover
        frames[t], masks[t] = warp(image.frames[0], image.masks[0], matrix, recipe.size)
        for identity, cut, path, size in zip(free, pasted, paths, sizes, strict=False):
            scale = size * min(height, width) / max(cut.size)
            centre = affine(scale=scale, shift=(width / 2, height / 2)) @ affine(shift=_minus_centre(cut.size))
            _paste(frames[t], masks[t], cut, path[t] @ centre, identity)
        frames[t] = _recolour(frames[t], gains[t])
    if mirror:
        frames, masks = frames[:, :, ::-1], masks[:, :, ::-1]
    return Clip(name, np.ascontiguousarray(frames), keep_objects(masks, recipe.objects, rng))


def _minus_centre(size: tuple[int, int]) -> tuple[float, float]:
    return (-size[1] / 2, -size[0] / 2)


def _cover(size: tuple[int, int], recipe: PseudoVideoRecipe) -> np.ndarray:
    """The map that lays a picture of that size over the whole frame, centred."""
    height, width = recipe.size
    scale = max(height / size[0], width / size[1])
    return affine(scale=scale, shift=(width / 2, height / 2)) @ affine(shift=_minus_centre(size))


def _motion(
    recipe: PseudoVideoRecipe, rng: np.random.Generator, drift: float, rotation: float, spread: float = 0.0
) -> list[np.ndarray]:
    """One map a frame, about the frame's centre: steady drift in a random direction plus jitter."""
    height, width = recipe.size
    centre = np.array([width / 2, height / 2])
    start = rng.uniform(-spread, spread, 2) * (width, height)
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.0) * drift
    velocity = speed * np.array([np.cos(angle) * width, np.sin(angle) * height])
    zoom = rng.uniform(*recipe.sequence_zoom)
    turn = rng.uniform(-rotation, rotation) if recipe.frames > 1 else 0.0
    maps = []
    for t in range(recipe.frames):
        jitter = rng.uniform(-1, 1, 4)
        move = start + velocity * (t - (recipe.frames - 1) / 2) + 0.3 * drift * jitter[:2] * (width, height)
        maps.append(
            affine(shift=tuple(centre + move))
            @ affine(
                scale=zoom * (1 + recipe.zoom * jitter[2]),
                rotation=turn * t / max(recipe.frames - 1, 1) + 0.3 * rotation * jitter[3],
                shear=rng.uniform(-recipe.shear, recipe.shear),
            )
            @ affine(shift=tuple(-centre))
        )
    return maps


def _cut_out(other: Clip, rng: np.random.Generator) -> Clip:
    """One object of an image, cut to its box, as a clip of one frame with the object as 1."""
    ids = other.objects
    mask = (other.masks[0] == rng.choice(ids)).astype(np.uint8) if ids else np.zeros(other.size, np.uint8)
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0 or height == 0:
        return other
    rows, columns = slice(y, y + height), slice(x, x + width)
    return Clip(other.name, other.frames[:, rows, columns], mask[None, rows, columns])


def _paste(frame: np.ndarray, mask: np.ndarray, cut: Clip, matrix: np.ndarray, identity: int) -> None:
    """Draw a cut-out object over a frame `(H, W, 3)` and its mask `(H, W)`, in place."""
    colours, shape = warp(cut.frames[0], cut.masks[0], matrix, mask.shape, cv2.BORDER_REPLICATE)
    inside = shape == 1
    frame[inside] = colours[inside]
    mask[inside] = identity


def _colour_gains(recipe: PseudoVideoRecipe, rng: np.random.Generator) -> np.ndarray:
    """`(T, 3)` brightness, contrast and saturation factors: one draw a clip, a tenth of it again a frame."""
    ranges = np.array([recipe.brightness, recipe.contrast, recipe.saturation])
    clip = 1 + ranges * rng.uniform(-1, 1, 3)
    return clip * (1 + 0.1 * ranges * rng.uniform(-1, 1, (recipe.frames, 3)))


def _recolour(frame: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Apply brightness, contrast and saturation to an RGB frame."""
    brightness, contrast, saturation = (float(g) for g in gains)
    pixels = frame.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    pixels = grey[..., None] + saturation * (pixels - grey[..., None])
    pixels = brightness * (contrast * (pixels - grey.mean()) + grey.mean())
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
