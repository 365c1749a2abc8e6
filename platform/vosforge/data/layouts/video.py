"""What a layout lists: videos to ingest, and what a folder was recognised as."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from vosforge.clip import VOID, Clip
from vosforge.data.image_files import RawMask, decode_frame, encode_frame, encode_mask, is_turned, read_mask
from vosforge.data.layouts.files import DrawnMask, FilmFrames, Stamp, stamps
from vosforge.data.layouts.notes import SEPARATOR
from vosforge.data.mask_lint import LintedMasks, lint_masks
from vosforge.data.shards import SCHEMA, clip_table
from vosforge.errors import UserError

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG"
_TURNED = "turned as its EXIF orientation says"


@dataclass(frozen=True)
class SourceVideo:
    """A video on disk: its frames and, where given, their masks.

    Attributes:
        dataset, video_id: identity in the shards.
        frames: image files in order; paths, or what stands for a file (`layouts.files`).
        masks: mask file of each frame, or None.
        licence: of the data, as the user states it.
        problem: why the video cannot be ingested, as far as its list of files tells; empty when it can.
        notes: what a person should know of it.
        repair: whether anti-aliased masks are mended.
        repeats: which video it repeats, frame by frame; empty when it repeats none. Such videos are not ingested, and
            may be evaluated.
    """

    dataset: str
    video_id: str
    frames: Sequence[Any]
    masks: Sequence[Any]
    licence: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()
    repair: bool = False
    repeats: str = ""

    def read(self) -> Clip:
        """Decode all frames and masks.

        Raises:
            UserError: naming the file that does not decode or has another size.
        """
        frames = [frame for _, frame in self._decoded()]
        size = frames[0].shape[:2]
        masks = self._masks(size)[0].masks
        annotated = np.array([mask is not None for mask in masks])
        filled = [np.zeros(size, np.uint8) if mask is None else mask for mask in masks]
        return Clip(self.video_id, np.stack(frames), np.stack(filled), annotated, self._frame_ids())

    def read_masks(self) -> list[np.ndarray | None]:
        """`(H, W)` uint8 ids of every frame, judged over the whole video, None where it has none.

        Raises:
            UserError: as `read`.
        """
        return self._masks(None)[0].masks

    def table(self) -> pa.Table:
        """Rows for a shard. JPEG frames and palette PNG masks keep their bytes; void is no object.

        A JPEG with an EXIF orientation is turned by it and encoded again.

        What a person should know of the masks stands in the column `source`, after the frames' folder.

        Raises:
            UserError: as `read`, and when the video has a problem or no mask.
        """
        if self.problem or self.repeats:
            raise UserError(self.problem or self.repeats)
        if all(mask is None for mask in self.masks):
            raise UserError(f"{self.frames[0].parent}: no frame has a mask")
        images, size, turned = [], (0, 0), False
        for data, frame in self._decoded():
            size = frame.shape[:2]
            # A mask is drawn on what a viewer shows, and not every reader of shards heeds an orientation.
            kept = data[:3] == _JPEG and not is_turned(data)
            turned = turned or (data[:3] == _JPEG and not kept)
            images.append(data if kept else encode_frame(frame))
        linted, files = self._masks(size)
        blank = np.zeros(size, np.uint8)
        clip = Clip(
            self.video_id,
            # The pictures are encoded already; only their shape matters.
            np.broadcast_to(np.uint8(0), (len(images), *size, 3)),
            np.stack([blank if mask is None else mask for mask in linted.masks]),
            np.zeros(len(images), bool),
            self._frame_ids(),
        )
        source = SEPARATOR.join(
            [self.frames[0].parent.name, *self.notes, *([_TURNED] if turned else []), *linted.notes]
        )
        table = clip_table(clip, self.dataset, source=source, licence=self.licence, images=images)
        masks = [
            file if intact and file[:4] == _PNG else (None if mask is None else encode_mask(mask))
            for file, intact, mask in zip(files, linted.intact, linted.masks, strict=True)
        ]
        return _without_void(_replaced(table, "mask", masks))

    def _frame_ids(self) -> tuple[str, ...]:
        return tuple(path.stem for path in self.frames)

    def _decoded(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """Bytes (none of a film's frame) and `(H, W, 3)` uint8 RGB of every frame, all of one size."""
        if isinstance(self.frames, FilmFrames):
            yield from ((b"", frame) for frame in self.frames.decoded())
            return
        size = None
        for path in self.frames:
            data = _read(path)
            frame = decode_frame(data, str(path))
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                raise UserError(f"{path}: expected a frame of {size} like the first, found {frame.shape[:2]}")
            yield data, frame

    def _masks(self, size: tuple[int, int] | None) -> tuple[LintedMasks, list[bytes]]:
        """Ids of all masks, and the bytes of their files where there are such."""
        raws: list[RawMask | None] = []
        files: list[bytes] = []
        drawn_notes: dict[str, None] = {}
        for mask in self.masks:
            files.append(b"")
            if mask is None:
                raws.append(None)
                continue
            if isinstance(mask, DrawnMask):
                pixels, notes = mask.draw(self.repair)
                raws.append(RawMask("drawn", pixels))
                drawn_notes.update(dict.fromkeys(notes))
            else:
                files[-1] = _read(mask)
                raws.append(read_mask(files[-1], str(mask)))
            size = size or raws[-1].pixels.shape
            if raws[-1].pixels.shape != size:
                raise UserError(f"{mask}: expected the frame's size {size}, found {raws[-1].pixels.shape}")
        linted = lint_masks(raws, [str(mask) for mask in self.masks], self.repair)
        return LintedMasks(linted.masks, linted.intact, (*drawn_notes, *linted.notes)), files


@dataclass(frozen=True)
class Recognised:
    """What a folder turned out to be.

    Attributes:
        layout: its name, one of `LAYOUTS`.
        reason: why.
        kind: of its shards: "images", "bl30k" or "videos".
        videos: to ingest.
        unusable: further ones of which the list of files tells already that they cannot be.
        notes: what a person should know of the whole.
    """

    layout: str
    reason: str
    kind: str
    videos: list[SourceVideo]
    unusable: list[SourceVideo] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Changes when a file is added, taken away or written again; from names, sizes and times, not contents."""
        found = hashlib.sha256()
        for video in self.videos:
            listed: list[Stamp] = [*stamps(video.frames), *stamps(video.masks)]
            found.update(json.dumps([video.video_id, listed]).encode())
        return found.hexdigest()


def _read(file: Any) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def _replaced(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field_ = SCHEMA.field(name)
    return table.set_column(SCHEMA.get_field_index(name), field_, pa.array(values, field_.type))


def _without_void(table: pa.Table) -> pa.Table:
    """The table with void taken out of what a sampler filters on."""
    objects = table.column("objects").to_pylist()
    if not any(VOID in ids for ids in objects):
        return table
    kept = [[i for i, k in enumerate(ids) if k != VOID] for ids in objects]
    boxes = table.column("boxes").to_pylist()
    table = _replaced(
        table, "boxes", [[x for i in k for x in b[4 * i : 4 * i + 4]] for k, b in zip(kept, boxes, strict=True)]
    )
    for name in ("objects", "areas"):
        values = table.column(name).to_pylist()
        table = _replaced(table, name, [[v[i] for i in k] for k, v in zip(kept, values, strict=True)])
    return table
