"""Folders of videos, as DAVIS has them: `JPEGImages/[480p/]<video>/<frame>.jpg`, masks likewise under `Annotations`.

YouTube-VOS (with `meta.json` and frames of every fifth or every frame), MOSE, BL30K and SA-V (one PNG an object) lie
the same way, in one folder or in a folder for each split.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vosforge.data.image_files import IMAGE_SUFFIXES
from vosforge.data.layouts.files import FolderFiles, ObjectFiles, shared_names
from vosforge.data.layouts.listing import (
    Wanted,
    are_photographs,
    folder_video,
    folders_in,
    in_sequence,
    listed,
    match,
    names_in,
    without_duplicates,
)
from vosforge.data.layouts.video import Recognised, SourceVideo
from vosforge.errors import UserError

FOLDER_LAYOUTS = ("davis", "youtube", "mose", "bl30k", "sav", "folders")
_PAIRS = (("JPEGImages", "Annotations"), ("JPEGImages_24fps", "Annotations_6fps"), ("frames", "masks"))
_RESOLUTIONS = ("480p", "Full-Resolution", "1080p")
_ALL_FRAMES = "_all_frames"
_MOST_SETS = 40


@dataclass(frozen=True)
class Tree:
    """A folder that holds folders of frames and, perhaps, of masks."""

    root: Path
    frames: Path
    masks: Path

    @property
    def has_masks(self) -> bool:
        return bool(folders_in(self.masks))


def find_folders(wanted: Wanted) -> Recognised | None:
    """The videos of a root in one of `FOLDER_LAYOUTS`, or None.

    Raises:
        UserError: when there are several sets and the split names none, no such split, or a video of a split
            without frames.
    """
    if not wanted.allows(*FOLDER_LAYOUTS):
        return None
    trees = find_trees(wanted.root)
    if not trees or (wanted.layout == "auto" and _are_stills(trees)):
        return None
    chosen, split = _choose(trees, wanted)
    layout = wanted.layout if wanted.layout != "auto" else _name(chosen[0], wanted.root)
    videos: list[SourceVideo] = []
    for tree in chosen:
        videos += _videos(tree, layout, wanted, split)
    kept, taken = without_duplicates(videos, lambda video: getattr(video.frames, "folder", video.video_id))
    notes = [note for tree in chosen for note in _notes(tree, layout)]
    # Without frames there is nothing that a reader of this list could do with a video.
    taken += [video for video in kept if not len(video.frames)]
    kept = [video for video in kept if len(video.frames)]
    where = ", ".join(str(tree.frames.relative_to(wanted.root)) for tree in chosen)
    return Recognised(
        layout, f"folders of frames under {where}{_why(layout, chosen[0])}", _kind(layout), kept, taken, notes
    )


def _kind(layout: str) -> str:
    return "bl30k" if layout == "bl30k" else "videos"


def find_trees(root: Path, deep: int = 2) -> list[Tree]:
    """The tree at a root, else those in its folders, each looked into as deep; in the order of their paths."""
    found = _tree(root)
    if found or deep == 0:
        return found
    inside = folders_in(root)
    # Sets of videos lie in few folders; many are videos or classes themselves.
    return [tree for name in inside for tree in find_trees(root / name, deep - 1)] if len(inside) <= _MOST_SETS else []


def _tree(root: Path) -> list[Tree]:
    for frames_name, masks_name in _PAIRS:
        for resolution in (*_RESOLUTIONS, ""):
            frames, masks = root / frames_name / resolution, root / masks_name / resolution
            if folders_in(frames) and (masks_name == "Annotations" or masks.is_dir()):
                if not masks.is_dir():
                    masks = next((m for r in (*_RESOLUTIONS, "") if (m := root / masks_name / r).is_dir()), masks)
                return [Tree(root, frames, masks)]
    return []


def _are_stills(trees: list[Tree]) -> bool:
    """Whether the folders hold photographs by class or set: not numbered in sequence, or of several sizes."""
    if any((tree.root / name).exists() for tree in trees for name in ("ImageSets", "meta.json")):
        return False
    folders = [trees[0].frames / name for name in folders_in(trees[0].frames)[:4]]
    files = [(folder, names_in(folder)) for folder in folders]
    if trees[0].frames.name in ("JPEGImages", *_RESOLUTIONS):
        return any(are_photographs(folder, names) for folder, names in files)
    return any(len(names) > 1 and not in_sequence(names) for _, names in files)


def _choose(trees: list[Tree], wanted: Wanted) -> tuple[list[Tree], str | None]:
    """The trees that the split names, and what is left of the split to look up in their lists."""
    root, split = wanted.root, wanted.split
    if _is_bl30k(trees[0], root) or wanted.layout == "bl30k":
        return trees, split
    by_name = {str(tree.root.relative_to(root)): tree for tree in trees}
    named = [tree for name, tree in by_name.items() if split in (name, Path(name).name)]
    if split is not None and len(named) == 1:
        return [_with_masks(named[0], trees)], None
    if split is not None and not named:
        named = [tree for tree in trees if _split_file(tree.root, split) is not None] if len(trees) > 1 else trees
        if not named:
            raise UserError(f"{root}: no split {split!r}; there are: {', '.join(by_name)}")
    elif split is None:
        named = [tree for tree in trees if tree.has_masks] or trees
    if len(named) > 1:
        names = ", ".join(str(tree.root.relative_to(root)) for tree in named)
        raise UserError(f"{root}: holds several sets: {names}; choose one with --split or as --root")
    return [_with_masks(named[0], trees)], split


def _with_masks(tree: Tree, trees: list[Tree]) -> Tree:
    """YouTube-VOS keeps all frames of `valid` in `valid_all_frames`, without masks."""
    if tree.has_masks or not tree.root.name.endswith(_ALL_FRAMES):
        return tree
    base = tree.root.name[: -len(_ALL_FRAMES)]
    places = [other.root for other in trees] + [tree.root.parent / base, tree.root.parent.parent / base]
    found = [place / "Annotations" for place in places if place.name == base and (place / "Annotations").is_dir()]
    return Tree(found[0].parent, tree.frames, found[0]) if found else tree


def _is_bl30k(tree: Tree, root: Path) -> bool:
    return any("bl30k" in part.lower() for part in (*tree.root.relative_to(root).parts, root.name, root.parent.name))


def _name(tree: Tree, root: Path) -> str:
    names = " ".join([root.resolve().name, *tree.root.relative_to(root).parts]).lower()
    if _is_bl30k(tree, root):
        return "bl30k"
    if _has_object_folders(tree):
        return "sav"
    if _meta(tree.root) is not None and "mose" not in names:
        return "youtube"
    if "mose" in names:
        return "mose"
    lists = (tree.root / "ImageSets").is_dir()
    return "davis" if lists or tree.frames.name in _RESOLUTIONS or "davis" in names else "folders"


def _why(layout: str, tree: Tree) -> str:
    return {
        "davis": f", masks under {tree.masks.relative_to(tree.root)}",
        "youtube": ", meta.json beside them",
        "mose": ", named MOSE",
        "bl30k": ", named BL30K",
        "sav": f", a folder an object under {tree.masks.name}/<video>",
        "folders": f", masks under {tree.masks.name}",
    }[layout]


def _notes(tree: Tree, layout: str) -> list[str]:
    there = [name for name in _RESOLUTIONS if (tree.frames.parent / name).is_dir()]
    if tree.frames.name in _RESOLUTIONS and len(there) > 1:
        return [f"of {', '.join(there)} the first is taken; --frames and --masks choose others"]
    return []


def _has_object_folders(tree: Tree) -> bool:
    names = folders_in(tree.masks)
    return bool(names) and bool(folders_in(tree.masks / names[0])) and not names_in(tree.masks / names[0])


def _meta(root: Path) -> set[str] | None:
    """The videos that a YouTube-VOS `meta.json` lists; None without one."""
    path = root / "meta.json"
    if not path.is_file():
        return None
    try:
        return set(json.loads(path.read_bytes())["videos"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: expected {{"videos": ...}} as of YouTube-VOS, found something else') from error


def _videos(tree: Tree, layout: str, wanted: Wanted, split: str | None) -> list[SourceVideo]:
    make: Callable[..., SourceVideo] = folder_video
    if layout == "bl30k":
        make = functools.partial(folder_video, intersect=True)
    elif layout == "sav" or _has_object_folders(tree):
        make = _by_objects
    if split is not None:
        return [make(wanted, name, tree.frames / name, tree.masks / name) for name in _split(tree.root, split)]
    names = set(folders_in(tree.frames))
    meta = _meta(tree.root) if layout == "youtube" else None
    names |= set(folders_in(tree.masks)) if meta is None else meta
    return [make(wanted, name, tree.frames / name, tree.masks / name) for name in sorted(names)]


def _by_objects(wanted: Wanted, video_id: str, frames: Path, masks: Path) -> SourceVideo:
    """A video whose masks lie in one folder an object. Folders are ids; when they are not 1 to 254, in their order."""
    objects = folders_in(masks)
    numbers = [int(name) if name.isdecimal() else 0 for name in objects]
    kept = all(1 <= k <= 254 for k in numbers) and len(set(numbers)) == len(numbers)
    ids = numbers if kept else list(range(1, len(objects) + 1))
    order = sorted(range(len(objects)), key=ids.__getitem__)
    there: dict[str, list[tuple[str, int]]] = {}
    for i in order:
        for name in names_in(masks / objects[i], (".png",)):
            there.setdefault(name, []).append((objects[i], ids[i]))
    found = match(names_in(frames), sorted(there), str(masks))
    drawn = [None if name is None else ObjectFiles(name[:-4], masks, tuple(there[name])) for name in found.masks]
    renumbered = () if kept or not objects else (f"objects {listed(objects)} are numbered from 1",)
    problem = found.problem or ("" if found.frames else f"{frames}: no frames")
    if len(objects) > 254:
        problem = f"{masks}: expected at most 254 objects, found {len(objects)}"
    files = FolderFiles(frames, shared_names(found.frames))
    return SourceVideo(
        wanted.dataset, video_id, files, tuple(drawn), wanted.licence, problem, (*renumbered, *found.notes)
    )


def _split_file(root: Path, split: str) -> Path | None:
    places = [root / "ImageSets" / year for year in ("2017", "2016", "480p", "1080p", ".")]
    return next((path for place in (*places, root) if (path := place / f"{split}.txt").is_file()), None)


def _split(root: Path, split: str) -> list[str]:
    """Names in a list; the lists of DAVIS 2016 name every frame, `/JPEGImages/480p/bear/00000.jpg`, instead."""
    path = _split_file(root, split)
    if path is not None:
        entries = [Path(line.split()[0].strip("/")) for line in path.read_text().splitlines() if line.strip()]
        names = [entry.parent.name if entry.suffix.lower() in IMAGE_SUFFIXES else str(entry) for entry in entries]
        return list(dict.fromkeys(names))
    there = sorted({path.stem for path in (root / "ImageSets").rglob("*.txt")})
    raise UserError(f"{root}: no split {split!r} in ImageSets/; there are: {', '.join(there) or 'none'}")
