"""Static sets: single images with masks, in two folders of the same names, side by side, or by class."""

from __future__ import annotations

import re
from pathlib import Path

from vosforge.data.layouts.listing import (
    MASK_SUFFIXES,
    Wanted,
    folders_in,
    listed,
    names_in,
    refuse_split,
    stem,
    without_duplicates,
)
from vosforge.data.layouts.video import Recognised, SourceVideo
from vosforge.errors import UserError

PAIRS = (
    ("images", "masks"),
    ("image", "mask"),
    ("images", "annotations"),
    ("images", "labels"),
    ("images", "gt"),
    ("images", "ground_truth_mask"),
    ("imgs", "gt"),
    ("imgs", "masks"),
    ("img", "gt"),
    ("img", "mask"),
    ("im", "gt"),
    ("image", "gt"),
    ("jpegimages", "annotations"),
    ("jpegimages", "segmentationobject"),
    ("jpegimages", "masks"),
)
_MASK_ENDINGS = r"[-_](mask|masks|gt|label|seg)$"
_IMAGE_ENDINGS = r"[-_](im|img|image|rgb)$"
_DEEPEST = 3


def find_stills(wanted: Wanted) -> Recognised | None:
    """The images of a root that is a static set, or of static sets beside each other, or None.

    Raises:
        UserError: for a split, or when there are folders for pairs, but no pair.
    """
    if not wanted.allows("static"):
        return None
    notes: list[str] = []
    videos, reasons, unpaired = _collect(wanted, wanted.root, (), notes)
    if not videos:
        if unpaired:
            static_videos(*unpaired[0], wanted.dataset)
        return None
    refuse_split(wanted, "static")
    kept, taken = without_duplicates(videos, lambda video: str(video.frames[0]))
    reason = "; ".join(list(dict.fromkeys(reasons))[:4])
    notes += [f"{images}: no pair with {masks}" for images, masks in unpaired]
    return Recognised("static", reason, "images", kept, taken, notes)


def static_videos(images: Path, masks: Path, dataset: str, licence: str = "") -> list[SourceVideo]:
    """Pairs of image and mask with the same stem, as videos of one frame, by name.

    Raises:
        UserError: when a folder is missing or no pair is found.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    videos = _pairs(images, masks, dataset, licence, "")
    if not videos:
        raise UserError(f"{images} and {masks}: no image has a mask PNG of the same name")
    return videos


def pair_folders(root: Path) -> tuple[Path, Path] | None:
    """A folder's two folders of images and of masks, going by their names."""
    by_name = {name.lower(): name for name in folders_in(root)}
    pairs = [*PAIRS, *((name, re.sub("image$", "mask", name)) for name in by_name if name.endswith("image"))]
    pairs += [(name, f"{name}{ending}") for name in by_name for ending in ("_mask", "_masks", "_gt", "-mask", "-gt")]
    for images, masks in pairs:
        if images in by_name and masks in by_name and images != masks:
            return root / by_name[images], root / by_name[masks]
    return None


def _collect(
    wanted: Wanted, folder: Path, inside: tuple[str, ...], notes: list[str]
) -> tuple[list[SourceVideo], list[str], list[tuple[Path, Path]]]:
    """Images at a folder, else of the folders in it; why; and pairs of folders in which nothing pairs."""
    prefix = "".join(f"{name}-" for name in inside)
    shown = "/".join(inside) + "/" if inside else ""
    pair = pair_folders(folder)
    if pair is not None:
        videos, classes = _pairs(*pair, wanted.dataset, wanted.licence, prefix, notes), folders_in(pair[0])
        for name in classes:
            both = pair[0] / name, pair[1] / name
            if both[1].is_dir():
                videos += _pairs(*both, wanted.dataset, wanted.licence, f"{prefix}{name}-", notes)
        by_class = ", by class" if classes else ""
        reason = f"images in {shown}{pair[0].name}/ and masks in {shown}{pair[1].name}/{by_class}"
        return videos, [reason] if videos else [], [] if videos else [pair]
    videos = _pairs(folder, folder, wanted.dataset, wanted.licence, prefix, notes)
    if videos:
        return videos, [f"images with masks of the same name beside them in {shown or 'it'}"], []
    reasons: list[str] = []
    unpaired: list[tuple[Path, Path]] = []
    for name in folders_in(folder) if len(inside) < _DEEPEST else []:
        found, why, lost = _collect(wanted, folder / name, (*inside, name), notes)
        videos += found
        reasons += why
        unpaired += lost
    if len(reasons) > 2 and all("beside them" in reason for reason in reasons):
        reasons = ["folders of images with masks of the same name beside them"]
    return videos, reasons, unpaired


def _pairs(
    images: Path, masks: Path, dataset: str, licence: str, prefix: str, notes: list[str] | None = None
) -> list[SourceVideo]:
    """Images that have a mask; `notes` grows by what has no partner."""
    image_names, mask_names = names_in(images), names_in(masks, MASK_SUFFIXES)
    if images == masks:
        mask_names = _masks_beside(image_names, mask_names)
        image_names = sorted(set(image_names) - set(mask_names))
    order = {suffix: i for i, suffix in enumerate(MASK_SUFFIXES)}
    by_stem: dict[str, str] = {}
    for name in sorted(mask_names, key=lambda name: order[Path(name).suffix.lower()]):
        by_stem.setdefault(stem(name), name)
        by_stem.setdefault(re.sub(_MASK_ENDINGS, "", stem(name)), name)
    videos: list[SourceVideo] = []
    bare = []
    for name in image_names:
        plain = re.sub(_IMAGE_ENDINGS, "", stem(name))
        mask = by_stem.get(stem(name), by_stem.get(plain))
        if mask is None:
            bare.append(name)
            continue
        video_id = prefix + (stem(name) if stem(name) in by_stem else plain)
        videos.append(SourceVideo(dataset, video_id, (images / name,), (masks / mask,), licence))
    if notes is not None and videos:
        used = {video.masks[0].name for video in videos}
        lost = [name for name in mask_names if name not in used]
        notes += [f"{images}: no mask for {listed(bare)}"] if bare else []
        notes += [f"{masks}: no image for {listed(lost)}"] if lost else []
    return videos


def _masks_beside(images: list[str], masks: list[str]) -> list[str]:
    """Which files of a folder are masks of its images: a PNG beside a JPEG, or one by its name's ending."""
    jpegs = {stem(name) for name in images if name.lower().endswith((".jpg", ".jpeg"))}
    plain = {re.sub(_IMAGE_ENDINGS, "", stem(name)) for name in images}
    found = []
    for name in masks:
        bare = re.sub(_MASK_ENDINGS, "", stem(name))
        if bare != stem(name):
            found += [name] if bare in plain else []
        elif stem(name) in jpegs and not name.lower().endswith((".jpg", ".jpeg")):
            found.append(name)
    return found
