"""Every parameter of a rendered data set."""

from __future__ import annotations

from dataclasses import dataclass

from vosforge.clip import MAX_OBJECTS
from vosforge.data.rendering.textures import PATTERNS
from vosforge.errors import UserError

_LARGEST_SIDE = 8192


@dataclass(frozen=True)
class SceneRecipe:
    """What scenes look like; with (seed, video) it fixes every pixel. `dataclasses.asdict` gives plain JSON values.

    Defaults follow BL30K (Cheng, Tai and Tang, "Modular interactive video object segmentation", CVPR 2021): 160
    frames of 768x512, 3 to 5 objects, and its pauses.

    Attributes:
        height: pixels, 16..8192.
        width: pixels, 16..8192.
        frames: frames a clip, at least 1. A longer clip starts with the frames of a shorter one.
        objects: fewest and most objects, 1..255.
        size: smallest and largest diagonal of an object's bounding box, in scene units. The view is about 6 units
            wide where objects are.
        speed: of objects and camera alike; 1 moves an object about 2 units in 40 frames, 0 stops everything.
        pause_enter: probability, each 40 frames / speed, that an object or the camera stops.
        pause_stay: probability that it then remains so.
        exits: probability, each 40 frames / speed, that an object heads out of the view.
        textures: names of the drawn patterns to choose from.
        picture_probability: probability that a surface shows one of the user's pictures, if any are given.
        gloss: weakest and strongest highlight.
        brightness: darkest and brightest mean linear light, of the objects and, drawn apart, of the background, in
            the first frame.
        visible: share of the frame's pixels that every object covers in the first frame, where it fits in.
        detail: scales the resolution of meshes and textures, which already follow the frame's size.

    Raises:
        UserError: when a parameter is out of range; the message names it.
    """

    height: int = 512
    width: int = 768
    frames: int = 160
    objects: tuple[int, int] = (3, 5)
    size: tuple[float, float] = (1.25, 2.9)
    speed: float = 1.0
    pause_enter: float = 0.10
    pause_stay: float = 0.35
    exits: float = 0.2
    textures: tuple[str, ...] = PATTERNS
    picture_probability: float = 0.5
    gloss: tuple[float, float] = (0.0, 0.8)
    brightness: tuple[float, float] = (0.12, 0.30)
    visible: float = 0.005
    detail: float = 1.0

    def __post_init__(self) -> None:
        for name in ("objects", "size", "gloss", "brightness", "textures"):
            # JSON brings lists; a recipe must stay hashable and immutable.
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for name in ("height", "width"):
            self._require_number(name, 16, _LARGEST_SIDE, whole=True)
        self._require_number("frames", 1, 1 << 20, whole=True)
        self._require_range("objects", 1, MAX_OBJECTS, whole=True)
        self._require_range("size", 0.1, 3.5)
        self._require_range("gloss", 0.0, 10.0)
        self._require_range("brightness", 0.001, 1.0)
        self._require_number("speed", 0.0, 100.0)
        self._require_number("detail", 0.05, 4.0)
        for name in ("pause_enter", "pause_stay", "exits", "picture_probability", "visible"):
            self._require_number(name, 0.0, 1.0)
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
