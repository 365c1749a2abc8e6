"""Masks of many videos, wherever they lie: a folder, a zip or shards; read one video at a time and checked."""

from __future__ import annotations

import glob
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np

from vosforge.clip import frame_order
from vosforge.data.image_files import decode_mask
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.evaluation.protocols import words
from vosforge.reading import reading
from vosforge.storage import exists, is_local, join, local_path

_MOST_NAMED = 4
"""Bad files that one error names; the rest are counted."""


class Masks(ABC):
    """Masks by video and frame. Instances travel to other processes.

    Attributes:
        name: where they lie, as the user gave it.
        note: something to know about how they were read; empty when there is nothing.
    """

    name: str
    note: str = ""

    @abstractmethod
    def videos(self) -> list[str]:
        """Names of the videos, sorted."""

    @abstractmethod
    def frames(self, video: str) -> list[str]:
        """Ids of the frames that have a mask, in order; empty for an unknown video."""

    @abstractmethod
    def where(self, video: str, frame: str = "") -> str:
        """The mask's file, or the video's folder, as an error names it."""

    @abstractmethod
    def read(self, video: str, frame: str) -> np.ndarray:
        """`(H, W)` uint8 ids of one frame that there is.

        Raises:
            UserError: naming the file that cannot be read or is no mask of ids.
        """


