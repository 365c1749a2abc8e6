"""Static images as a source of pseudo-video: from shards or from folders of files."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vosforge.clip import Clip
from vosforge.data.layouts import SourceVideo, static_videos
from vosforge.data.pseudo_video import PseudoVideoRecipe, pseudo_video
from vosforge.data.redrawn import RedrawnRecipe
from vosforge.data.shards import ShardSet, Video, clip_table
from vosforge.errors import UserError


@dataclass(frozen=True)
class Still:
    """One clip to make: the image's number, which of its clips, and the build's seed."""

    image: int
    copy: int
    seed: int


class Stills:
    """Static images, decoded when they are asked for; the latest stay in memory.

    Attributes:
        digest: of all images and masks.
    """

    digest: str
    _KEPT = 64

    def __init__(self, read: Callable[[int], Clip], count: int, digest: str):
        self._decode, self._count, self.digest = read, count, digest
        self._latest: OrderedDict[int, Clip] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def read(self, i: int) -> Clip:
        """Image i as a clip of one frame."""
        if i not in self._latest:
            self._latest[i] = self._decode(i)
            if len(self._latest) > self._KEPT:
                self._latest.popitem(last=False)
        return self._latest[i]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": OrderedDict()}


def open_stills(data: str | None, images: Path | None, masks: Path | None) -> Stills:
    """Static images from shards, or from two folders of files with the same names.

    Raises:
        UserError: unless exactly one of the two is given, or when there is no image with an object.
    """
    if data is not None and images is None and masks is None:
        shards = ShardSet(data)
        videos = [video for video in shards.videos if video.frames == 1 and len(video.objects)]
        if not videos:
            raise UserError(f"{data}: holds no single image with an object; pseudo-video needs shards of images")
        return Stills(partial(_read_shard, shards, videos), len(videos), shards.digest)
    if data is None and images is not None and masks is not None:
        pairs = static_videos(images, masks, images.name)
        content = hashlib.sha256()
        for pair in pairs:
            for path in (*pair.frames, *pair.masks):
                content.update(path.read_bytes() if path else b"")
        return Stills(partial(_read_files, pairs), len(pairs), content.hexdigest())
    raise UserError("give either --data with shards of images, or both --images and --masks")


def _read_shard(shards: ShardSet, videos: list[Video], i: int) -> Clip:
    return shards.read(videos[i])


def _read_files(pairs: list[SourceVideo], i: int) -> Clip:
    return pairs[i].read()


def pseudo_video_table(stills: Stills, recipe: PseudoVideoRecipe | RedrawnRecipe, item: Still) -> pa.Table:
    """Rows of one pseudo-video clip, a pure function of the recipe, the images and the item.

    Raises:
        UserError: when the image has no object, or no draw shows one in the first frame.
    """
    image = stills.read(item.image)
    name = f"{image.name}-{item.copy:05d}"
    key = hashlib.sha256(f"pseudo_video/{item.seed}/{name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(key, np.uint32))
    for _ in range(10):
        chosen = rng.integers(len(stills), size=recipe.others)
        clip = pseudo_video(name, image, [stills.read(int(i)) for i in chosen], recipe, rng)
        if clip.masks[0].any():
            return clip_table(clip, "pseudo_video", source=image.name)
    raise UserError(f"{image.name}: no object is visible after ten draws; its objects are too small")
