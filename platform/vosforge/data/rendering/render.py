"""Frames and clips from scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vosforge.clip import Clip
from vosforge.data.rendering.build import build_scene
from vosforge.data.rendering.drawing import Buffers, draw
from vosforge.data.rendering.meshes import Model
from vosforge.data.rendering.recipe import SceneRecipe
from vosforge.data.rendering.scene import Scene
from vosforge.data.rendering.shading import encode


def frame_buffers(scene: Scene) -> Buffers:
    """Working memory that `render_frame` may keep from frame to frame of a scene."""
    return Buffers(scene)


def render_frame(scene: Scene, t: int, buffers: Buffers | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Render one frame on one thread, with the same bytes on any machine.

    What is nearer to the camera than 0.05 units is cut off; drawn paths keep their objects beyond that.

    Args:
        scene: from `build_scene`.
        t: the frame's number, 0..T-1.
        buffers: from `frame_buffers(scene)`; without them the frame allocates its own.

    Returns:
        `(H, W, 3)` uint8 sRGB, 2x2 samples a pixel, and `(H, W)` uint8 ids: what most of the four samples see, 0
        for the background, and on a tie what comes first in reading order.

    Raises:
        IndexError: when the scene has no such frame.
    """
    if not 0 <= t < scene.frames:
        raise IndexError(f"frame {t} of a scene of {scene.frames} frames")
    if buffers is None:
        buffers = frame_buffers(scene)
    draw(scene, t, buffers)
    return encode(buffers.light), buffers.ids.copy()


def render_clip(
    recipe: SceneRecipe,
    seed: int,
    video: int,
    textures: Sequence[np.ndarray] = (),
    models: Sequence[Model] = (),
) -> Clip:
    """Render a video with exact masks, the same bytes for the same arguments on any machine.

    Args:
        recipe: what scenes look like.
        seed: the data set's seed.
        video: the video's number in it, which also names the clip (five digits).
        textures: `(H, W, 3)` uint8 RGB pictures mixed in with the drawn textures; their order counts.
        models: mixed in with the drawn meshes; their order counts.

    Returns:
        A clip of `recipe.frames` frames; objects keep their ids 1..n, also while out of sight.

    Raises:
        UserError: when a picture has another shape or type.
    """
    scene = build_scene(recipe, seed, video, textures, models)
    frames = np.empty((scene.frames, scene.height, scene.width, 3), np.uint8)
    masks = np.empty(frames.shape[:3], np.uint8)
    buffers = frame_buffers(scene)
    for t in range(scene.frames):
        frames[t], masks[t] = render_frame(scene, t, buffers)
    return Clip(name=f"{video:05d}", frames=frames, masks=masks)
