from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vosforge.clip import Clip
from vosforge.data.shards import ShardSet, clip_table, finish, write_shard
from vosforge.storage import join, upload_file

# Small networks do not gain from threads, and on a busy machine the threads wait for each other many times longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def build_shards() -> Callable[..., ShardSet]:
    """Writes clips to a local folder or URI as one finished shard file and opens it."""

    def build(uri: object, clips: Sequence[Clip], kind: str = "videos", rejected: Sequence[dict] = ()) -> ShardSet:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "part-00000.parquet"
            write_shard([clip_table(clip, "tiny") for clip in clips], list(rejected), local)
            upload_file(local, join(uri, local.name))
        finish(str(uri), kind, {"made": "by a test"}, [local.name])
        return ShardSet(str(uri))

    return build
