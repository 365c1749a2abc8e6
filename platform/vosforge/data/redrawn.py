"""Pseudo-video as the field makes it: every frame of a clip is the same picture, moved by a draw of its own.

What the field does in a chain of passes (affine maps of the clip and of the frame, flip, resize, crop, thin-plate
spline) is one map here, from the picture's pixels to the frame's, with one interpolation. Pictures may be merged:
objects of others lie over the first, moved by draws of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import cv2
import numpy as np

from vosforge.clip import MAX_OBJECTS, Clip
from vosforge.data.colour import UNCHANGED, Jitter, colour_matrix
from vosforge.data.geometry import affine, box_corners, keep_objects, moved
from vosforge.data.layers import Layer, draw
from vosforge.data.ranges import refuse, require_number, require_pair
from vosforge.data.thin_plate import ThinPlate

# A corner never comes nearer to its neighbour than 1 - 2 * 0.3 of the picture's side.
_FARTHEST_CORNER = 0.3
# Degrees; a shear of 90 has no finite map.
LARGEST_TURN, LARGEST_SHEAR = 360, 89
SCALES = (0.01, 100.0)
_LARGEST_SIDE = 4096
_MOST_FRAMES = 1 << 20
_CROPS = ("frame", "clip", "objects")


@dataclass(frozen=True)
class Affine:
    """Ranges of a random affine map about the middle of a picture.

    Attributes:
        rotation, shear: degrees, uniform in +-value; shear is along x.
        scale: range of the factor.
        shift: share of the picture's width and height, uniform in +-value.

    Raises:
        UserError: when a value is out of range; the message names it.
    """

    rotation: float = 0.0
    shear: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0

    def __post_init__(self) -> None:
        owner = "pseudo-video: affine map"
        require_number(owner, self, "rotation", 0, LARGEST_TURN)
        require_number(owner, self, "shear", 0, LARGEST_SHEAR)
        require_pair(owner, self, "scale", *SCALES)
        require_number(owner, self, "shift", 0, 1)

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """`(3, 3)` map of a picture of (height, width) onto itself."""
        rotation, shear, across, down = rng.uniform(-1, 1, 4)
        scale = rng.uniform(*self.scale)
        # Pixel centres lie at whole numbers.
        middle = np.array([size[1] - 1, size[0] - 1]) / 2
        shift = middle + self.shift * np.array([across * size[1], down * size[0]])
        turned = affine(scale, self.rotation * rotation, self.shear * shear, shift=tuple(shift))
        return turned @ affine(shift=tuple(-middle))


@dataclass(frozen=True)
class RedrawnRecipe:
    """How pictures are moved, frame by frame. The presets of `pseudo_presets` say which values the field uses.

    Attributes:
        frames: T.
        size: (height, width) of the clip in pixels.
        objects: largest number of objects kept, drawn from those there are.
        smallest: least share of the first frame that a kept object covers.
        shared, each: affine map of the whole clip, and of each frame after it.
        flip, each_flip: probability of mirroring the whole clip, and of mirroring each frame after it. Frames are
            mirrored after they are cropped, so that they show the same part of the picture.
        plain_first: the first frame has no draws of its own but its crop and bend.
        corners: a projective map moves the corners of the picture by up to this share of its size in the second
            frame, and in each later one by as much again in the same directions, 0.3 at most.
        crop: the frame is a window of the picture, placed anew in each frame ("frame"), once in the clip ("clip"),
            or once so that it holds the objects ("objects").
        zoom: how many times the window fits into the picture's shorter side.
        area, aspect: where `area` is given, the window covers a share of the picture drawn from it instead, with
            an aspect drawn (uniform in its logarithm) from `aspect` times the frame's, and is squeezed into the
            frame.
        thin_plate: probability that a frame is bent by a thin-plate spline.
        points, spread: its control points, and the standard deviation of their moves as a share of the frame.
        shared_colour, each_colour: colour jitter of the whole clip, and of each frame after it.
        grey: probability that the whole clip is grey.
        merge: probability that all objects of another picture, moved like this one, lie over it.
        paste: fewest and most objects cut out of further pictures that lie over it.
        paste_chance: probability that there are any.
        paste_motion: of those, once more in each frame after the first.
        paste_drift: largest steps to the side and up or down from frame to frame, as shares of the frame.

    Raises:
        UserError: when a value is out of range; the message names it.
    """

    frames: int = 3
    size: tuple[int, int] = (384, 384)
    objects: int = 1
    smallest: float = 0.002
    shared: Affine = field(default_factory=Affine)
    each: Affine = field(default_factory=Affine)
    flip: float = 0.0
    each_flip: float = 0.0
    plain_first: bool = False
    corners: float = 0.0
    crop: Literal["frame", "clip", "objects"] = "frame"
    zoom: float = 1.0
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (1.0, 1.0)
    thin_plate: float = 0.0
    points: int = 12
    spread: float = 0.02
    shared_colour: Jitter = field(default_factory=Jitter)
    each_colour: Jitter = field(default_factory=Jitter)
    grey: float = 0.0
    merge: float = 0.0
    paste: tuple[int, int] = (0, 0)
    paste_chance: float = 1.0
    paste_motion: Affine = field(default_factory=Affine)
    paste_drift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        require_clip(self)
        for name in ("flip", "each_flip", "thin_plate", "grey", "merge", "paste_chance", "smallest", "spread"):
            require_number("pseudo-video", self, name, 0, 1)
        require_number("pseudo-video", self, "corners", 0, _FARTHEST_CORNER)
        require_number("pseudo-video", self, "zoom", 1, SCALES[1])
        require_number("pseudo-video", self, "points", 3, 1000, whole=True)
        if self.area is not None:
            require_pair("pseudo-video", self, "area", 0.0001, 1)
        require_pair("pseudo-video", self, "aspect", *SCALES)
        require_pair("pseudo-video", self, "paste", 0, MAX_OBJECTS, whole=True)
        require_pair("pseudo-video", self, "paste_drift", 0, 1, ascending=False)
        if self.crop not in _CROPS:
            refuse("pseudo-video", self, "crop", f"one of {', '.join(_CROPS)}")

    @property
    def others(self) -> int:
        """How many other pictures a clip may take objects from."""
        return (self.merge > 0) + self.paste[1]


def require_clip(recipe: Any) -> None:
    """Refuse a recipe of which no clip could be made: its `frames`, `size` or `objects` are out of range.

    Raises:
        UserError: naming the field.
    """
    require_number("pseudo-video", recipe, "frames", 1, _MOST_FRAMES, whole=True)
    require_pair("pseudo-video", recipe, "size", 16, _LARGEST_SIDE, whole=True, ascending=False)
    require_number("pseudo-video", recipe, "objects", 1, MAX_OBJECTS, whole=True)


def redrawn_video(name: str, image: Clip, others: list[Clip], recipe: RedrawnRecipe, rng: np.random.Generator) -> Clip:
    """A clip of one picture, moved anew in every frame; arguments and result as of `pseudo_video`."""
    merging = int(recipe.merge > 0)
    ground = _scene(image, recipe, rng)
    layers = [ground]
    if rng.random() < recipe.merge:
        layers += [_scene(other, recipe, rng).alone() for other in others[:merging]]
    count = int(rng.integers(recipe.paste[0], recipe.paste[1] + 1)) if rng.random() < recipe.paste_chance else 0
    layers += [_pasted(other, ground, recipe, rng) for other in others[merging:][:count] if other.objects]
    frames, masks = draw(layers, recipe.size)
    return Clip(name, frames, keep_objects(masks, recipe.objects, rng, recipe.smallest))


def _scene(image: Clip, recipe: RedrawnRecipe, rng: np.random.Generator) -> Layer:
    """Every draw of a whole picture."""
    shared, mirrored = recipe.shared.draw(rng, image.size), rng.random() < recipe.flip
    shared_colour, grey = recipe.shared_colour.draw(rng), rng.random() < recipe.grey
    corners, mean = _corner_maps(recipe, image.size, rng), np.array(cv2.mean(image.frames[0])[:3])
    motions, mirrors, bends, colours = [], [], [], []
    for t in range(recipe.frames):
        motion, flipped = recipe.each.draw(rng, image.size), rng.random() < recipe.each_flip
        colour = recipe.each_colour.draw(rng)
        bends.append(ThinPlate.draw(rng, recipe.points, recipe.spread) if rng.random() < recipe.thin_plate else None)
        if t == 0 and recipe.plain_first:
            motion, flipped, colour = np.eye(3), False, UNCHANGED
        motions.append(corners[t] @ motion @ shared)
        mirrors.append(_mirror(recipe.size[1]) if mirrored != flipped else np.eye(3))
        colours.append(colour_matrix([shared_colour, colour], grey, mean))
    crops = _crops(image, motions, recipe, rng)
    maps = [mirror @ crop @ motion for mirror, crop, motion in zip(mirrors, crops, motions, strict=True)]
    return Layer(image.frames[0], image.masks[0], np.stack(maps), bends, np.stack(colours))


def _mirror(width: int) -> np.ndarray:
    return np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])


def _corner_maps(recipe: RedrawnRecipe, size: tuple[int, int], rng: np.random.Generator) -> list[np.ndarray]:
    """One projective map a frame: corners start in place, jump in the second frame and go on in that direction."""
    right, bottom = size[1] - 1, size[0] - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], np.float32)
    offsets, maps = np.zeros((4, 2)), [np.eye(3)]
    for t in range(1, recipe.frames):
        step = recipe.corners * rng.uniform(-1, 1, (4, 2))
        offsets = offsets + (step if t == 1 else np.sign(offsets) * np.abs(step))
        offsets = np.clip(offsets, -_FARTHEST_CORNER, _FARTHEST_CORNER)
        drawn = (corners + offsets * (size[1], size[0])).astype(np.float32)
        maps.append(cv2.getPerspectiveTransform(drawn, corners) if recipe.corners else np.eye(3))
    return maps


def _crops(image: Clip, motions: list[np.ndarray], recipe: RedrawnRecipe, rng: np.random.Generator) -> list[np.ndarray]:
    """One map a frame: a window of the moved picture becomes the frame."""
    if recipe.crop == "frame":
        return [_crop(image.size, recipe, rng) for _ in motions]
    objects = _box(image.masks[0], motions, image.size) if recipe.crop == "objects" else None
    return [_crop(image.size, recipe, rng, objects)] * len(motions)


def _crop(
    picture: tuple[int, int], recipe: RedrawnRecipe, rng: np.random.Generator, objects: np.ndarray | None = None
) -> np.ndarray:
    """The map of one window; `objects` is the box (x, y, x, y) that it should hold."""
    sides = np.array([picture[1], picture[0]], float)
    frame = np.array([recipe.size[1], recipe.size[0]], float)
    window = frame / (recipe.zoom * (frame / sides).max())
    if recipe.area is not None:
        window = _random_window(sides, frame, recipe, rng)
    low, high = np.zeros(2), sides - window
    if objects is not None:
        # A window that is larger than the objects lies about them, a smaller one among them.
        ends = np.sort([objects[:2], objects[2:] - window], axis=0)
        low, high = np.clip(ends, 0, sides - window)
    corner = rng.uniform(low, np.maximum(low, high))
    across, down = frame / window
    # Windows are measured from corner to corner, pixels from centre to centre.
    shift = (across * (0.5 - corner[0]) - 0.5, down * (0.5 - corner[1]) - 0.5)
    return np.array([[across, 0, shift[0]], [0, down, shift[1]], [0, 0, 1]])


def _random_window(sides: np.ndarray, frame: np.ndarray, recipe: RedrawnRecipe, rng: np.random.Generator) -> np.ndarray:
    """(width, height) of a share of the picture; the largest of an aspect allowed where no draw fits into it."""
    aspects = np.log(np.array(recipe.aspect) * frame[0] / frame[1])
    for _ in range(10):
        area, aspect = rng.uniform(*recipe.area) * sides.prod(), np.exp(rng.uniform(*aspects))
        window = np.sqrt([area * aspect, area / aspect])
        if (window <= sides).all():
            return window
    aspect = np.clip(sides[0] / sides[1], *np.exp(aspects))
    return np.minimum(sides, [sides[1] * aspect, sides[0] / aspect])


def _box(mask: np.ndarray, motions: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(x, y, x, y) of the objects in all frames, within the picture."""
    ends = np.concatenate([moved(box_corners(cv2.boundingRect(mask)), m) for m in motions])
    return np.clip(np.concatenate([ends.min(axis=0), ends.max(axis=0)]), 0, [size[1], size[0]] * 2)


