"""How a recipe, a seed and a video's number become a scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vosforge.data.rendering import exposure, motion, placement
from vosforge.data.rendering.bodies import Body, draw_body
from vosforge.data.rendering.drawing import Buffers, see
from vosforge.data.rendering.meshes import Model
from vosforge.data.rendering.numerics import cosines, lengths, sines
from vosforge.data.rendering.random_streams import RandomStream, Streams
from vosforge.data.rendering.recipe import SceneRecipe
from vosforge.data.rendering.scene import Scene
from vosforge.data.rendering.shading import SMALLEST_LEVEL
from vosforge.data.rendering.textures import draw_background, draw_texture, fit_look, fit_picture
from vosforge.errors import UserError

_ATTEMPTS = 8
_BLUR_MOMENTS = 5
_NO_TEXTURES = (np.zeros((SMALLEST_LEVEL, SMALLEST_LEVEL, 3), np.uint8),)


def build_scene(
    recipe: SceneRecipe,
    seed: int,
    video: int,
    pictures: Sequence[np.ndarray] = (),
    models: Sequence[Model] = (),
) -> Scene:
    """The scene of one video, the same on any machine.

    Args:
        recipe: what scenes look like.
        seed: the data set's seed.
        video: the video's number in it.
        pictures: `(H, W, 3)` uint8 RGB images to use as textures beside the drawn ones; their order counts.
        models: meshes to use beside the drawn ones; their order counts.

    Returns:
        The scene. No two bodies touch in the first 160 / speed frames, and each object is seen in the first one, as
        far as there is room: up to 8 scenes are drawn for the video, and if none will do, the best stays.

    Raises:
        UserError: when a picture has another shape or type.
    """
    best = None
    for attempt in range(_ATTEMPTS):
        streams = Streams(seed, video, attempt)
        scene, bodies, faults = _draw_scene(recipe, streams, models)
        if best is None or faults < best[0]:
            best = (faults, scene, bodies, streams)
        if faults == (0.0, 0.0):
            break
    _, scene, bodies, streams = best
    textures, part_texture = _draw_surfaces(recipe, streams, bodies, pictures)
    scene = replace(scene, textures=textures, part_texture=part_texture)
    return exposure.expose(scene, recipe.brightness, streams("brightness"))


def _draw_scene(
    recipe: SceneRecipe, streams: Streams, models: Sequence[Model]
) -> tuple[Scene, list[Body], tuple[float, float]]:
    """A scene without textures or exposure, its bodies, and its faults.

    Those are, each 0 at best, how much an object lacks to be visible enough and how far bodies overlap.
    """
    count = streams("objects").integer(*recipe.objects)
    total = count + streams("distractors").integer(*recipe.distractors)
    moments = _BLUR_MOMENTS if streams("blur").chance(recipe.blur) else 1
    times = motion.frame_times(recipe.frames, recipe.speed, moments)
    # More than five bodies share the room that five have.
    shrink = float(np.sqrt(min(1.0, 5 / total)))
    detail = recipe.detail * float(np.sqrt(max(recipe.height, recipe.width) / 768))
    bodies = [draw_body(recipe, streams, n, shrink, detail, models, times.reshape(-1)) for n in range(total)]
    labels = np.append(np.arange(1, count + 1), np.zeros(total - count)).astype(np.uint8)
    scene = _assemble(recipe, streams, bodies, labels, times)
    owner = np.repeat(np.arange(total), [sum(len(m.meshes) for m in body.models) for body in bodies])
    preview = scene.preview()
    buffers = Buffers(preview)

    def visible_shares(places: np.ndarray) -> np.ndarray:
        moved = scene.poses[:1, -1:].copy()
        moved[..., 3] += places[owner]
        see(replace(preview, poses=moved), 0, buffers)
        seen = owner[buffers.geometry.face_part[buffers.triangle[buffers.triangle >= 0]]]
        return np.bincount(seen, minlength=total) / buffers.triangle.size

    paths = [streams("object", n, "path") for n in range(total)]
    radii, still = np.array([body.radius for body in bodies]), np.stack([body.still for body in bodies])
    space = placement.frustum(recipe.paths, recipe.height, recipe.width)
    # The preview counts pixels coarsely, hence the margin.
    wanted = np.where(labels > 0, 1.3 * recipe.visible, 0.0)
    starts, margin = placement.draw_starts(paths, radii, space, visible_shares, wanted)
    knots, tangents, gap = placement.draw_paths(recipe.paths, paths, starts, radii, still, space, recipe.exits)
    places = motion.follow(recipe.paths, knots, tangents, times.reshape(-1)).transpose(1, 0, 2)
    poses = scene.poses.copy()
    poses[..., 3] += places.reshape(*times.shape, total, 3)[:, :, owner]
    return replace(scene, poses=poses), bodies, (max(-margin, 0.0), max(-gap, 0.0))


def _assemble(
    recipe: SceneRecipe, streams: Streams, bodies: list[Body], labels: np.ndarray, times: np.ndarray
) -> Scene:
    """The bodies' geometry as one, with camera and lights; every body still at the origin."""
    focal, cameras = _draw_cameras(recipe, streams, times)
    meshes = [mesh for body in bodies for model in body.models for mesh in model.meshes]
    poses, bends, part_labels, part_body = [], [], [], []
    for number, body in enumerate(bodies):
        repeats = [len(model.meshes) for model in body.models]
        poses.append(np.repeat(np.concatenate([body.turns, body.offsets[..., None]], axis=-1), repeats, axis=1))
        bends.append(np.repeat(body.bends, repeats, axis=1))
        part_labels += [labels[number]] * sum(repeats)
        part_body += [number] * sum(repeats)
    first_point = np.cumsum([0, *(len(mesh.points) for mesh in meshes)])
    parts = np.arange(len(meshes), dtype=np.int32)
    finish = streams("finish").uniforms((len(bodies), 2))[part_body]
    lamps, lamp_colours, ambient = _draw_lights(recipe, streams("light"))
    return Scene(
        height=recipe.height,
        width=recipe.width,
        focal=focal,
        cameras=cameras.reshape(*times.shape, 3, 4),
        poses=np.concatenate(poses, axis=1).reshape(*times.shape, -1, 3, 4),
        bends=np.concatenate(bends, axis=1).reshape(*times.shape, -1, 4),
        points=np.concatenate([mesh.points for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        uvs=np.concatenate([mesh.uvs for mesh in meshes]),
        point_part=np.repeat(parts, [len(mesh.points) for mesh in meshes]),
        faces=np.concatenate([m.faces + n for m, n in zip(meshes, first_point, strict=False)]).astype(np.int32),
        face_part=np.repeat(parts, [len(mesh.faces) for mesh in meshes]),
        labels=np.array(part_labels, np.uint8),
        closed=np.array([mesh.closed for mesh in meshes]),
        part_texture=np.zeros(len(meshes), np.int64),
        textures=_NO_TEXTURES,
        gloss=recipe.gloss[0] + (recipe.gloss[1] - recipe.gloss[0]) * finish[:, 0],
        gloss_doublings=2 + (finish[:, 1] * 5).astype(np.int64),
        lamps=lamps,
        lamp_colours=lamp_colours,
        shadows=recipe.shadows,
        ambient=ambient,
        background_gain=1.0,
    )


def _draw_cameras(recipe: SceneRecipe, streams: Streams, times: np.ndarray) -> tuple[float, np.ndarray]:
    """Focal length in pixels and `(T * S, 3, 4)` matrices. The longer side of the image sees 0.7 to 0.8 rad."""
    half_angle = np.array([streams("camera", "lens").uniform(0.35, 0.4)])
    focal = float(max(recipe.height, recipe.width) / 2 * cosines(half_angle)[0] / sines(half_angle)[0])
    segments = motion.segment_count(recipe.frames, recipe.speed)
    still = motion.pauses(streams("camera", "pauses"), segments + 1, recipe.pause_enter, recipe.pause_stay)
    flat = times.reshape(-1)
    shake = streams("camera", "shake")
    strength = shake.uniform(0.01, 0.035) if shake.chance(recipe.shake) else 0.0
    tracks = []
    for name, middle, reach, share in (("eye", -5.5, 0.3, 0.3), ("target", 3.5, 0.5, 3.0)):
        draws = streams("camera", name).uniforms((segments + 2, 3), -1.0, 1.0)
        knots = motion.hold(np.array([0.0, middle, 0.0]) + np.array([reach, 0.5, reach]) * draws, still)
        track = motion.travel(recipe.paths, knots, still, flat)
        tracks.append(track + share * strength * motion.shake(streams("camera", "shake", name), flat))
    return focal, motion.look_at(*tracks)


def _draw_lights(recipe: SceneRecipe, stream: RandomStream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions and colours of lamps, each `(L, 3)`, 11 units away, and the ambient colour.

    Lamps stand on any side and differ in power by up to 15, as in BL30K; but the first is the strongest and stands
    on the camera's side and rather above, lest all surfaces seen lie in the shade.
    """
    count = stream.integer(*recipe.lights)
    draws = stream.uniforms((count, 7))
    direction = 2 * draws[:, :3] - 1
    direction[0] = direction[0] * (1, 0.35, 0.6) + (0, -0.65, 0.4)
    power = (1 + 14 * draws[:, 3:4]) / 15
    power[0] = power.max()
    tint = 0.6 + 0.4 * draws[:, 4:]
    ambient = stream.uniform(0.08, 0.35) * (0.7 + 0.3 * stream.uniforms((3,)))
    return 11 * direction / lengths(direction), 121 * power / power[0] * tint, ambient


def _draw_surfaces(
    recipe: SceneRecipe, streams: Streams, bodies: list[Body], pictures: Sequence[np.ndarray]
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Textures, the background's last and about as fine as the frame, and the texture of each part, `(P,)`."""
    longer = max(recipe.height, recipe.width) * recipe.detail
    size = 4 * SMALLEST_LEVEL
    while size * 1.4 < longer:
        size *= 2
    side = max(size // 2, 4 * SMALLEST_LEVEL)
    textures: list[np.ndarray] = []
    part_texture: list[int] = []
    for number, body in enumerate(bodies):
        for link, model in enumerate(body.models):
            look = streams("object", number, "look", link)
            keeps, follows = look.chance(recipe.own_look), look.chance(0.5)
            own = [mesh.look for mesh in model.meshes]
            if keeps and any(texture is not None for texture in own):
                for texture in own:
                    textures.append(fit_look(texture, side))
                    part_texture.append(len(textures) - 1)
                continue
            if not (link and follows):
                textures.append(_draw_surface(recipe, streams, pictures, side, draw_texture, "object", number, link))
            part_texture += [len(textures) - 1] * len(own)
    textures.append(_draw_surface(recipe, streams, pictures, size, draw_background, "background"))
    return tuple(textures), np.array(part_texture)


def _draw_surface(
    recipe: SceneRecipe,
    streams: Streams,
    pictures: Sequence[np.ndarray],
    side: int,
    make: Callable[[RandomStream, int, Sequence[str]], np.ndarray],
    *purpose: str | int,
) -> np.ndarray:
    """`(side, side, 3)` uint8: one of the user's pictures, or what `make` draws."""
    choice = streams(*purpose, "picture")
    if not choice.chance(recipe.picture_probability) or not len(pictures):
        return make(streams(*purpose, "drawn"), side, recipe.textures)
    number = choice.integer(0, len(pictures) - 1)
    picture = pictures[number]
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape or picture.dtype != np.uint8:
        raise UserError(
            f"pictures[{number}]: expected (H, W, 3) uint8 RGB, found {picture.shape} {picture.dtype}; convert it"
        )
    return fit_picture(picture, side)
