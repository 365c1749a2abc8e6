"""Listing folders, and bringing frames and masks of a video together by name."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vosforge.clip import frame_order
from vosforge.data.image_files import IMAGE_SUFFIXES
from vosforge.data.layouts.files import FolderFiles, shared_names
from vosforge.data.layouts.video import SourceVideo
from vosforge.errors import UserError

MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".jpg", ".jpeg")
"""In order of preference: a JPEG can hold no exact ids, and only the lint will say so."""
_MOST_NAMED = 4
_SAMPLED = 6


@dataclass(frozen=True)
class Wanted:
    """What the user asks `find_videos` for; see there."""

    root: Path
    layout: str
    split: str | None
    licence: str
    dataset: str

    def allows(self, *layouts: str) -> bool:
        """Whether one of these layouts may be what the root is."""
        return self.layout == "auto" or self.layout in layouts


def names_in(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """Names of a folder's files with one of the suffixes, in order; hidden ones left out, none without the folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and not entry.is_dir()]
    return sorted((name for name in names if os.path.splitext(name)[1].lower() in suffixes), key=frame_order)


def folders_in(folder: Path) -> list[str]:
    """Names of a folder's folders, sorted; hidden ones left out, none without the folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] not in "._" and entry.is_dir())


def stem(name: str) -> str:
    """A file's name without its suffix."""
    return os.path.splitext(name)[0]


@dataclass(frozen=True)
class Matched:
    """Frames in order, the mask of each or None, and what is wrong or worth knowing."""

    frames: tuple[str, ...]
    masks: tuple[str | None, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()


def match(frames: Sequence[str], masks: Sequence[str], where: str, intersect: bool = False) -> Matched:
    """Bring together file names of one video.

    Args:
        frames, masks: file names, sorted.
        where: the masks' folder, for the problem's text.
        intersect: keep only frames that have a mask, and masks that have a frame, and note how many were left out;
            otherwise a mask without a frame is a problem.
    """
    twice = [name for name, count in Counter(map(stem, frames)).items() if count > 1]
    if twice:
        both = [name for name in frames if stem(name) == twice[0]]
        return Matched(tuple(frames), (None,) * len(frames), f"two frames of one name: {' and '.join(both)}")
    order = {suffix: i for i, suffix in enumerate(MASK_SUFFIXES)}
    by_stem: dict[str, str] = {}
    for name in sorted(masks, key=lambda name: order[os.path.splitext(name)[1].lower()]):
        by_stem.setdefault(stem(name), name)
    lost = sorted(set(by_stem) - set(map(stem, frames)))
    notes = _gaps(frames)
    if intersect:
        kept = [name for name in frames if stem(name) in by_stem]
        bare = len(frames) - len(kept)
        if bare or lost:
            notes.append(f"unequal sets left out: {bare} frames without a mask, {len(lost)} masks without a frame")
        frames, lost = kept, []
    found = tuple(by_stem.get(stem(name)) for name in frames)
    problem = f"{where}: masks without a frame: {listed(lost)}" if lost else ""
    return Matched(tuple(frames), found, problem, tuple(notes))


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many there are."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def folder_video(
    wanted: Wanted, video_id: str, frames: Path, masks: Path, intersect: bool = False, notes: tuple[str, ...] = ()
) -> SourceVideo:
    """The video of a folder of frames and a folder of masks with the same stems; it may have a problem."""
    found = match(names_in(frames), names_in(masks, MASK_SUFFIXES), str(masks), intersect)
    problem = found.problem
    if not found.frames:
        problem = f"{frames}: no frames" + (f" for the masks in {masks}" if masks.is_dir() else "")
    return SourceVideo(
        wanted.dataset,
        video_id,
        FolderFiles(frames, shared_names(found.frames)),
        FolderFiles(masks, shared_names(found.masks)),
        wanted.licence,
        problem,
        (*notes, *found.notes),
    )


def _numbers(names: Sequence[str]) -> np.ndarray | None:
    """The frames' numbers; None when their names do not end in one."""
    found = [re.fullmatch(r"(.*?)(\d+)", stem(name)) for name in names]
    if len(found) < 2 or not all(found) or len({match_.group(1) for match_ in found}) > 1:
        return None
    return np.array([int(match_.group(2)) for match_ in found])


