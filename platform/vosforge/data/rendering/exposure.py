"""How much light a clip gets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from numba import njit

from vosforge.data.rendering.drawing import Buffers, draw
from vosforge.data.rendering.numerics import JIT
from vosforge.data.rendering.random_streams import RandomStream

if TYPE_CHECKING:
    from vosforge.data.rendering.scene import Scene

_STRONGEST = 8.0


@njit(**JIT)
def _mean_light(light, ids):
    """Mean of R, G and B over the background and over all objects, 0 where there is none."""
    background = objects = 0.0
    covered = 0
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            value = (float(light[y, x, 0]) + float(light[y, x, 1]) + float(light[y, x, 2])) / 3.0
            if ids[y, x]:
                objects += value
                covered += 1
            else:
                background += value
    return background / max(ids.size - covered, 1), objects / max(covered, 1)


def expose(scene: Scene, brightness: tuple[float, float], stream: RandomStream) -> Scene:
    """The scene with lamps, ambient light and background scaled to drawn mean values in the first frame.

    Lamps and ambient light keep their ratios. Neither gain exceeds 8, so that a black texture stays dark.

    Args:
        scene: complete but for its exposure.
        brightness: darkest and brightest mean linear light, in (0, 1], drawn once for objects and once for the
            background.
        stream: draws both.
    """
    preview = scene.preview()
    buffers = Buffers(preview)
    draw(preview, 0, buffers)
    gains = []
    for mean in _mean_light(buffers.light, buffers.ids):
        wanted = stream.uniform(*brightness)
        gains.append(min(wanted / max(mean, 1e-6), _STRONGEST))
    background, objects = gains
    return replace(
        scene,
        background_gain=scene.background_gain * background,
        lamp_colours=scene.lamp_colours * objects,
        ambient=scene.ambient * objects,
    )
