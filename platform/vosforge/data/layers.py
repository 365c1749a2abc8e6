"""Layers: pictures that lie over each other in a clip, each moved, bent and coloured in its own way."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from vosforge.clip import MAX_OBJECTS
from vosforge.data.colour import recolour
from vosforge.data.geometry import affine, moved, reduced, resample
from vosforge.data.thin_plate import ThinPlate

# Interpolation reaches two pixels beyond an object.
_MARGIN = 2


@dataclass(frozen=True)
class Layer:
    """A picture with its mask, and what happens to it in every frame.

    Attributes:
        picture: `(H, W, 3)` uint8 RGB.
        mask: `(H, W)` uint8 ids.
        maps: `(T, 3, 3)`, from its pixels to the frame's, affine or projective.
        bends: one a frame; None leaves it flat.
        colours: `(T, 3, 4)`, one `colour_matrix` a frame.
    """

    picture: np.ndarray
    mask: np.ndarray
    maps: np.ndarray
    bends: list[ThinPlate | None]
    colours: np.ndarray

    def alone(self, only: int | None = None) -> Layer:
        """The layer cut to its objects' box, or to one object's with no others in its mask."""
        mask = self.mask if only is None else np.where(self.mask == only, self.mask, 0).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        left, top = max(x - _MARGIN, 0), max(y - _MARGIN, 0)
        rows, columns = slice(top, y + height + _MARGIN), slice(left, x + width + _MARGIN)
        maps = self.maps @ affine(shift=(left, top))
        return replace(self, picture=self.picture[rows, columns], mask=mask[rows, columns], maps=maps)

    def prepared(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture, made smaller once where every frame shrinks it, and the `(3, 3)` map from its pixels."""
        height, width = self.mask.shape
        corner = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) + np.array([width / 2, height / 2])
        shrinks = []
        for matrix in self.maps:
            middle, right, below = moved(corner, matrix)
            shrinks.append(np.sqrt(abs(np.linalg.det(np.stack([right - middle, below - middle])))))
        picture, enlarge = reduced(self.picture, float(max(shrinks)))
        return picture, np.eye(3) if enlarge is None else enlarge


def draw(layers: list[Layer], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw the first layer whole and the objects of the others over it, in their order.

    Args:
        layers: at least one; ids of their objects are counted through, up to 255.
        size: (height, width) of the frames.

    Returns:
        Frames `(T, H, W, 3)` and masks `(T, H, W)`, uint8.
    """
    shape = (len(layers[0].maps), *size)
    frames, masks = np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
    for number, layer in enumerate(_numbered(layers)):
        picture, enlarge = layer.prepared()
        border = cv2.BORDER_REPLICATE if number else cv2.BORDER_CONSTANT
        for t in range(len(frames)):
            bend = None if layer.bends[t] is None else layer.bends[t].nodes(size)
            ids = resample(layer.mask, layer.maps[t], size, cv2.INTER_NEAREST, bend)
            x, y, width, height = cv2.boundingRect(ids) if number else (0, 0, size[1], size[0])
            if width == 0:
                continue
            window = (slice(y, y + height), slice(x, x + width))
            colours = resample(picture, layer.maps[t] @ enlarge, size, cv2.INTER_CUBIC, bend, border, window)
            colours = recolour(colours, layer.colours[t])
            if number == 0:
                frames[t], masks[t] = colours, ids
            else:
                cv2.copyTo(colours, ids[window], frames[t][window])
                cv2.copyTo(ids, ids, masks[t])
    return frames, masks


def _numbered(layers: list[Layer]) -> list[Layer]:
    """The layers with their objects' ids counted through."""
    numbered, used = [], 0
    for layer in layers:
        counts = np.bincount(layer.mask.ravel(), minlength=256)[1:]
        ids = (np.flatnonzero(counts) + 1)[: MAX_OBJECTS - used]
        table = np.zeros(256, np.uint8)
        table[ids] = used + 1 + np.arange(len(ids))
        used += len(ids)
        numbered.append(replace(layer, mask=cv2.LUT(np.ascontiguousarray(layer.mask), table)))
    return numbered
