"""Static images as a source of pseudo-video: from shards or from folders of files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vosforge.clip import Clip
from vosforge.data.layouts import SourceVideo, static_videos
from vosforge.data.pseudo_video import PseudoVideoRecipe, pseudo_video
from vosforge.data.shards import ShardSet, clip_table
from vosforge.errors import UserError


@dataclass(frozen=True)
class Still:
    """One clip to make: the image's number, which of its clips, and the build's seed."""

    image: int
    copy: int
    seed: int


class ShardStills:
    """The videos of one frame of a shard set."""

    def __init__(self, shards: ShardSet):
        self.shards = shards
        self.videos = [video for video in shards.videos if video.frames == 1 and len(video.objects)]
        self.digest = shards.digest
        if not self.videos:
            raise UserError(f"{shards.uri}: holds no single image with an object; pseudo-video needs shards of images")

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, i: int) -> Clip:
        """Image i as a clip of one frame."""
        return self.shards.read(self.videos[i])


class FileStills:
    """Pairs of image and mask files."""

    def __init__(self, videos: list[SourceVideo]):
        self.videos = videos
        content = hashlib.sha256()
        for video in videos:
            content.update(video.frames[0].read_bytes())
            content.update(video.masks[0].read_bytes() if video.masks[0] else b"")
        self.digest = content.hexdigest()

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, i: int) -> Clip:
        """Image i as a clip of one frame."""
        return self.videos[i].read()


Stills = ShardStills | FileStills


def open_stills(data: str | None, images: Path | None, masks: Path | None) -> Stills:
    """Static images from shards, or from two folders of files.

    Raises:
        UserError: unless exactly one of the two is given.
    """
    if data is not None and images is None and masks is None:
        return ShardStills(ShardSet(data))
    if data is None and images is not None and masks is not None:
        return FileStills(static_videos(images, masks, images.name))
    raise UserError("give either --data with shards of images, or both --images and --masks")


def pseudo_video_table(stills: Stills, recipe: PseudoVideoRecipe, item: Still) -> pa.Table:
    """Rows of one pseudo-video clip, a pure function of the recipe, the images and the item.

    Raises:
        UserError: when no draw shows an object in the first frame.
    """
    image = stills.read(item.image)
    name = f"{image.name}-{item.copy:05d}"
    key = hashlib.sha256(f"pseudo_video/{item.seed}/{name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(key, np.uint32))
    for _ in range(10):
        chosen = rng.integers(len(stills), size=recipe.paste)
        clip = pseudo_video(name, image, [stills.read(int(i)) for i in chosen], recipe, rng)
        if clip.masks[0].any():
            return clip_table(clip, "pseudo_video", source=image.name)
    raise UserError(f"{image.name}: no object is visible after ten draws; its objects are too small")
