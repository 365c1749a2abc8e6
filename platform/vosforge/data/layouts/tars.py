"""BL30K still in its tars: frames and masks are read out of `BL30K_a.tar` ... without unpacking."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from vosforge.data.image_files import IMAGE_SUFFIXES
from vosforge.data.layouts.files import TarFiles, shared_names
from vosforge.data.layouts.listing import Wanted, match, refuse_split, without_duplicates
from vosforge.data.layouts.video import Recognised, SourceVideo
from vosforge.errors import UserError

_BLOCK = 1 << 24
Places = dict[str, tuple[int, int]]


def find_tars(wanted: Wanted) -> Recognised | None:
    """The videos in the tar that the root is, or in those that lie in it, or None.

    Raises:
        UserError: for a split, or a tar that is compressed, damaged, or holds no videos.
    """
    if not wanted.allows("bl30k"):
        return None
    tars = tars_at(wanted.root)
    if not tars:
        return None
    refuse_split(wanted, "bl30k in tars")
    videos = [video for tar in tars for video in _videos(tar, wanted)]
    kept, taken = without_duplicates(videos, lambda video: str(video.frames.tar))
    taken += [video for video in kept if not len(video.frames)]
    kept = [video for video in kept if len(video.frames)]
    reason = f"JPEGImages/ and Annotations/ inside {', '.join(tar.name for tar in tars)}"
    return Recognised("bl30k", reason, "bl30k", kept, taken)


def tars_at(root: Path) -> list[Path]:
    """The root if it is a tar, else the tars that lie in it."""
    if root.is_file():
        return [root] if root.suffix == ".tar" else []
    return sorted(root.glob("*.tar"))


def check_md5(tars: list[Path], sums: Path, on_progress: Callable[[int], None] = lambda done: None) -> list[str]:
    """Compare tars with a list of sums.

    Args:
        tars: files to read whole.
        sums: lines of `<md5>  <file name>`, as md5sum writes them.
        on_progress: hears how many bytes are read.

    Returns:
        Names of tars that the list does not know.

    Raises:
        UserError: when the list is missing or is none, or a tar has another sum.
    """
    if not sums.is_file():
        raise UserError(f"{sums}: no such file; expected lines of `<md5>  <file name>`")
    known: dict[str, str] = {}
    for line in sums.read_text().splitlines():
        parts = line.split()
        if len(parts) > 1:
            known[PurePosixPath(parts[1].lstrip("*")).name] = parts[0].lower()
    if not any(tar.name in known for tar in tars):
        raise UserError(f"{sums}: expected lines of `<md5>  <file name>` for {tars[0].name}, found {len(known)} others")
    done = 0
    for tar in tars:
        if tar.name not in known:
            continue
        digest = hashlib.md5(usedforsecurity=False)
        with tar.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                on_progress(done)
        if digest.hexdigest() != known[tar.name]:
            raise UserError(f"{tar}: expected md5 {known[tar.name]}, found {digest.hexdigest()}; fetch it again")
    return [tar.name for tar in tars if tar.name not in known]


def _videos(tar: Path, wanted: Wanted) -> list[SourceVideo]:
    frames, masks = _contents(tar)
    if not frames:
        raise UserError(f"{tar}: expected JPEGImages/<video>/<frame>.jpg and Annotations/ in it, found no frames")
    masks_by_name = {folder.name: (folder, places) for folder, places in masks.items()}
    found = []
    for folder, places in sorted(frames.items()):
        mask_folder, mask_places = masks_by_name.pop(folder.name, (PurePosixPath("Annotations") / folder.name, {}))
        found.append(_video(tar, wanted, folder, places, mask_folder, mask_places))
    found += [_video(tar, wanted, folder, {}, folder, places) for folder, places in masks_by_name.values()]
    return found


def _video(
    tar: Path, wanted: Wanted, folder: PurePosixPath, places: Places, mask_folder: PurePosixPath, mask_places: Places
) -> SourceVideo:
    found = match(sorted(places), sorted(mask_places), f"{tar}:{mask_folder}", intersect=True)
    frames = TarFiles(tar, folder, shared_names(found.frames), _table(places[name] for name in found.frames))
    at = _table((0, 0) if name is None else mask_places[name] for name in found.masks)
    masks = TarFiles(tar, mask_folder, shared_names(found.masks), at)
    problem = found.problem or ("" if found.frames else f"{tar}:{folder}: no frame that has a mask")
    return SourceVideo(wanted.dataset, folder.name, frames, masks, wanted.licence, problem, found.notes)


def _table(places: Iterable[tuple[int, int]]) -> np.ndarray:
    return np.array(list(places), np.int64).reshape(-1, 2)


def _contents(tar: Path) -> tuple[dict[PurePosixPath, Places], dict[PurePosixPath, Places]]:
    """Folders of frames and of masks, and where their files lie in the tar."""
    found: dict[str, dict[PurePosixPath, Places]] = {"JPEGImages": {}, "Annotations": {}}
    try:
        with tarfile.open(tar, "r:") as file:
            while (member := file.next()) is not None:
                path = PurePosixPath(member.name)
                top = path.parent.parent.name
                if member.isreg() and top in found and path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".":
                    found[top].setdefault(path.parent, {})[path.name] = (member.offset_data, member.size)
                # The members would be kept, a kilobyte each.
                file.members = []
    except tarfile.TarError as error:
        raise UserError(f"{tar}: expected an uncompressed tar ({error}); decompress or fetch it again") from error
    return found["JPEGImages"], found["Annotations"]
