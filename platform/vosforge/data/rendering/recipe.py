"""Every parameter of a rendered data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vosforge.clip import MAX_OBJECTS
from vosforge.data.ranges import refuse, require_number, require_pair
from vosforge.data.rendering.textures import PATTERNS
from vosforge.errors import UserError

PATHS = ("polynomial", "spline")
_LARGEST_SIDE = 8192


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
        if isinstance(self.textures, list):
            # JSON brings lists; a recipe must stay hashable and immutable.
            object.__setattr__(self, "textures", tuple(self.textures))
        for name in ("height", "width"):
            require_number("scene recipe", self, name, 16, _LARGEST_SIDE, whole=True)
        require_number("scene recipe", self, "frames", 1, 1 << 20, whole=True)
        require_number("scene recipe", self, "shadows", 0, 8, whole=True)
        require_pair("scene recipe", self, "objects", 1, MAX_OBJECTS, whole=True)
        require_pair("scene recipe", self, "distractors", 0, MAX_OBJECTS, whole=True)
        require_pair("scene recipe", self, "links", 1, 8, whole=True)
        require_pair("scene recipe", self, "lights", 1, 8, whole=True)
        require_pair("scene recipe", self, "size", 0.1, 3.5)
        require_pair("scene recipe", self, "gloss", 0.0, 10.0)
        require_pair("scene recipe", self, "brightness", 0.001, 1.0)
        require_number("scene recipe", self, "speed", 0.0, 100.0)
        require_number("scene recipe", self, "detail", 0.05, 4.0)
        shares = ("picture_probability", "mesh_probability", "own_look", "deforming", "shake", "blur")
        for name in ("pause_enter", "pause_stay", "exits", "visible", *shares):
            require_number("scene recipe", self, name, 0.0, 1.0)
        if self.paths not in PATHS:
            refuse("scene recipe", self, "paths", f"one of {', '.join(PATHS)}")
        if not self.textures or not isinstance(self.textures, tuple) or set(self.textures) - set(PATTERNS):
            refuse("scene recipe", self, "textures", f"some of {', '.join(PATTERNS)}")


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
