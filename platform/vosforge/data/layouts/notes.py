"""What ingest noted of single videos, read back out of its shards."""

from __future__ import annotations

from collections import defaultdict

import pyarrow.parquet as pq

from vosforge.data.shards import ShardSet
from vosforge.storage import filesystem, join

SEPARATOR = "; "
"""Between the frames' folder and the notes in the column `source`."""


def mask_notes(uri: str) -> list[dict[str, str]]:
    """`{"video", "note"}` for every note on a video of finished shards, in their order.

    Reads one short column.
    """
    by_file = defaultdict(list)
    for video in ShardSet(uri).videos:
        by_file[video.file].append(video)
    found: list[dict[str, str]] = []
    for name, videos in by_file.items():
        fs, path = filesystem(join(uri, name))
        with pq.ParquetFile(path, filesystem=fs) as file:
            sources = file.read(columns=["source"]).column("source").take([video.first_row for video in videos])
        for video, source in zip(videos, sources.to_pylist(), strict=True):
            found += [{"video": video.video_id, "note": note} for note in source.split(SEPARATOR)[1:]]
    return found
