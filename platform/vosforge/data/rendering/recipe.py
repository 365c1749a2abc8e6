"""Every parameter of a rendered data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vosforge.clip import MAX_OBJECTS
from vosforge.data.rendering.textures import PATTERNS
from vosforge.errors import UserError

PATHS = ("polynomial", "spline")
_LARGEST_SIDE = 8192
_PAIRS = ("objects", "distractors", "links", "lights", "size", "gloss", "brightness")


@dataclass(frozen=True)
class SceneRecipe:
    """What scenes look like; with (seed, video) it fixes every pixel. `dataclasses.asdict` gives plain JSON values.

    Defaults are the preset `bl30k`: the numbers of BL30K (Cheng, Tai and Tang, "Modular interactive video object
    segmentation", CVPR 2021, and its released generator).

    Attributes:
        height: pixels, 16..8192.
        width: pixels, 16..8192.
        frames: frames a clip, at least 1. A longer clip starts with the frames of a shorter one.
        objects: fewest and most objects, 1..255.
        distractors: fewest and most things that move like objects but have no id.
        links: fewest and most parts of an object, joined in a chain by hinges that swing.
        deforming: probability that a part twists, bends and waves.
        size: smallest and largest scale of an object along each of its axes, where 1 makes the diagonal of its
            bounding box one scene unit. The view is about 6 units wide where objects are.
        paths: "polynomial", of degree 4 through 5 control points as in BL30K, which may overshoot; or "spline".
        speed: of objects and camera alike; 1 puts control points 40 frames apart, as 5 in BL30K's 160 frames; 0 stops
            everything.
        pause_enter: probability, at each control point, that an object or the camera stops.
        pause_stay: probability that it then remains so.
        exits: probability, at each control point of a spline, that an object heads out of the view.
        shake: probability that the camera shakes.
        blur: probability that a clip is blurred by motion; such clips take 5 times as long.
        lights: fewest and most lamps, 1..8.
        shadows: how many of the lamps cast shadows.
        textures: names of the drawn patterns to choose from.
        picture_probability: probability that a surface shows one of the user's pictures, if any are given.
        mesh_probability: probability that an object, or a part of one, is one of the user's meshes, if any are given.
        own_look: probability that a user's mesh that brings textures keeps them.
        gloss: weakest and strongest highlight.
        brightness: darkest and brightest mean linear light, of the objects and, drawn apart, of the background, in
            the first frame.
        visible: share of the frame's pixels that every object covers in the first frame, where it fits in; clips
            without it are drawn again.
        detail: scales the resolution of meshes and textures, which already follow the frame's size.

    Raises:
        UserError: when a parameter is out of range; the message names it.
    """

    height: int = 512
    width: int = 768
    frames: int = 160
    objects: tuple[int, int] = (3, 5)
    distractors: tuple[int, int] = (0, 0)
    links: tuple[int, int] = (1, 1)
    deforming: float = 0.0
    size: tuple[float, float] = (1.25, 3.0)
    paths: str = "polynomial"
    speed: float = 1.0
    pause_enter: float = 0.10
    pause_stay: float = 0.35
    exits: float = 0.0
    shake: float = 0.0
    blur: float = 0.0
    lights: tuple[int, int] = (1, 3)
    shadows: int = 1
    textures: tuple[str, ...] = PATTERNS
    picture_probability: float = 0.5
    mesh_probability: float = 0.5
    own_look: float = 0.5
    gloss: tuple[float, float] = (0.0, 0.8)
    brightness: tuple[float, float] = (0.12, 0.30)
    visible: float = 0.005
    detail: float = 1.0

    def __post_init__(self) -> None:
        for name in (*_PAIRS, "textures"):
            # JSON brings lists; a recipe must stay hashable and immutable.
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for name in ("height", "width"):
            self._require_number(name, 16, _LARGEST_SIDE, whole=True)
        self._require_number("frames", 1, 1 << 20, whole=True)
        self._require_number("shadows", 0, 8, whole=True)
        self._require_range("objects", 1, MAX_OBJECTS, whole=True)
        self._require_range("distractors", 0, MAX_OBJECTS, whole=True)
        self._require_range("links", 1, 8, whole=True)
        self._require_range("lights", 1, 8, whole=True)
        self._require_range("size", 0.1, 3.5)
        self._require_range("gloss", 0.0, 10.0)
        self._require_range("brightness", 0.001, 1.0)
        self._require_number("speed", 0.0, 100.0)
        self._require_number("detail", 0.05, 4.0)
        shares = ("picture_probability", "mesh_probability", "own_look", "deforming", "shake", "blur")
        for name in ("pause_enter", "pause_stay", "exits", "visible", *shares):
            self._require_number(name, 0.0, 1.0)
        if self.paths not in PATHS:
            self._refuse("paths", f"one of {', '.join(PATHS)}")
        if not self.textures or not isinstance(self.textures, tuple) or set(self.textures) - set(PATTERNS):
            self._refuse("textures", f"some of {', '.join(PATTERNS)}")

    def _refuse(self, name: str, expected: str) -> None:
        raise UserError(f"scene recipe: {name} must be {expected}, found {getattr(self, name)!r}")

    def _require_number(self, name: str, low: float, high: float, whole: bool = False) -> None:
        if not _is_number(getattr(self, name), low, high, whole):
            self._refuse(name, f"{'a whole number' if whole else 'a number'} in {low}..{high}")

    def _require_range(self, name: str, low: float, high: float, whole: bool = False) -> None:
        value = getattr(self, name)
        fits = isinstance(value, tuple) and len(value) == 2 and all(_is_number(v, low, high, whole) for v in value)
        if not fits or value[0] > value[1]:
            self._refuse(name, f"(fewest, most) in {low}..{high}" if whole else f"(low, high) in {low}..{high}")


def _is_number(value: object, low: float, high: float, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


PRESETS = {
    "bl30k": SceneRecipe(),
    "hard": SceneRecipe(
        distractors=(0, 2), links=(1, 3), deforming=0.4, size=(1.25, 2.9), paths="spline", exits=0.2, shake=0.5,
        blur=0.1,
    ),
}  # fmt: skip
"""BL30K's rigid objects on polynomial paths; and what it lacks: articulated and deforming parts, exits and re-entries,
unlabelled distractors, camera shake and motion blur."""


def preset(name: str, **changes: Any) -> SceneRecipe:
    """A preset with some parameters changed; those given as None stay.

    Raises:
        UserError: when there is no such preset, or a parameter is out of range.
    """
    if name not in PRESETS:
        raise UserError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
    return replace(PRESETS[name], **{key: value for key, value in changes.items() if value is not None})