def _gaps(names: Sequence[str]) -> list[str]:
    """A note when frames are numbered in even steps but for a few."""
    numbers = _numbers(names)
    if numbers is None:
        return []
    steps = np.diff(numbers)
    usual = Counter(steps.tolist()).most_common(1)[0]
    wider = numbers[:-1][steps > usual[0]]
    if usual[1] < 0.8 * len(steps) or not len(wider):
        return []
    return [f"frames are missing after {listed([str(n) for n in wider])}"]


def in_sequence(names: Sequence[str]) -> bool:
    """Whether names are numbered in even steps, as the frames of a video are and photographs rarely."""
    numbers = _numbers(names)
    return numbers is not None and len(set(np.diff(numbers).tolist())) == 1


def sizes_of(paths: Sequence[Path]) -> int:
    """How many sizes the first, last and some between of these images have, going by their headers."""
    sizes = set()
    for i in np.unique(np.linspace(0, len(paths) - 1, min(_SAMPLED, len(paths))).astype(int)):
        try:
            with Image.open(paths[i]) as image:
                sizes.add(image.size)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    return len(sizes)


def are_photographs(folder: Path, names: Sequence[str]) -> bool:
    """Whether images look like single ones: of several sizes, more than one odd frame explains."""
    sizes = sizes_of([folder / name for name in names])
    return sizes > 2 or (sizes > 1 and not in_sequence(names))


def without_duplicates(
    videos: list[SourceVideo], where: Callable[[SourceVideo], Any]
) -> tuple[list[SourceVideo], list[SourceVideo]]:
    """Take out videos whose name came before; those that repeat another's frames and masks stay, and say so.

    Single images are compared by name only.

    Args:
        videos: in order.
        where: what to call a video's place in the problem's text.

    Returns:
        The videos that stay, and those taken out.
    """
    kept: list[SourceVideo] = []
    taken: list[SourceVideo] = []
    names: dict[str, SourceVideo] = {}
    contents: dict[Any, list[SourceVideo]] = defaultdict(list)
    for video in videos:
        first = names.setdefault(video.video_id, video)
        if first is not video:
            both = f"{where(video)}: the id {video.video_id} is that of {where(first)} too"
            taken.append(replace(video, problem=both))
            continue
        if len(video.frames) > 1:
            alike = contents[_fingerprint(video)]
            same = next((other for other in alike if _same_files(other, video)), None)
            if same is None:
                alike.append(video)
            else:
                video = replace(video, repeats=f"{where(video)}: the same frames and masks as {where(same)}")
        kept.append(video)
    return kept, taken


def _fingerprint(video: SourceVideo) -> Any:
    """Equal for videos of equal files; cheap."""
    ends = [video.frames[0], video.frames[-1], *(m for m in (video.masks[0], video.masks[-1]) if m is not None)]
    return len(video.frames), tuple(_size(file) for file in ends)


def _size(file: Any) -> Any:
    if isinstance(file, Path):
        try:
            return file.stat().st_size
        except OSError:
            return str(file)
    return getattr(file, "size", str(file))


def _same_files(a: SourceVideo, b: SourceVideo) -> bool:
    """Whether all frames and masks are the same; the ends are compared first, and sizes before contents."""
    ends = [(files[i], others[i]) for files, others in ((a.frames, b.frames), (a.masks, b.masks)) for i in (0, -1)]
    if not all(_same_file(x, y) for x, y in ends):
        return False
    pairs = [*zip(a.frames, b.frames, strict=True), *zip(a.masks, b.masks, strict=True)]
    return all(_size(x) == _size(y) for x, y in pairs if x != y) and all(_same_file(x, y) for x, y in pairs)


def _same_file(a: Any, b: Any) -> bool:
    if a is None or b is None or a == b:
        return a == b
    try:
        return a.read_bytes() == b.read_bytes()
    except (OSError, UserError):
        return False


def refuse_split(wanted: Wanted, layout: str) -> None:
    """Refuse a split for a layout that knows none."""
    if wanted.split is not None:
        raise UserError(f"{wanted.root}: no split {wanted.split!r}: the layout {layout} has no lists; leave it out")
