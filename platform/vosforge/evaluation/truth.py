"""Annotated videos to score against, with or without their frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vosforge.clip import Clip
from vosforge.data.image_files import IMAGE_SUFFIXES, decode_frame
from vosforge.data.layouts import SourceVideo, find_videos
from vosforge.data.shards import ShardSet, Video
from vosforge.errors import UserError
from vosforge.evaluation.predictions import MaskFolder, Masks, MaskZip
from vosforge.evaluation.youtube import META_FILE, read_meta
from vosforge.reading import reading
from vosforge.storage import exists, is_local, join, local_path


@dataclass(frozen=True)
class Annotated:
    """The annotated frames of a video.

    Attributes:
        name: the video's.
        masks: `(A, H, W)` uint8 ids.
        frame_ids: names of the A frames.
        every_frame: names of all frames of the video, annotated or not.
    """

    name: str
    masks: np.ndarray
    frame_ids: tuple[str, ...]
    every_frame: tuple[str, ...]

    @staticmethod
    def of(clip: Clip) -> Annotated:
        """Those of a clip.

        Raises:
            UserError: when it has none.
        """
        ids = tuple(frame for frame, there in zip(clip.frame_ids, clip.annotated, strict=True) if there)
        if not ids:
            raise UserError(f"video {clip.name}: no frame is annotated")
        return Annotated(clip.name, clip.masks[clip.annotated], ids, clip.frame_ids)


class Truth:
    """Annotated videos to score against. Instances travel to other processes.

    Args:
        uri: shards (local or `s3://`); a local folder in a layout that ingest knows; or a folder or zip of
            `<video>/<frame>.png`, which has masks and no frames.
        split: of a folder with ImageSets.
        limit: at most this many videos, at least 1.
        frames: a folder of `<video>/<frame>.jpg` whose frames take the place of the truth's own: for truth without
            frames, or to segment all frames where the truth knows every fifth only.

    Attributes:
        uri: as given; `name`: its last part.
        names: of the videos, in order; those that cannot be used, as the list of files tells already, included.
        has_frames: whether there is something to look at beside the masks.
        digest: of shards, their contents'; None for other truths.
        meta: content of the folder's `meta.json` as `read_meta` gives it, or None; `meta_file`: its path.

    Raises:
        UserError: when it is none of them, or when no video can be used, with the first one's reason.
    """

    def __init__(self, uri: str, split: str | None = None, limit: int | None = None, frames: str | Path | None = None):
        if limit is not None and limit < 1:
            raise UserError(f"limit: expected at least 1 video, found {limit}")
        self.uri, self.name = str(uri), Path(str(uri).rstrip("/")).name or str(uri)
        self.meta: dict[str, Any] | None = None
        self.meta_file = Path(uri) / META_FILE
        self.digest: str | None = None
        if not is_local(uri) or exists(join(uri, "manifest.json")):
            shards = ShardSet(uri)
            self.digest = shards.digest
            self._videos: list[_Source] = [_InShards(shards, video) for video in shards.videos]
        elif local_path(uri).is_file():
            self._videos = _masks_only(MaskZip(Path(uri)))
        else:
            self.meta = read_meta(self.meta_file) if self.meta_file.is_file() else None
            self._videos = _in_folder(Path(uri), split)
        if split is not None and not any(isinstance(video, _Files | _Bad) for video in self._videos):
            raise UserError(f"{uri}: a split needs a folder with ImageSets/, which this is not; leave it out")
        if not self._videos:
            raise UserError(f"{uri}: no video to score; expected folders of <frame>.png")
        self._videos = self._videos[:limit]
        if frames is not None:
            self._videos = [_with_frames(video, Path(frames)) for video in self._videos]
        if all(isinstance(video, _Bad) for video in self._videos):
            raise UserError(self._videos[0].reason)
        self.names = [video.name for video in self._videos]
        self.has_frames = not any(isinstance(video, _MasksOnly) for video in self._videos)

    def __len__(self) -> int:
        return len(self._videos)

    def __iter__(self) -> Iterator[Clip]:
        """The videos, decoded one at a time."""
        return (self.clip(i) for i in range(len(self)))

    def clips(self) -> Iterator[Clip | UserError]:
        """The videos, decoded one at a time; in place of one that cannot be read, its error."""
        for i in range(len(self)):
            try:
                yield self.clip(i)
            except UserError as error:
                yield UserError(f"video {self.names[i]}: {error}")

    def clip(self, i: int) -> Clip:
        """The i-th video with its frames.

        Raises:
            UserError: when it cannot be read, or has masks only.
        """
        with reading(self.names[i]):
            return self._videos[i].clip()

    def annotated(self, i: int) -> Annotated:
        """The i-th video's masks, without decoding frames where that can be avoided.

        Raises:
            UserError: naming the file that cannot be read, does not decode or has another size than the first.
        """
        with reading(self.names[i]):
            return self._videos[i].annotated()

    def pictures(self, i: int, frames: Sequence[str]) -> list[np.ndarray | None]:
        """`(H, W, 3)` uint8 RGB of some frames of the i-th video; None for those of a truth with masks only."""
        with reading(self.names[i]):
            return self._videos[i].pictures(frames)


class _Source(ABC):
    """One video of a truth."""

    name: str

    @abstractmethod
    def clip(self) -> Clip: ...

    @abstractmethod
    def annotated(self) -> Annotated: ...

    @abstractmethod
    def pictures(self, frames: Sequence[str]) -> list[np.ndarray | None]: ...

    @abstractmethod
    def with_frames(self, folder: Path) -> _Source: ...


class _Bad(_Source):
    """A video that cannot be used, in its place among the others."""

    def __init__(self, name: str, reason: str):
        self.name, self.reason = name, reason

    def clip(self) -> Clip:
        raise UserError(self.reason)

    def annotated(self) -> Annotated:
        raise UserError(self.reason)

    def pictures(self, frames: Sequence[str]) -> list[np.ndarray | None]:
        raise UserError(self.reason)

    def with_frames(self, folder: Path) -> _Source:
        return self


class _InShards(_Source):
    def __init__(self, shards: ShardSet, video: Video):
        self.shards, self.video, self.name = shards, video, video.video_id

    def clip(self) -> Clip:
        return self.shards.read(self.video)

    def annotated(self) -> Annotated:
        every = self.shards.read_masks(self.video)
        masks = {frame: mask for frame, mask in every.items() if mask is not None}
        if not masks:
            raise UserError(f"video {self.name}: no frame is annotated")
        return Annotated(self.name, np.stack([*masks.values()]), tuple(masks), tuple(every))

    def pictures(self, frames: Sequence[str]) -> list[np.ndarray | None]:
        names = [*self.shards.read_masks(self.video)]
        return list(self.shards.read(self.video, [names.index(frame) for frame in frames]).frames)

    def with_frames(self, folder: Path) -> _Source:
        raise UserError(f"{self.shards.uri}: frames of another folder go with a truth that is a folder of files")


class _Files(_Source):
    def __init__(self, video: SourceVideo):
        self.video, self.name = video, video.video_id

    def clip(self) -> Clip:
        return self.video.read()

    def annotated(self) -> Annotated:
        files = [path for path in self.video.masks if path is not None]
        if not files:
            raise UserError(f"video {self.name}: no frame is annotated")
        linted = zip(files, [mask for mask in self.video.read_masks() if mask is not None], strict=True)
        masks = _stacked([(str(path), mask) for path, mask in linted])
        every = tuple(path.stem for path in self.video.frames)
        return Annotated(self.name, masks, tuple(path.stem for path in files), every)

    def pictures(self, frames: Sequence[str]) -> list[np.ndarray | None]:
        by_id = {path.stem: path for path in self.video.frames}
        return [decode_frame(by_id[frame].read_bytes(), str(by_id[frame])) for frame in frames]

    def with_frames(self, folder: Path) -> _Source:
        masks = {path.stem: path for path in self.video.masks if path is not None}
        return _Files(_framed(self.video, masks, folder))


class _MasksOnly(_Source):
    def __init__(self, masks: Masks, name: str):
        self.masks, self.name = masks, name

    def clip(self) -> Clip:
        raise UserError(f"{self.masks.name}: it has masks and no frames to segment; name a folder of frames")

    def annotated(self) -> Annotated:
        frames = tuple(self.masks.frames(self.name))
        masks = [(self.masks.where(self.name, frame), self.masks.read(self.name, frame)) for frame in frames]
        return Annotated(self.name, _stacked(masks), frames, frames)

    def pictures(self, frames: Sequence[str]) -> list[np.ndarray | None]:
        return [None] * len(frames)

    def with_frames(self, folder: Path) -> _Source:
        if not isinstance(self.masks, MaskFolder):
            raise UserError(f"{self.masks.name}: frames of another folder go with a truth that is a folder; unpack it")
        masks = {frame: Path(self.masks.where(self.name, frame)) for frame in self.masks.frames(self.name)}
        return _Files(_framed(SourceVideo(self.masks.name, self.name, (), ()), masks, folder))


def _in_folder(folder: Path, split: str | None) -> list[_Source]:
    try:
        found = find_videos(folder, split=split)
        videos: dict[str, _Source] = {}
        for video in (*found.videos, *found.unusable):
            bad = _Bad(video.video_id, video.problem) if video.problem else None
            videos.setdefault(video.video_id, bad or _Files(video))
        return list(videos.values())
    except UserError:
        # Folders that no layout claims may still hold masks by video.
        found = [] if not folder.is_dir() or (folder / "JPEGImages").is_dir() else _masks_only(MaskFolder(folder))
        if not found:
            raise
        return found


def _masks_only(masks: Masks) -> list[_Source]:
    return [_MasksOnly(masks, name) for name in masks.videos() if masks.frames(name)]


def _with_frames(video: _Source, folder: Path) -> _Source:
    try:
        return video.with_frames(folder)
    except UserError as error:
        return _Bad(video.name, str(error))


def _framed(video: SourceVideo, masks: dict[str, Path], folder: Path) -> SourceVideo:
    """The video with the frames of another folder and its own masks."""
    there = (path for path in (folder / video.video_id).glob("*") if not path.name.startswith("."))
    files = sorted(path for path in there if path.suffix.lower() in IMAGE_SUFFIXES)
    lost = sorted(set(masks) - {path.stem for path in files})
    if lost:
        raise UserError(f"{folder / video.video_id}: no frame {lost[0]}, for which there is a mask {masks[lost[0]]}")
    return replace(video, frames=tuple(files), masks=tuple(masks.get(path.stem) for path in files))


def _stacked(masks: list[tuple[str, np.ndarray]]) -> np.ndarray:
    for name, mask in masks:
        if mask.shape != masks[0][1].shape:
            raise UserError(f"{name}: expected a mask of {masks[0][1].shape} like the first, found {mask.shape}")
    return np.stack([mask for _, mask in masks])
