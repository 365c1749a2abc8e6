"""Layouts: how data sets lie on disk, recognised and listed as videos to ingest."""

from vosforge.data.layouts.notes import mask_notes
from vosforge.data.layouts.pairs import pair_videos
from vosforge.data.layouts.recognising import LAYOUTS, find_videos
from vosforge.data.layouts.stills import static_videos
from vosforge.data.layouts.tars import check_md5, tars_at
from vosforge.data.layouts.video import Recognised, SourceVideo

__all__ = [
    "LAYOUTS",
    "Recognised",
    "SourceVideo",
    "check_md5",
    "find_videos",
    "mask_notes",
    "pair_videos",
    "static_videos",
    "tars_at",
]