def _pasted(other: Clip, ground: Layer, recipe: RedrawnRecipe, rng: np.random.Generator) -> Layer:
    """An object of another picture, as large as in a clip of that picture, which starts anywhere and drifts.

    It takes the ground's colours, and lies unbent.
    """
    frame = np.array([recipe.size[1], recipe.size[0]], float)
    scale = recipe.zoom * max(recipe.size[0] / other.size[0], recipe.size[1] / other.size[1])
    chosen = int(rng.choice(other.objects))
    unmoved = Layer(other.frames[0], other.masks[0], np.eye(3)[None], [None] * recipe.frames, ground.colours)
    cut = unmoved.alone(chosen)
    height, width = cut.mask.shape
    place, towards = rng.uniform(0, 1, 2) * frame, rng.choice([-1.0, 1.0], 2)
    turned, maps = np.eye(3), []
    for t in range(recipe.frames):
        if t:
            place = np.clip(place + towards * rng.uniform(0, recipe.paste_drift) * frame, 0, frame)
            turned = recipe.paste_motion.draw(rng, (height, width)) @ turned
        centre = affine(scale, shift=tuple(place)) @ affine(shift=(-(width - 1) / 2, -(height - 1) / 2))
        maps.append(centre @ turned)
    return replace(cut, maps=np.stack(maps))
