"""Rendered videos as rows of shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vosforge.data.image_files import IMAGE_SUFFIXES, decode_frame
from vosforge.data.rendering import SceneRecipe, render_clip
from vosforge.data.shards import clip_table
from vosforge.errors import UserError


@dataclass(frozen=True)
class SceneItem:
    """One video to render: with the recipe it fixes every pixel."""

    seed: int
    video: int


def read_textures(folder: Path | None) -> tuple[list[np.ndarray], str]:
    """Pictures of a folder by name, and a digest of their bytes.

    Returns:
        `(H, W, 3)` uint8 RGB pictures and the digest; nothing and an empty digest without a folder.

    Raises:
        UserError: when the folder is missing or holds no picture, or one does not decode.
    """
    if folder is None:
        return [], ""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of textures")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"{folder}: no JPEG or PNG picture in it")
    content = [path.read_bytes() for path in files]
    pictures = [decode_frame(data, str(path)) for data, path in zip(content, files, strict=True)]
    return pictures, hashlib.sha256(b"".join(content)).hexdigest()


def rendered_table(recipe: SceneRecipe, pictures: list[np.ndarray], quality: int, item: SceneItem) -> pa.Table:
    """Rows of one rendered video, named after its seed and number."""
    clip = render_clip(recipe, item.seed, item.video, pictures)
    table = clip_table(clip, "bl30k", source="rendered", licence="Apache-2.0", quality=quality)
    column = table.schema.get_field_index("video_id")
    names = pa.array([f"{item.seed}-{item.video:06d}"] * table.num_rows)
    return table.set_column(column, table.schema.field(column), names)