class MaskFolder(Masks):
    """A folder of `<video>/<frame>.png`."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, str(folder)

    def videos(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    def frames(self, video: str) -> list[str]:
        return sorted({path.stem for path in (self.folder / video).glob("*") if _is_mask(path)}, key=frame_order)

    def where(self, video: str, frame: str = "") -> str:
        folder = self.folder / video
        if not frame:
            return str(folder)
        usual = folder / f"{frame}.png"
        if not os.path.lexists(usual):
            usual = next((path for path in folder.glob(f"{glob.escape(frame)}.*") if _is_mask(path)), usual)
        return str(usual)

    def read(self, video: str, frame: str) -> np.ndarray:
        name = self.where(video, frame)
        with reading(name):
            return decode_mask(Path(name).read_bytes(), name)


def _is_mask(path: PurePath) -> bool:
    return path.suffix.lower() == ".png" and not path.name.startswith(".")


class MaskZip(Masks):
    """A zip of `<video>/<frame>.png`, as servers take it; one folder around all videos is looked through.

    Raises:
        UserError: when the file is no zip.
    """

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self._open: zipfile.ZipFile | None = None
        files = (PurePosixPath(name) for name in self._file().namelist() if not name.endswith("/"))
        names = [name for name in files if _is_mask(name)]
        # Archives made on macOS hold a shadow of every file.
        names = [name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.parts)]
        tops = {name.parts[0] for name in names}
        self._top = f"{tops.pop()}/" if len(tops) == 1 and all(len(name.parts) == 3 for name in names) else ""
        if self._top:
            self.note = f"{path}: looked through its top folder {self._top}, which the DAVIS server refuses"
        # Video -> frame -> the file's name, whose ending may be written otherwise.
        self._frames: dict[str, dict[str, str]] = {}
        for name in names:
            inside = name.relative_to(self._top) if self._top else name
            if len(inside.parts) == 2:
                self._frames.setdefault(inside.parts[0], {})[inside.stem] = inside.name

    def _file(self) -> zipfile.ZipFile:
        if self._open is None:
            try:
                self._open = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{self.path}: expected a zip of <video>/<frame>.png ({error})") from error
        return self._open

    def videos(self) -> list[str]:
        return sorted(self._frames)

    def frames(self, video: str) -> list[str]:
        return sorted(self._frames.get(video, ()), key=frame_order)

    def where(self, video: str, frame: str = "") -> str:
        return f"{self.path}:{self._top}{video}" + (f"/{self._name(video, frame)}" if frame else "")

    def _name(self, video: str, frame: str) -> str:
        return self._frames.get(video, {}).get(frame, f"{frame}.png")

    def read(self, video: str, frame: str) -> np.ndarray:
        try:
            data = self._file().read(f"{self._top}{video}/{self._name(video, frame)}")
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
            raise UserError(f"{self.where(video, frame)}: damaged in the zip ({error}); make it again") from error
        with reading(self.where(video, frame)):
            return decode_mask(data, self.where(video, frame))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}


class MaskShards(Masks):
    """The masks in shards. A video is decoded whole, and the latest one kept."""

    def __init__(self, uri: str):
        self.name, self.shards = uri, ShardSet(uri)
        self._by_name = {video.video_id: video for video in self.shards.videos}
        self._latest: tuple[str, dict[str, np.ndarray]] = ("", {})

    def videos(self) -> list[str]:
        return sorted(self._by_name)

    def frames(self, video: str) -> list[str]:
        return list(self._decoded(video)) if video in self._by_name else []

    def where(self, video: str, frame: str = "") -> str:
        return f"{self.name}:{video}" + (f"/{frame}" if frame else "")

    def read(self, video: str, frame: str) -> np.ndarray:
        return self._decoded(video)[frame]

    def _decoded(self, video: str) -> dict[str, np.ndarray]:
        if self._latest[0] != video:
            clip = self.shards.read(self._by_name[video])
            there = zip(clip.frame_ids, clip.masks, clip.annotated, strict=True)
            self._latest = video, {frame: mask for frame, mask, annotated in there if annotated}
        return self._latest[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_latest": ("", {})}


def open_masks(uri: str) -> Masks:
    """Open predicted masks.

    Args:
        uri: a folder of `<video>/<frame>.png`, a zip of the same, or shards (local or `s3://`).

    Raises:
        UserError: when it is none of them.
    """
    if not is_local(uri) or exists(join(uri, "manifest.json")):
        return MaskShards(uri)
    path = local_path(uri)
    if path.is_file():
        return MaskZip(Path(uri))
    if not path.is_dir():
        raise UserError(f"{uri}: no such folder, zip or shards of masks")
    return MaskFolder(Path(uri))


def read_masks(
    masks: Masks,
    video: str,
    frame_ids: Sequence[str],
    size: tuple[int, int],
    known: Collection[int],
    needed: np.ndarray | None = None,
) -> np.ndarray:
    """One video's masks, checked.

    Args:
        masks: where they are.
        video: its name.
        frame_ids: names of the frames to read.
        size: `(H, W)` that every mask must have.
        known: ids that masks may hold beside background.
        needed: `(T,)` bool, frames that are looked at; the others are left all background. None for all.

    Returns:
        `(T, H, W)` uint8 ids.

    Raises:
        UserError: naming every file that is missing, does not decode, has another size or holds an unknown id (the
            first few by name, the rest by number).
    """
    wanted = range(len(frame_ids)) if needed is None else np.flatnonzero(needed).tolist()
    there, bad = set(masks.frames(video)), []
    if wanted and not there:
        raise UserError(f"{masks.where(video)}: no predicted masks of this video; expected <frame>.png in it")
    found = np.zeros((len(frame_ids), *size), np.uint8)
    for t in wanted:
        try:
            if frame_ids[t] not in there:
                raise UserError(f"{masks.where(video, frame_ids[t])}: no predicted mask for this frame")
            found[t] = _checked(masks.read(video, frame_ids[t]), masks.where(video, frame_ids[t]), size, known)
        except UserError as error:
            bad.append(str(error))
    if bad:
        rest = [f"and {len(bad) - _MOST_NAMED} more"] if len(bad) > _MOST_NAMED else []
        raise UserError("; ".join([*bad[:_MOST_NAMED], *rest]))
    return found


def _checked(mask: np.ndarray, name: str, size: tuple[int, int], known: Collection[int]) -> np.ndarray:
    if mask.shape != size:
        raise UserError(f"{name}: expected the frame's size {size}, found {mask.shape}")
    extra = [int(k) for k in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)) if k and int(k) not in known]
    if len(extra) > _MOST_NAMED:
        raise UserError(
            f"{name}: expected ids of {sorted(known)}, found {len(extra)} others: an anti-aliased or coloured mask?"
        )
    if extra:
        raise UserError(f"{name}: expected ids of {sorted(known)}, found {words(extra)}")
    return mask


__all__ = ["MaskFolder", "MaskShards", "MaskZip", "Masks", "open_masks", "read_masks"]
