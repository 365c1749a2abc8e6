"""A scene as data: all that any renderer needs, and nothing that only ours does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

_PREVIEW_SIDE = 144


@dataclass(frozen=True)
class Scene:
    """A video to be rendered, as arrays.

    World units; x right, y away from the camera, z up. T frames of S moments each, P parts, V vertices, F faces. A
    part is a mesh with a pose and a texture; an object is all parts with its label.

    Attributes:
        height: pixels.
        width: pixels.
        focal: focal length in pixels; the optical axis meets the image's centre.
        cameras: `(T, S, 3, 4)` world to camera (x right, y down, z forward). A frame shows the mean of its moments;
            its mask belongs to the last one, which is the middle of its exposure.
        poses: `(T, S, P, 3, 4)` part to world: rotation times scale, and translation.
        bends: `(T, S, P, 4)` twist in rad per unit of z, curvature, and amplitude and phase of a wave; see
            `raster.place`. All zero for rigid parts.
        points: `(V, 3)` vertices of all parts, each in its part's space.
        normals: `(V, 3)`, not of unit length.
        uvs: `(V, 2)`; textures repeat every 1.
        point_part: `(V,)` int32.
        faces: `(F, 3)` int32.
        face_part: `(F,)` int32.
        labels: `(P,)` uint8 id of the part's object in masks; 0 for distractors, which masks leave out.
        closed: `(P,)` bool: the part's mesh is closed and counter-clockwise seen from outside.
        part_texture: `(P,)` int64 index into `textures`.
        textures: square uint8 sRGB images `(size, size, 3)`, sizes powers of two; the background's is the last.
        gloss: `(P,)` strength of highlights.
        gloss_doublings: `(P,)` int64, the sharpness of highlights.
        lamps: `(L, 3)` positions.
        lamp_colours: `(L, 3)` linear RGB intensity.
        shadows: how many of the lamps, from the first on, cast shadows.
        ambient: `(3,)` linear RGB irradiance from above; a quarter of it comes from below.
        background_gain: linear light of a white texel of the background.
    """

    height: int
    width: int
    focal: float
    cameras: np.ndarray
    poses: np.ndarray
    bends: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    point_part: np.ndarray
    faces: np.ndarray
    face_part: np.ndarray
    labels: np.ndarray
    closed: np.ndarray
    part_texture: np.ndarray
    textures: tuple[np.ndarray, ...]
    gloss: np.ndarray
    gloss_doublings: np.ndarray
    lamps: np.ndarray
    lamp_colours: np.ndarray
    shadows: int
    ambient: np.ndarray
    background_gain: float

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return self.cameras.shape[0]

    @property
    def moments(self) -> int:
        """Moments a frame; more than one blurs what moves."""
        return self.cameras.shape[1]

    @property
    def objects(self) -> int:
        """Objects with ids, which are 1 to this number."""
        return int(self.labels.max(initial=0))

    def preview(self) -> Scene:
        """The first frame's mask moment alone, at most 144 pixels wide and high."""
        share = min(1.0, _PREVIEW_SIDE / max(self.height, self.width))
        height, width = (max(round(side * share), 1) for side in (self.height, self.width))
        return replace(
            self,
            height=height,
            width=width,
            focal=self.focal * share,
            cameras=self.cameras[:1, -1:],
            poses=self.poses[:1, -1:],
            bends=self.bends[:1, -1:],
        )
