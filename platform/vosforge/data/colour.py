"""Colour jitter of whole clips and of single frames, composed into one `(3, 4)` matrix a frame.

Brightness, contrast, saturation and grey are affine in RGB. Hue is turned about the grey axis at equal luma, which is
affine too, where the field shifts it in HSV; for the few degrees of jitter the two look alike. So everything that
happens to a frame's colours is one matrix, rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vosforge.data.ranges import require_number

# What `Jitter.draw` gives for ranges of 0.
UNCHANGED = np.array([1.0, 1.0, 1.0, 0.0])
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_SAME = np.hstack([np.eye(3), np.zeros((3, 1))])


@dataclass(frozen=True)
class Jitter:
    """Ranges of colour jitter, in torchvision's units.

    Attributes:
        brightness, contrast, saturation: factors, uniform in 1 +- value, at most 1.
        hue: share of a full turn, uniform in +- value, at most 0.5.

    Raises:
        UserError: when a value is out of range; the message names it.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            require_number("pseudo-video: colour jitter", self, name, 0, 1)
        require_number("pseudo-video: colour jitter", self, "hue", 0, 0.5)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """`(4,)`: factors of brightness, contrast and saturation, and the turn of the hue in radians."""
        brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4)
        return np.array(
            [
                1 + self.brightness * brightness,
                1 + self.contrast * contrast,
                1 + self.saturation * saturation,
                2 * np.pi * self.hue * hue,
            ]
        )


def colour_matrix(draws: list[np.ndarray], grey: bool, mean: np.ndarray) -> np.ndarray:
    """The colour map of a frame.

    Args:
        draws: of `Jitter`, applied in this order: that of the clip, then that of the frame.
        grey: whether the picture turns grey after the first of them.
        mean: `(3,)` mean RGB of the picture, about whose luma contrast scales. Taken from the picture as it is
            given, so that all frames of a clip share one map however they are cropped.

    Returns:
        `(3, 4)` map of (R, G, B, 1).
    """
    total = _SAME
    for number, draw in enumerate(draws):
        total = _jittered(total, draw, mean)
        if grey and number == 0:
            total = np.tile(_LUMA, (3, 1)) @ total
    return total


def _jittered(total: np.ndarray, draw: np.ndarray, mean: np.ndarray) -> np.ndarray:
    brightness, contrast, saturation, turn = draw
    total = brightness * total
    middle = _LUMA @ (total[:, :3] @ mean + total[:, 3])
    total = contrast * total
    total[:, 3] += (1 - contrast) * middle
    cos, sin = np.cos(turn), np.sin(turn)
    chroma = _FROM_YIQ @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ _TO_YIQ
    return chroma @ (saturation * np.eye(3) + (1 - saturation) * _LUMA) @ total


def recolour(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """An RGB frame `(H, W, 3)` uint8 through a `colour_matrix`."""
    return frame if np.array_equal(matrix, _SAME) else cv2.transform(frame, matrix)
