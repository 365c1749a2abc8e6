"""Files of a video wherever they lie: in a folder, inside a tar, drawn from annotations, or decoded from a film.

All stand for a file: `stem`, `name`, `parent`, `read_bytes()`, and `str()` for errors. Long lists of them are kept as
names, and become objects when they are asked for.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from vosforge.data.image_files import RawMask, encode_mask, read_mask
from vosforge.data.mask_lint import lint_masks
from vosforge.data.video_files import VideoFile
from vosforge.errors import UserError

Stamp = tuple[str, int, int]
"""A file's name, size and time of change in nanoseconds."""


@functools.lru_cache(maxsize=4096)
def shared_names(names: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """The same names as one object: thousands of videos name their frames alike."""
    return names


class Listing(Sequence):
    """A sequence whose items are made when they are asked for."""

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return tuple(self._item(i) for i in range(*index.indices(len(self))))
        return self._item(range(len(self))[index])

    @abstractmethod
    def _item(self, index: int) -> Any: ...

    @abstractmethod
    def stamps(self) -> list[Stamp]:
        """Of the files there are."""


@dataclass(frozen=True)
class FolderFiles(Listing):
    """Files of one folder, as paths; None where a name is None."""

    folder: Path
    names: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    def _item(self, index: int) -> Path | None:
        name = self.names[index]
        return None if name is None else self.folder / name

    def stamps(self) -> list[Stamp]:
        return stamps(self[:])


@dataclass(frozen=True)
class TarMember:
    """A file inside an uncompressed tar."""

    tar: Path
    path: PurePosixPath
    offset: int
    size: int

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def suffix(self) -> str:
        return self.path.suffix

    @property
    def parent(self) -> PurePosixPath:
        return self.path.parent

    def read_bytes(self) -> bytes:
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.tar}:{self.path}"


@dataclass(frozen=True, eq=False)
class TarFiles(Listing):
    """Files of one folder inside a tar; None where a name is None.

    Attributes:
        places: `(N, 2)` int64, offsets and sizes in bytes.
    """

    tar: Path
    folder: PurePosixPath
    names: tuple[str | None, ...]
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def _item(self, index: int) -> TarMember | None:
        name = self.names[index]
        return None if name is None else TarMember(self.tar, self.folder / name, *self.places[index].tolist())

    def stamps(self) -> list[Stamp]:
        changed = self.tar.stat().st_mtime_ns
        there = [
            (name, size) for name, (_, size) in zip(self.names, self.places.tolist(), strict=True) if name is not None
        ]
        return [(f"{self.tar}:{self.folder / name}", size, changed) for name, size in there]


@dataclass(frozen=True)
class FilmFrame:
    """One frame of a video file."""

    film: Path
    index: int

    @property
    def stem(self) -> str:
        return f"{self.index:05d}"

    @property
    def name(self) -> str:
        return self.stem

    @property
    def suffix(self) -> str:
        return self.film.suffix

    @property
    def parent(self) -> Path:
        return self.film

    def read_bytes(self) -> bytes:
        """The frame as PNG; it is looked up in the film, so to read them all use `FilmFrames.decoded`."""
        capture = cv2.VideoCapture(str(self.film))
        capture.set(cv2.CAP_PROP_POS_FRAMES, self.index)
        there, bgr = capture.read()
        capture.release()
        if not there:
            raise UserError(f"{self}: the frame does not decode")
        return cv2.imencode(".png", bgr)[1].tobytes()

    def __str__(self) -> str:
        return f"{self.film}:{self.stem}"


@dataclass(frozen=True)
class FilmFrames(Listing):
    """The frames of a video file, as many as its header counts."""

    film: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def _item(self, index: int) -> FilmFrame:
        return FilmFrame(self.film, index)

    def decoded(self) -> Iterator[np.ndarray]:
        """`(H, W, 3)` uint8 RGB of every frame.

        Raises:
            UserError: when the film ends before its header says.
        """
        found = 0
        for _, frame in VideoFile(self.film):
            found += 1
            if found > self.count:
                break
            yield frame
        if found < self.count:
            raise UserError(f"{self.film}: expected {self.count} frames as its header says, found {found} that decode")

    def stamps(self) -> list[Stamp]:
        return stamps([self.film])


@dataclass(frozen=True)
class DrawnMask(ABC):
    """A mask that no file holds as it is; it reads as one.

    Attributes:
        stem: the frame's name.
        source: the file that errors name.
    """

    stem: str
    source: Path

    @property
    def name(self) -> str:
        return f"{self.stem}.png"

    @property
    def suffix(self) -> str:
        return ".png"

    @abstractmethod
    def draw(self, repair: bool = False) -> tuple[np.ndarray, list[str]]:
        """`(H, W)` uint8 ids, and notes as of `lint_masks`.

        Args:
            repair: as of `lint_masks`.

        Raises:
            UserError: naming the file that cannot be drawn from.
        """

    def read_bytes(self) -> bytes:
        """The mask as palette PNG."""
        return encode_mask(self.draw()[0])

    def files(self) -> list[Path]:
        """What it is drawn from."""
        return [self.source]

    def __str__(self) -> str:
        return f"{self.source}:{self.stem}"


@dataclass(frozen=True)
class ObjectFiles(DrawnMask):
    """A mask kept as one black and white PNG an object, `<folder>/<object>/<frame>.png`.

    Attributes:
        objects: each object's folder and id.
    """

    objects: tuple[tuple[str, int], ...]

    def files(self) -> list[Path]:
        return [self.source / folder / self.name for folder, _ in self.objects]

    def draw(self, repair: bool = False) -> tuple[np.ndarray, list[str]]:
        """As of `DrawnMask`; where objects overlap the lowest id is on top, as in the authors' own tools."""
        drawn: np.ndarray | None = None
        notes: list[str] = []
        for path, (_, k) in reversed(list(zip(self.files(), self.objects, strict=True))):
            linted = lint_masks([_two_levels(path)], [str(path)], repair)
            shape = linted.masks[0] > 0
            if drawn is None:
                drawn = np.zeros(shape.shape, np.uint8)
            if shape.shape != drawn.shape:
                raise UserError(f"{path}: expected a mask of {drawn.shape} like the others, found {shape.shape}")
            notes += [f"object {k}: {note}" for note in linted.notes if "repaired" in note]
            drawn[shape] = k
        return drawn, notes


def _two_levels(path: Path) -> RawMask:
    """A mask of one object; whatever value its file has for it becomes 255 of a grey one."""
    try:
        raw = read_mask(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    values = np.unique(raw.pixels)
    if raw.coding == "grey" and len(values) > 2:
        return raw
    if len(values) > 2:
        raise UserError(f"{path}: expected one object and background, found {len(values)} values")
    return RawMask("grey", np.where(raw.pixels != 0, 255, 0).astype(np.uint8))


def stamps(files: Sequence[Any]) -> list[Stamp]:
    """Of paths and what is drawn from them; size and time of a file that cannot be looked at are -1."""
    if isinstance(files, Listing):
        return files.stamps()
    paths: list[Path] = []
    for file in files:
        if isinstance(file, DrawnMask):
            paths += file.files()
        elif file is not None:
            paths.append(file)
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> Stamp:
    try:
        stat = os.stat(path)
    except OSError:
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns
