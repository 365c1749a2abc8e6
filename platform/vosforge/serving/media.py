"""Images and clips that clients send: measured before they are decoded, and nothing in them is followed.

Bodies carry JPEG and PNG alone. Decoders of video containers open what a container refers to, other files and
addresses among it, so there are none here.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vosforge.clip import VOID, frame_order
from vosforge.data.image_files import IMAGE_SUFFIXES, decode_frame, decode_mask, encode_mask
from vosforge.serving.limits import Limits, Refused, TooLarge

FIRST_MASK, MASKS = "mask.png", "masks"
_LONGEST_NAME = 255


class Clip(NamedTuple):
    """A clip as it was sent.

    Attributes:
        names: of the frames, without suffix, in order.
        frames: their JPEG or PNG bytes.
        masks: position -> PNG bytes of the mask given there.
    """

    names: list[str]
    frames: list[bytes]
    masks: dict[int, bytes]


def read_frame(data: bytes, name: str, limits: Limits) -> np.ndarray:
    """JPEG or PNG bytes -> `(H, W, 3)` uint8 RGB.

    Raises:
        TooLarge: for more bytes or pixels than allowed.
        Refused: for anything but a whole JPEG or PNG.
    """
    _check(data, name, limits)
    return decode_frame(data, name)


def read_mask(data: bytes, name: str, limits: Limits) -> np.ndarray:
    """PNG bytes -> `(H, W)` uint8 ids; beside other ids 255 is void, and becomes background.

    Raises:
        TooLarge: for more bytes, pixels or objects than allowed.
        Refused: for anything but a whole mask of ids.
    """
    _check(data, name, limits)
    mask = decode_mask(data, name)
    ids = {int(i) for i in np.unique(mask)} - {0}
    if VOID in ids and len(ids) > 1:
        mask = np.where(mask == VOID, 0, mask).astype(np.uint8)
        ids.remove(VOID)
    check_objects(ids, name, limits)
    return mask


def read_scribbles(data: bytes, name: str, limits: Limits) -> Any:
    """JSON bytes -> scribbles as `Session.interact` takes them.

    Raises:
        TooLarge: for more bytes or objects than allowed.
        Refused: for what is no JSON, or neither strokes nor a DAVIS scribble file's content.
    """
    check_bytes(len(data), limits.max_image_mib, name)
    try:
        scribbles = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name}: expected JSON, found something else ({str(error)[:80]})") from error
    if not isinstance(scribbles, list) and not (isinstance(scribbles, dict) and "scribbles" in scribbles):
        raise Refused(f"{name}: expected a list of strokes, or the content of a DAVIS scribble file")
    return scribbles


def read_clip(data: bytes, limits: Limits) -> Clip:
    """A clip from a tar archive, of which nothing is written to disk.

    Images in a folder `masks` are masks, named as the frames where their objects appear; `mask.png` is that of the
    first frame; all other JPEG and PNG files are frames, in the order of the numbers in their names. Names of folders
    say no more than this.

    Raises:
        TooLarge: for more bytes, frames or entries than allowed.
        Refused: for what is no tar archive, has links or other special entries in it, two frames of one name, a name of
            more than 255 characters, no frame, or no mask.
    """
    check_bytes(len(data), limits.max_clip_mib, "clip")
    frames: dict[str, bytes] = {}
    masks: dict[str, bytes] = {}
    # A mask beside each frame, and beside each of both the file that macOS keeps its attributes in.
    for path, content in _entries(data, 4 * limits.max_frames + 100):
        is_mask = path.name == FIRST_MASK or path.parent.name == MASKS
        kind, name = (masks, "" if path.name == FIRST_MASK else path.stem) if is_mask else (frames, path.stem)
        if name in kind:
            raise Refused(f"clip: two {'masks' if is_mask else 'frames'} are named {path.stem[:80]!r}; rename one")
        kind[name] = content
        if len(frames) > limits.max_frames:
            raise TooLarge(f"clip: expected at most {limits.max_frames} frames; send it in parts, or in a session")
    names = sorted(frames, key=frame_order)
    if not names:
        raise Refused("clip: expected JPEG or PNG frames in a tar archive, found none")
    positions = {"": 0} | {name: t for t, name in enumerate(names)}
    strange = [name for name in masks if name not in positions]
    if strange:
        raise Refused(f"clip: mask {strange[0][:80]!r} belongs to no frame; frames are {names[0]} to {names[-1]}")
    if not masks:
        raise Refused(f"clip: expected {FIRST_MASK} for the first frame, or {MASKS}/<frame>.png, found no mask")
    return Clip(names, [frames[name] for name in names], {positions[name]: mask for name, mask in masks.items()})


def _entries(data: bytes, most: int) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The images of an archive that is not compressed: what it holds cannot be larger than the body."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for number, entry in enumerate(archive):
                # A size below 0 leads `tarfile` back to entries that it has read already, for ever (CVE-2025-8194);
                # extended headers can hide it, so that entries are counted, too.
                if entry.size < 0:
                    raise Refused(f"clip: expected sizes of 0 and more, found {entry.size} in its archive")
                if number >= most:
                    raise TooLarge(f"clip: expected at most {most} entries in its archive; send it in parts")
                path = PurePosixPath(entry.name)
                if entry.isdir() or path.name.startswith("."):
                    continue
                if not entry.isreg() or entry.issparse():
                    raise Refused(f"clip: {entry.name[:80]!r} is no plain file; archive what it leads to (tar -h)")
                if path.suffix.lower() not in IMAGE_SUFFIXES:
                    raise Refused(f"clip: expected JPEG and PNG files, found {path.name[:80]!r}")
                if len(path.name) > _LONGEST_NAME:
                    raise Refused(f"clip: expected names of at most {_LONGEST_NAME} characters; shorten them")
                content = archive.extractfile(entry).read()
                if len(content) != entry.size:
                    raise Refused(f"clip: the archive ends within {path.name[:80]!r}; send all of it")
                yield path, content
    except Refused:
        raise
    except Exception as error:
        # What is no archive makes `tarfile` raise errors of any kind, of recursion and of indices among them.
        told = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise Refused(f"clip: expected a tar archive that is not compressed, found something else ({told})") from error


def write_masks(names: Iterable[str], masks: Iterable[bytes]) -> bytes:
    """A tar archive of PNG files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for name, mask in zip(names, masks, strict=True):
            entry = tarfile.TarInfo(f"{name}.png")
            # Without a time, so that equal masks are equal archives.
            entry.size, entry.mode = len(mask), 0o644
            archive.addfile(entry, io.BytesIO(mask))
    return stream.getvalue()


