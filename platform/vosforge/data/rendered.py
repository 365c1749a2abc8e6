"""Rendered videos as rows of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vosforge.clip import Clip
from vosforge.data.image_files import IMAGE_SUFFIXES, decode_frame
from vosforge.data.ranges import require_number
from vosforge.data.rendering import Scene, SceneRecipe, build_scene, encodings, render_frame, truth
from vosforge.data.rendering.meshes import Model
from vosforge.data.rendering.render import frame_buffers
from vosforge.data.rendering.user_meshes import files_below
from vosforge.data.shards import clip_table
from vosforge.errors import UserError


@dataclass(frozen=True)
class SceneItem:
    """One video to render: with the recipe it fixes every pixel."""

    seed: int
    video: int

    @property
    def video_id(self) -> str:
        """The video's id in the shards, by which a manifest names it when it is rejected."""
        return f"{self.seed}-{self.video:06d}"


class Pictures(Sequence[np.ndarray]):
    """The pictures of a folder and those below it, by name: `(H, W, 3)` uint8 RGB, decoded when they are drawn.

    Args:
        folder: of JPEG and PNG files, on every node that renders; None for no pictures. Hidden files do not count.

    Attributes:
        skipped: why files are left out, each line naming one.
        digest: of the others' content; empty without pictures.

    Raises:
        UserError: when the folder is missing or holds no picture that decodes.
    """

    def __init__(self, folder: Path | None) -> None:
        self.digest = ""
        self._files: list[Path] = []
        self.skipped: list[str] = []
        if folder is None:
            return
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of textures")
        found = files_below(folder, IMAGE_SUFFIXES)
        if not found:
            raise UserError(f"{folder}: no JPEG or PNG picture in it")
        sha = hashlib.sha256()
        for path in found:
            try:
                data = path.read_bytes()
                decode_frame(data, str(path))
            except OSError as error:
                self.skipped.append(f"{path}: cannot be read ({error.strerror})")
            except UserError as error:
                self.skipped.append(str(error))
            else:
                sha.update(data)
                self._files.append(path)
        if not self._files:
            raise UserError(f"{folder}: none of {len(found)} pictures can be used; {self.skipped[0]}")
        self.digest = sha.hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        return _decoded(self._files[index])


@lru_cache(maxsize=16)
def _decoded(path: Path) -> np.ndarray:
    if not path.is_file():
        raise UserError(f"{path}: a texture of the recipe is not here; every node needs the folder")
    return decode_frame(path.read_bytes(), str(path))


@dataclass(frozen=True)
class Production:
    """How videos are rendered and stored.

    Attributes:
        recipe: what scenes look like.
        quality: of the JPEGs, 1..100.
        outputs: some of `truth.OUTPUTS`, for the shards' further columns.
        pictures: mixed in with drawn textures.
        models: mixed in with drawn meshes.

    Raises:
        UserError: when an output has no such name, or the quality is out of range.
    """

    recipe: SceneRecipe
    quality: int = 98
    outputs: tuple[str, ...] = ()
    pictures: Sequence[np.ndarray] = ()
    models: Sequence[Model] = field(default=())

    def __post_init__(self) -> None:
        require_number("production", self, "quality", 1, 100, whole=True)
        unknown = sorted(set(self.outputs) - set(truth.OUTPUTS))
        if unknown:
            raise UserError(f"outputs: expected some of {', '.join(truth.OUTPUTS)}, found {unknown[0]!r}")


def rendered_table(production: Production, item: SceneItem) -> pa.Table:
    """Rows of one rendered video, named after its seed and number."""
    recipe = production.recipe
    scene = build_scene(recipe, item.seed, item.video, production.pictures, production.models)
    frames = np.empty((scene.frames, scene.height, scene.width, 3), np.uint8)
    masks = np.empty(frames.shape[:3], np.uint8)
    extras: dict[str, list[Any]] = {name: [] for name in production.outputs}
    for t, (frame, mask, more) in enumerate(_render(scene, production.outputs)):
        frames[t], masks[t] = frame, mask
        for name, value in more.items():
            extras[name].append(value)
    clip = Clip(item.video_id, frames, masks)
    return clip_table(
        clip, "bl30k", source="rendered", licence="Apache-2.0", quality=production.quality, extras=extras or None
    )


def _render(scene: Scene, outputs: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """Each frame, its mask and its encoded outputs; the last frame has no flow."""
    buffers = frame_buffers(scene)
    for t in range(scene.frames):
        frame, mask = render_frame(scene, t, buffers)
        more: dict[str, Any] = {}
        if "flow" in outputs:
            last = t == scene.frames - 1
            more["flow"] = None if last else encodings.encode_flow(*truth.flow(scene, t, buffers))
        if "depth" in outputs:
            more["depth"] = encodings.encode_depth(truth.depth(scene, t, buffers))
        if {"amodal", "visible"} & set(outputs):
            whole = truth.amodal(scene, t, buffers)
            if "amodal" in outputs:
                more["amodal"] = encodings.encode_amodal(whole)
            if "visible" in outputs:
                more["visible"] = truth.visible_shares(mask, whole)
        yield frame, mask, more
