"""A scene as data, and how a recipe, a seed and a video's number become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vosforge.data.rendering import exposure, motion, placement
from vosforge.data.rendering.drawing import Buffers, see, uv_areas
from vosforge.data.rendering.meshes import Mesh, draw_mesh
from vosforge.data.rendering.numerics import cosines, lengths, sines
from vosforge.data.rendering.random_streams import RandomStream
from vosforge.data.rendering.recipe import SceneRecipe
from vosforge.data.rendering.shading import SMALLEST_LEVEL
from vosforge.data.rendering.textures import draw_background, draw_texture, fit_picture, pack_pyramids
from vosforge.errors import UserError

_PREVIEW_SIDE = 144


@dataclass(frozen=True)
class Scene:
    """All that a renderer needs, as arrays. World units; x right, y away from the camera, z up; N objects, T frames.

    Attributes:
        height: pixels.
        width: pixels.
        focal: focal length in pixels; the optical axis meets the image's centre.
        cameras: `(T, 3, 4)` world to camera (x right, y down, z forward).
        poses: `(T, N, 3, 4)` object to world: rotation times scale, and translation.
        points: `(V, 3)` vertices of all objects, each in its own space.
        normals: `(V, 3)`, outwards, not of unit length.
        uvs: `(V, 2)`; textures repeat every 1.
        point_object: `(V,)` int32 index of the vertex's object, from 0; its id in masks is one more.
        faces: `(F, 3)` int32; closed meshes, counter-clockwise seen from outside.
        face_object: `(F,)` int32.
        face_uv_area: `(F,)` twice the area in texture space.
        texels: flat uint8, mip pyramids of N + 1 square sRGB textures, the background's last.
        texture_start: `(N + 1,)` int64.
        texture_size: `(N + 1,)` int64.
        gloss: `(N,)` strength of highlights.
        gloss_doublings: `(N,)` int64, the sharpness of highlights.
        lamp: `(3,)` position.
        lamp_colour: `(3,)` linear RGB intensity.
        ambient: `(3,)` linear RGB irradiance from above; half of it comes from the sides, none from below.
        background_gain: linear light of a white texel of the background.
    """

    height: int
    width: int
    focal: float
    cameras: np.ndarray
    poses: np.ndarray
    points: np.ndarray
    normals: np.ndarray
    uvs: np.ndarray
    point_object: np.ndarray
    faces: np.ndarray
    face_object: np.ndarray
    face_uv_area: np.ndarray
    texels: np.ndarray
    texture_start: np.ndarray
    texture_size: np.ndarray
    gloss: np.ndarray
    gloss_doublings: np.ndarray
    lamp: np.ndarray
    lamp_colour: np.ndarray
    ambient: np.ndarray
    background_gain: float

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return len(self.cameras)

    @property
    def objects(self) -> int:
        """Objects, whose ids are 1 to this number."""
        return len(self.gloss)

    def preview(self) -> Scene:
        """The first frame alone, at most 144 pixels wide and high."""
        share = min(1.0, _PREVIEW_SIDE / max(self.height, self.width))
        height, width = (max(round(side * share), 1) for side in (self.height, self.width))
        return replace(
            self,
            height=height,
            width=width,
            focal=self.focal * share,
            cameras=self.cameras[:1],
            poses=self.poses[:1],
        )


def build_scene(recipe: SceneRecipe, seed: int, video: int, pictures: Sequence[np.ndarray] = ()) -> Scene:
    """The scene of one video, the same on any machine.

    Args:
        recipe: what scenes look like.
        seed: the data set's seed.
        video: the video's number in it.
        pictures: `(H, W, 3)` uint8 RGB images to use as textures beside the drawn ones; their order counts.

    Returns:
        The scene. No two objects touch, and each is seen in the first frame, as far as bounded redrawing finds room.

    Raises:
        UserError: when a picture has another shape or type.
    """
    for number, picture in enumerate(pictures):
        if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape or picture.dtype != np.uint8:
            raise UserError(
                f"pictures[{number}]: expected (H, W, 3) uint8 RGB, found {picture.shape} {picture.dtype}; convert it"
            )
    count = RandomStream(seed, video, "objects").integer(*recipe.objects)
    detail = recipe.detail * float(np.sqrt(max(recipe.height, recipe.width) / 768))
    meshes = [draw_mesh(RandomStream(seed, video, "mesh", n), detail) for n in range(count)]
    scene = _bare_scene(recipe, seed, video, meshes)
    scene = replace(scene, poses=_draw_poses(recipe, seed, video, scene, [mesh.radius for mesh in meshes]))
    texels, starts, sizes = pack_pyramids(_draw_surfaces(recipe, seed, video, count, pictures))
    scene = replace(scene, texels=texels, texture_start=starts, texture_size=sizes)
    return exposure.expose(scene, recipe.brightness, RandomStream(seed, video, "brightness"))


def _bare_scene(recipe: SceneRecipe, seed: int, video: int, meshes: list[Mesh]) -> Scene:
    """Camera, geometry and light, with neither poses nor textures yet."""
    focal, cameras = _draw_cameras(recipe, seed, video)
    first_point = np.cumsum([0, *(len(mesh.points) for mesh in meshes)])
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, first_point, strict=False)])
    uvs = np.concatenate([mesh.uvs for mesh in meshes])
    objects = np.arange(len(meshes), dtype=np.int32)
    lamp, lamp_colour, ambient = _draw_light(RandomStream(seed, video, "light"))
    finish = RandomStream(seed, video, "finish").uniforms((len(meshes), 2))
    return Scene(
        height=recipe.height,
        width=recipe.width,
        focal=focal,
        cameras=cameras,
        poses=np.zeros((0, len(meshes), 3, 4)),
        points=np.concatenate([mesh.points for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        uvs=uvs,
        point_object=np.repeat(objects, [len(mesh.points) for mesh in meshes]),
        faces=faces.astype(np.int32),
        face_object=np.repeat(objects, [len(mesh.faces) for mesh in meshes]),
        face_uv_area=uv_areas(uvs, faces),
        texels=np.zeros(0, np.uint8),
        texture_start=np.zeros(0, np.int64),
        texture_size=np.zeros(0, np.int64),
        gloss=recipe.gloss[0] + (recipe.gloss[1] - recipe.gloss[0]) * finish[:, 0],
        gloss_doublings=2 + (finish[:, 1] * 5).astype(np.int64),
        lamp=lamp,
        lamp_colour=lamp_colour,
        ambient=ambient,
        background_gain=1.0,
    )


def _draw_cameras(recipe: SceneRecipe, seed: int, video: int) -> tuple[float, np.ndarray]:
    """Focal length in pixels and `(T, 3, 4)` matrices. The longer side of the image sees 0.7 to 0.8 rad."""
    streams = {name: RandomStream(seed, video, "camera", name) for name in ("lens", "pauses", "eye", "target")}
    half_angle = np.array([streams["lens"].uniform(0.35, 0.4)])
    focal = float(max(recipe.height, recipe.width) / 2 * cosines(half_angle)[0] / sines(half_angle)[0])
    segments = motion.segment_count(recipe.frames, recipe.speed)
    still = motion.pauses(streams["pauses"], segments + 1, recipe.pause_enter, recipe.pause_stay)
    times = motion.frame_times(recipe.frames, recipe.speed)
    tracks = []
    for name, middle, reach in (("eye", -5.75, 0.5), ("target", 3.5, 0.9)):
        draws = streams[name].uniforms((segments + 2, 3), -1.0, 1.0)
        knots = np.array([0.0, middle, 0.0]) + np.array([reach, 0.5, 0.5]) * draws
        # A knot's own draw counts only if the camera moves to it; a pause holds the one before.
        for knot in range(1, len(knots)):
            if still[knot - 1]:
                knots[knot] = knots[knot - 1]
        tracks.append(motion.wander(knots[0], knots[1:] - knots[:-1], still, times))
    return focal, motion.look_at(*tracks)


def _draw_poses(recipe: SceneRecipe, seed: int, video: int, scene: Scene, mesh_radii: list[float]) -> np.ndarray:
    """`(T, N, 3, 4)` poses; see `placement` for how the paths keep clear of one another."""
    count = len(mesh_radii)

    def streams(purpose: str) -> list[RandomStream]:
        return [RandomStream(seed, video, "object", index, purpose) for index in range(count)]

    segments = motion.segment_count(recipe.frames, recipe.speed)
    times = motion.frame_times(recipe.frames, recipe.speed)
    still = np.stack([motion.pauses(s, segments + 1, recipe.pause_enter, recipe.pause_stay) for s in streams("pauses")])
    rotations = np.stack([motion.tumble(s, still[n], times) for n, s in enumerate(streams("rotation"))], axis=1)
    # More than five objects share the room that five have.
    crowding = float(np.sqrt(np.sqrt(min(1.0, 5 / count))))
    sizes = np.array([s.uniform(*recipe.size) for s in streams("size")]) * crowding
    scaled = rotations * sizes[:, None, None]
    radii = np.array(mesh_radii) * sizes
    longer = max(recipe.height, recipe.width)
    view = placement.View(0.38 * recipe.width / longer, 0.38 * recipe.height / longer)

    def visible_shares(places: np.ndarray) -> np.ndarray:
        posed = np.concatenate([scaled[:1], places[None, :, :, None]], axis=-1)
        return _visible_shares(replace(scene, poses=posed).preview())

    paths = streams("path")
    # The preview counts pixels coarsely, hence the margin.
    starts = placement.draw_starts(paths, radii, view, visible_shares, 1.3 * recipe.visible)
    knots, tangents = placement.draw_paths(paths, starts, radii, still, view, recipe.exits)
    places = motion.hermite(knots, tangents, times).transpose(1, 0, 2)
    return np.ascontiguousarray(np.concatenate([scaled, places[..., None]], axis=-1))


def _visible_shares(scene: Scene) -> np.ndarray:
    """Share of the first frame that shows each object, `(N,)`."""
    buffers = Buffers(scene.height, scene.width, len(scene.points))
    see(scene, 0, buffers)
    seen = scene.face_object[buffers.triangle[buffers.triangle >= 0]]
    return np.bincount(seen, minlength=scene.objects) / buffers.triangle.size


def _draw_light(stream: RandomStream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position, colour and ambient colour: a lamp 11 units away, on the camera's side and rather above."""
    direction = np.array([stream.uniform(-1, 1), stream.uniform(-1, -0.3), stream.uniform(-0.2, 1)])
    tint = 0.6 + 0.4 * stream.uniforms((3,))
    ambient = stream.uniform(0.08, 0.35) * (0.7 + 0.3 * stream.uniforms((3,)))
    return 11 * direction / lengths(direction), 121 * tint, ambient


def _draw_surfaces(
    recipe: SceneRecipe, seed: int, video: int, count: int, pictures: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Textures of the objects and, last, of the background, about as fine as the frame."""
    longer = max(recipe.height, recipe.width) * recipe.detail
    size = 4 * SMALLEST_LEVEL
    while size * 1.4 < longer:
        size *= 2
    surfaces = []
    for index in range(count + 1):
        kind = ("object", index, "texture") if index < count else ("background",)
        side = max(size // 2, 4 * SMALLEST_LEVEL) if index < count else size
        choice = RandomStream(seed, video, *kind, "picture")
        if choice.chance(recipe.picture_probability) and len(pictures):
            surfaces.append(fit_picture(choice.choice(pictures), side))
        else:
            make = draw_texture if index < count else draw_background
            surfaces.append(make(RandomStream(seed, video, *kind, "drawn"), side, recipe.textures))
    return surfaces
