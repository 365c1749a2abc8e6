"""COCO instances: photographs, and a JSON of polygons and run lengths."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vosforge.data.layouts.files import DrawnMask
from vosforge.data.layouts.listing import Wanted, listed, without_duplicates
from vosforge.data.layouts.rle import decode_runs, draw_polygons
from vosforge.data.layouts.video import Recognised, SourceVideo
from vosforge.errors import UserError

_MOST_OBJECTS = 254
_LONGEST = 60
_PLACES = ("annotations/*.json", "*.json", "*/_annotations.coco.json")


@dataclass(frozen=True)
class Instances(DrawnMask):
    """The objects of one photograph, numbered from 1 in the order of their annotations.

    Attributes:
        size: (height, width).
        packed: their segmentations as compressed JSON: a data set has hundreds of thousands, which travel to workers.
        image: the photograph's id in the file.
    """

    size: tuple[int, int]
    packed: bytes
    image: str

    def __str__(self) -> str:
        return f"{self.source}:{self.image}"

    def draw(self, repair: bool = False) -> tuple[np.ndarray, list[str]]:
        """As of `DrawnMask`; where objects overlap the smaller one is on top."""
        shapes = [self._shape(segmentation) for segmentation in json.loads(zlib.decompress(self.packed))]
        mask = np.zeros(self.size, np.uint8)
        for k in sorted(range(len(shapes)), key=lambda i: -int(shapes[i].sum())):
            mask[shapes[k]] = k + 1
        return mask, []

    def _shape(self, segmentation: Any) -> np.ndarray:
        try:
            if isinstance(segmentation, dict):
                shape = decode_runs(segmentation)
            else:
                shape = draw_polygons(segmentation, self.size)
        except UserError as error:
            raise UserError(f"{self}: {error}") from error
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            raise UserError(f"{self}: expected polygons or run lengths, found {_shown(segmentation)}") from error
        if shape.shape != self.size:
            raise UserError(f"{self}: expected run lengths of size {self.size}, found {shape.shape}")
        return shape


def find_coco(wanted: Wanted) -> Recognised | None:
    """The photographs of a root with an instances JSON, or of the JSON that the root is, or None.

    Crowds (`iscrowd`) are background. Photographs without another object are left out, and counted.

    Raises:
        UserError: when there are several such files and the split names none, or one is damaged.
    """
    if not wanted.allows("coco"):
        return None
    path = _annotation_file(wanted)
    if path is None:
        return None
    content = _content(path)
    photographs = _photographs(
        wanted, path, [image["file_name"] for image in content["images"] if isinstance(image["file_name"], str)]
    )
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd") and annotation.get("segmentation"):
            by_image[str(annotation["image_id"])].append(annotation)
    videos, unusable = [], []
    for image in content["images"]:
        video = _video(wanted, path, photographs, image, by_image.get(str(image["id"]), []))
        if video is not None:
            (unusable if video.problem else videos).append(video)
    kept, taken = without_duplicates(videos, lambda video: str(video.frames[0]))
    left = len(content["images"]) - len(videos) - len(unusable)
    notes = [f"{left} photographs without an object are left out"] if left else []
    shown = path.relative_to(wanted.root) if wanted.root.is_dir() else path.name
    reason = f"instances in {shown}, photographs in {photographs}"
    return Recognised("coco", reason, "images", kept, unusable + taken, notes)


def _video(
    wanted: Wanted, path: Path, photographs: Path, image: dict[str, Any], objects: list[dict[str, Any]]
) -> SourceVideo | None:
    if not objects:
        return None
    where, faults = f"{path}:{image['id']}", _faults(image)
    if faults:
        problem = f"{where}: expected a name and a size in pixels, found {faults}"
        return SourceVideo(wanted.dataset, str(image["id"]), (), (), wanted.licence, problem)
    name = PurePosixPath(image["file_name"])
    file = photographs / name
    video_id = "-".join(part for part in name.with_suffix("").parts if part not in ("/", ".."))
    problem = "" if file.is_file() else f"{file}: no such photograph, although {path.name} lists it"
    if len(objects) > _MOST_OBJECTS:
        problem = f"{where}: expected at most {_MOST_OBJECTS} objects, found {len(objects)}"
    packed = zlib.compress(json.dumps([annotation["segmentation"] for annotation in objects]).encode())
    mask = Instances(file.stem, path, (int(image["height"]), int(image["width"])), packed, str(image["id"]))
    return SourceVideo(wanted.dataset, video_id, (file,), (mask,), wanted.licence, problem)


def _faults(image: dict[str, Any]) -> str:
    """What of an entry cannot be, such as `height null`; empty for a sound one."""
    name, sizes = image["file_name"], [(key, image[key]) for key in ("height", "width")]
    found = [] if isinstance(name, str) and PurePosixPath(name).name else [("file_name", name)]
    found += [(key, n) for key, n in sizes if not isinstance(n, int | float) or n < 1 or n % 1]
    return ", ".join(f"{key} {_shown(value)}" for key, value in found)


def _shown(value: Any) -> str:
    """The beginning of a value, as JSON has it."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _annotation_file(wanted: Wanted) -> Path | None:
    root = wanted.root
    if root.is_file():
        return root if root.suffix == ".json" else None
    paths = [path for place in _PLACES for path in sorted(root.glob(place)) if path.is_file()]
    found = [path for path in paths if _mentions_instances(path)]
    if wanted.split is not None:
        named = [p for p in found if p.stem.endswith(f"_{wanted.split}") or wanted.split in (p.stem, p.parent.name)]
        if not named and found:
            raise UserError(f"{root}: no split {wanted.split!r}; there are: {listed([p.stem for p in found])}")
        found = named
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise UserError(f"{root}: holds several sets of instances: {names}; choose one with --split or as --root")
    return found[0] if found else None


def _mentions_instances(path: Path) -> bool:
    """Whether a JSON may hold instances; a glance at its ends, for COCO's has half a gigabyte."""
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(1 << 16)
        file.seek(max(0, size - (1 << 16)))
        ends = head + file.read()
    named = "instances" in path.name or "coco" in path.name
    keys = sum(key in ends for key in (b'"images"', b'"annotations"', b'"segmentation"', b'"categories"'))
    return keys >= (1 if named else 3) and b'"videos"' not in ends


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        for name, keys in (("images", ("id", "file_name", "height", "width")), ("annotations", ("image_id",))):
            for entry in content[name]:
                for key in keys:
                    entry[key]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected COCO instances (images with id, file_name, height, width; annotations with image_id, "
            f"segmentation), found something else ({error!r})"
        ) from error
    return content


def _photographs(wanted: Wanted, path: Path, names: list[str]) -> Path:
    """The folder of the photographs: the one in which the first of them lies."""
    split = path.stem.removeprefix("instances_")
    root = wanted.root if wanted.root.is_dir() else path.parent
    bases = [root, path.parent, path.parent.parent]
    folders = [base / inside for base in bases for inside in (split, f"images/{split}", "images", f"{split}/data", "")]
    for folder in folders:
        if any((folder / name).is_file() for name in names[:20]):
            return folder
    raise UserError(
        f"{path}: none of its photographs ({listed(names)}) found in {', '.join(map(str, dict.fromkeys(folders)))}"
    )
