"""Static images as a source of pseudo-video: from shards or from folders of files."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vosforge.clip import VOID, Clip
from vosforge.data.geometry import only_ids
from vosforge.data.layouts import SourceVideo, static_videos
from vosforge.data.pseudo_video import PseudoVideoRecipe, pseudo_video
from vosforge.data.redrawn import RedrawnRecipe
from vosforge.data.shards import ShardSet, Video, clip_table
from vosforge.errors import UserError


@dataclass(frozen=True)
class Still:
    """One clip to make: the image's number, which of its clips, the build's seed, and the image's name."""

    image: int
    copy: int
    seed: int
    name: str = ""

    @property
    def video_id(self) -> str:
        """The clip's id, by which a manifest names it when it is rejected."""
        return f"{self.name or f'image {self.image}'}-{self.copy:05d}"


class Stills:
    """Static images, decoded when they are asked for; the latest stay in memory.

    Args:
        read: image i as a clip of one frame whose mask holds objects alone.
        names: of the images.
        digest: of all images and masks.
        skipped: why further pictures are left out, each line naming its file.
    """

    _KEPT = 64

    def __init__(self, read: Callable[[int], Clip], names: Sequence[str], digest: str, skipped: Sequence[str] = ()):
        self._decode, self.names, self.digest, self.skipped = read, list(names), digest, list(skipped)
        self._latest: OrderedDict[int, Clip] = OrderedDict()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> Clip:
        """Image i as a clip of one frame."""
        if i not in self._latest:
            self._latest[i] = self._decode(i)
            if len(self._latest) > self._KEPT:
                self._latest.popitem(last=False)
        return self._latest[i]

    def items(self, clips_per_image: int, seed: int) -> list[Still]:
        """Every clip to make of every image."""
        return [Still(i, copy, seed, name) for i, name in enumerate(self.names) for copy in range(clips_per_image)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": OrderedDict()}


def open_stills(data: str | None, images: Path | None, masks: Path | None, max_rejects: float = 0.1) -> Stills:
    """Static images from shards, or from two folders of files with the same names.

    Files are decoded once here. What does not decode, does not fit its mask, or has no object is left out, so that
    no clip takes objects from it; `Stills.skipped` says why.

    Args:
        data: directory of shards of images.
        images, masks: folders of files.
        max_rejects: largest share of files left out, in [0, 1]; one is always allowed.

    Raises:
        UserError: unless exactly one of the two is given, when there is no image with an object, or when too many
            files are of no use.
    """
    if data is not None and images is None and masks is None:
        shards = ShardSet(data)
        videos = [video for video in shards.videos if video.frames == 1 and len(video.objects)]
        if not videos:
            raise UserError(f"{data}: holds no single image with an object; pseudo-video needs shards of images")
        return Stills(partial(_read_shard, shards, videos), [video.video_id for video in videos], shards.digest)
    if data is None and images is not None and masks is not None:
        return _open_files(images, masks, max_rejects)
    raise UserError("give either --data with shards of images, or both --images and --masks")


def _open_files(images: Path, masks: Path, max_rejects: float) -> Stills:
    pairs = static_videos(images, masks, images.name)
    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(_problem, pairs))
    skipped = [reason for reason in reasons if reason]
    if len(skipped) > max(1, max_rejects * len(pairs)) or len(skipped) == len(pairs):
        raise UserError(
            f"{images}: {len(skipped)} of {len(pairs)} pictures are of no use, more than --max-rejects {max_rejects} "
            f"allows; the first: {skipped[0]}"
        )
    pairs = [pair for pair, reason in zip(pairs, reasons, strict=True) if not reason]
    content = hashlib.sha256()
    for pair in pairs:
        for path in (*pair.frames, *pair.masks):
            content.update(path.read_bytes() if path else b"")
    return Stills(partial(_read_files, pairs), [pair.video_id for pair in pairs], content.hexdigest(), skipped)


def _problem(pair: SourceVideo) -> str:
    """Why a picture is of no use, naming its file; empty when it is."""
    try:
        objects = _without_void(pair.read()).objects
    except UserError as error:
        return str(error)
    return "" if objects else f"{pair.masks[0]}: expected a mask with an object, found none"


def _read_shard(shards: ShardSet, videos: list[Video], i: int) -> Clip:
    clip = shards.read(videos[i])
    return replace(clip, masks=only_ids(clip.masks, videos[i].objects))


def _read_files(pairs: list[SourceVideo], i: int) -> Clip:
    return _without_void(pairs[i].read())


def _without_void(clip: Clip) -> Clip:
    """A clip read from files, where 255 alone is object 1 already, so that any left is void."""
    return replace(clip, masks=only_ids(clip.masks, range(1, VOID)))


def pseudo_video_table(stills: Stills, recipe: PseudoVideoRecipe | RedrawnRecipe, item: Still) -> pa.Table:
    """Rows of one pseudo-video clip, a pure function of the recipe, the images and the item.

    Raises:
        UserError: when the image has no object, or no draw shows one in the first frame.
    """
    image = stills.read(item.image)
    name = replace(item, name=image.name).video_id
    key = hashlib.sha256(f"pseudo_video/{item.seed}/{name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(key, np.uint32))
    for _ in range(10):
        chosen = rng.integers(len(stills), size=recipe.others)
        clip = pseudo_video(name, image, [stills.read(int(i)) for i in chosen], recipe, rng)
        if clip.masks[0].any():
            return clip_table(clip, "pseudo_video", source=image.name)
    raise UserError(f"{image.name}: no object is visible after ten draws; its objects are too small")