def to_png(labels: np.ndarray) -> bytes:
    """`(H, W)` uint8 ids -> bytes of a palette PNG."""
    return encode_mask(labels)


def check_bytes(size: int, most_mib: int, name: str) -> None:
    """Refuse a body of more than so many MiB.

    Raises:
        TooLarge: naming it.
    """
    if size > most_mib << 20:
        raise TooLarge(f"{name}: expected at most {most_mib} MiB, found {size / 2**20:.1f}")


def check_objects(objects: Iterable[int], name: str, limits: Limits) -> None:
    """Refuse more objects than allowed.

    Raises:
        TooLarge: naming where they are.
    """
    count = len(set(objects))
    if count > limits.max_objects:
        raise TooLarge(f"{name}: expected at most {limits.max_objects} objects, found {count}")


def _check(data: bytes, name: str, limits: Limits) -> None:
    """Refuse an image by its header, before its pixels take memory, and one whose data end early."""
    check_bytes(len(data), limits.max_image_mib, name)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if max(image.size) > limits.max_side:
                found = f"{image.size[1]}x{image.size[0]}"
                raise TooLarge(f"{name}: expected at most {limits.max_side} pixels a side, found {found}; reduce it")
            image.load()
    except Image.DecompressionBombError as error:
        raise TooLarge(
            f"{name}: expected at most {limits.max_side} pixels a side, found far more; reduce it"
        ) from error
    except Refused:
        raise
    except Exception as error:
        # Damaged images make Pillow raise errors of any kind.
        raise Refused(f"{name}: expected a whole JPEG or PNG image, found {len(data)} bytes that are none") from error
