"""Shards: Parquet files of videos, one row a frame, with an index beside them and a manifest.

A directory of shards holds `part-*.parquet`, `videos.parquet` (one row a video, enough to choose clips without
decoding anything) and `manifest.json`, written last: a directory without it is unfinished.
"""

from vosforge.data.shards.reading import ShardSet
from vosforge.data.shards.schema import EXTRAS, INDEX_SCHEMA, SCHEMA, SCHEMA_VERSION, Video
from vosforge.data.shards.writing import (
    clip_table,
    describe_shard,
    finish,
    index_name,
    read_index,
    write_index,
    write_shard,
)

__all__ = [
    "EXTRAS",
    "INDEX_SCHEMA",
    "SCHEMA",
    "SCHEMA_VERSION",
    "ShardSet",
    "Video",
    "clip_table",
    "describe_shard",
    "finish",
    "index_name",
    "read_index",
    "write_index",
    "write_shard",
]
