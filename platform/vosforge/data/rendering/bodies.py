"""Bodies: the models of an object or distractor, how they turn, grow, swing on their hinges and bend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vosforge.data.rendering import motion
from vosforge.data.rendering.meshes import Model, draw_mesh
from vosforge.data.rendering.numerics import PI, product, sines
from vosforge.data.rendering.random_streams import RandomStream, Streams
from vosforge.data.rendering.recipe import SceneRecipe

# The fourth roots of 0.8 and 1.25: between control points an axis shrinks or grows by at most these.
_GROWTH = (0.9457416090031758, 1.0573712634405641)
_TURN = 0.8
# Joints overlap by a tenth, so that chains show no gaps.
_OVERLAP = 0.9


@dataclass(frozen=True, slots=True)
class Body:
    """A chain of L models over M moments, but for where it is.

    Attributes:
        models: the links.
        turns: `(M, L, 3, 3)` rotation times scale.
        offsets: `(M, L, 3)` of the links from the body's middle.
        bends: `(M, L, 4)`, see `Scene.bends`.
        still: `(S + 1,)` bool, the segments in which it stands still.
        radius: of a sphere about its middle that holds it.
    """

    models: tuple[Model, ...]
    turns: np.ndarray
    offsets: np.ndarray
    bends: np.ndarray
    still: np.ndarray
    radius: float


def draw_body(
    recipe: SceneRecipe,
    streams: Streams,
    number: int,
    shrink: float,
    detail: float,
    library: Sequence[Model],
    times: np.ndarray,
) -> Body:
    """Body `number` of a scene.

    Args:
        recipe: what scenes look like.
        streams: of the video.
        number: of the body, from 0.
        shrink: factor of its size.
        detail: of procedural meshes.
        library: the user's models, mixed in by `recipe.mesh_probability`.
        times: `(M,)` in knot intervals.
    """
    segments = motion.segment_count(recipe.frames, recipe.speed)
    still = motion.pauses(streams("object", number, "pauses"), segments + 1, recipe.pause_enter, recipe.pause_stay)
    links = streams("object", number, "links").integer(*recipe.links)
    if links > 1:
        shrink, detail = shrink / 1.7, detail * 0.7
    models, turns, scales, bends, swells = [], [], [], [], []
    for link in range(links):
        models.append(_draw_model(recipe, streams("object", number, "mesh", link), detail, library))
        knots = _draw_scales(recipe, streams("object", number, "size", link), still) * shrink
        scales.append(motion.travel(recipe.paths, knots, still, times))
        hinge = motion.rotations(
            motion.swing(streams("object", number, "hinge", link), times)
            if link
            else _draw_angles(recipe, streams("object", number, "rotation"), still, times)
        )
        turns.append(product(turns[-1], hinge) if link else hinge)
        bend, swell = _draw_bends(recipe, streams("object", number, "bend", link), times)
        bends.append(bend)
        # The first polynomial alone counts, whatever the clip's length, and may overshoot a little.
        swells.append((knots[: motion.POLYNOMIAL_KNOTS].max(axis=0) * 1.06, swell))
    offsets, radius = _chain(models, turns, scales, swells)
    scaled = np.stack([turn * scale[:, None] for turn, scale in zip(turns, scales, strict=True)], axis=1)
    return Body(tuple(models), scaled, offsets, np.stack(bends, axis=1), still, radius)


def _draw_model(recipe: SceneRecipe, stream: RandomStream, detail: float, library: Sequence[Model]) -> Model:
    if len(library) and stream.chance(recipe.mesh_probability):
        return stream.choice(library)
    return Model((draw_mesh(stream, detail),))


def _draw_scales(recipe: SceneRecipe, stream: RandomStream, still: np.ndarray) -> np.ndarray:
    """`(S + 2, 3)` knots of the scale along each axis."""
    start = stream.uniforms((1, 3), *recipe.size)
    growth = np.where(still[:, None], 1.0, stream.uniforms((len(still), 3), *_GROWTH))
    knots = np.cumprod(np.concatenate([start, growth]), axis=0)
    return np.clip(knots, 0.8 * recipe.size[0], 1.25 * recipe.size[1])


def _draw_angles(recipe: SceneRecipe, stream: RandomStream, still: np.ndarray, times: np.ndarray) -> np.ndarray:
    """`(M, 3)` angles that start anywhere and change by 0.8 rad, normally distributed, between knots."""
    start = stream.uniforms((3,), 0.0, 2 * PI)
    knots = motion.accumulate(start, _TURN * stream.normals((len(still), 3)), still)
    return motion.travel(recipe.paths, knots, still, times)


def _draw_bends(recipe: SceneRecipe, stream: RandomStream, times: np.ndarray) -> tuple[np.ndarray, float]:
    """`(M, 4)` bends, and how far at most they move a vertex outwards."""
    bends = np.zeros((len(times), 4))
    bending, twist, curve, wave, rate, phase = stream.uniforms((6,))
    if bending >= recipe.deforming:
        return bends, 0.0
    twist, curve, wave = 5.0 * twist - 2.5, 1.6 * curve - 0.8, 0.04 * wave
    angle = times * (2.0 + 6.0 * rate)
    swung = sines(angle + 2 * PI * phase)
    bends[:, 0], bends[:, 1], bends[:, 2], bends[:, 3] = twist * swung, curve * swung, wave, 3 * angle + phase
    return bends, abs(curve) * 0.25 + 2 * wave


def _chain(
    models: list[Model],
    turns: list[np.ndarray],
    scales: list[np.ndarray],
    swells: list[tuple[np.ndarray, float]],
) -> tuple[np.ndarray, float]:
    """`(M, L, 3)` offsets of links that are joined end to end along their z axes, and the radius of the whole."""
    centres, places = [np.zeros_like(scales[0])], [0.0]
    half = [model.reach * _OVERLAP for model in models]
    for link in range(1, len(models)):
        step = np.zeros_like(scales[0])
        for side in (link - 1, link):
            step = step + turns[side][:, :, 2] * (scales[side][:, 2:] * half[side])
        centres.append(centres[-1] + step)
        places.append(places[-1] + sum(half[side] * swells[side][0][2] for side in (link - 1, link)))
    offsets = np.stack(centres, axis=1)
    offsets = offsets - (np.cumsum(offsets, axis=1)[:, -1:] / len(models))
    middle = sum(places) / len(places)
    radius = 0.0
    for model, place, (scale, swell) in zip(models, places, swells, strict=True):
        radius = max(radius, abs(place - middle) + model.radius(scale) + swell * float(scale.max()))
    return offsets, radius
