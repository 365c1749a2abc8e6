"""Which layout a folder has."""

from __future__ import annotations

from pathlib import Path

from vosforge.data.layouts.coco import find_coco
from vosforge.data.layouts.folders import FOLDER_LAYOUTS, find_folders
from vosforge.data.layouts.listing import Wanted
from vosforge.data.layouts.pairs import find_pairs
from vosforge.data.layouts.stills import find_stills
from vosforge.data.layouts.tars import find_tars
from vosforge.data.layouts.video import Recognised
from vosforge.errors import UserError

LAYOUTS = ("auto", *FOLDER_LAYOUTS, "by-video", "pair", "films", "static", "coco")
# The first that recognises a folder has it: those with a mark of their own before those that go by names and sizes.
_FINDERS = (find_coco, find_folders, find_tars, find_pairs, find_stills)

_EXPECTED = (
    "JPEGImages/[480p/]<video>/ with Annotations/ beside it (davis, youtube, mose, bl30k, sav), images/ and masks/ "
    "with the same file names or images beside their masks (static), frames/ and masks/ of one video (pair), or COCO "
    "instances (coco)"
)


def find_videos(
    root: Path, layout: str = "auto", split: str | None = None, licence: str = "", dataset: str | None = None
) -> Recognised:
    """List the videos under a folder.

    Args:
        root: the folder; or a tar of BL30K, or a COCO JSON.
        layout: one of `LAYOUTS`, or "auto"; docs/ingest.md describes them.
        split: a list in `ImageSets/[2017|2016/]<split>.txt`, the folder of a split, or a COCO file's split; all videos
            when left out.
        licence: stored with every frame.
        dataset: name in the shards; the folder's when left out.

    Raises:
        UserError: when the folder is missing, is none of the layouts, or has no such split.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; valid: {', '.join(LAYOUTS)}")
    if not root.exists():
        raise UserError(f"{root}: no such folder; expected a data set's folder")
    if root.is_file() and root.suffix not in (".tar", ".json"):
        raise UserError(f"{root}: expected a folder, a .tar of BL30K or a .json of COCO, found another file")
    wanted = Wanted(root, layout, split, licence, dataset or (root.stem if root.is_file() else root.resolve().name))
    for find in _FINDERS:
        found = find(wanted)
        if found is not None:
            return found
    tried = "" if layout == "auto" else f" as {layout}"
    raise UserError(
        f"{root}: not recognised{tried}; expected {_EXPECTED}; or name the folders with --frames and --masks"
    )
