from __future__ import annotations

import hashlib
import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vosforge.clip import Clip
from vosforge.data.factory import build
from vosforge.data.shards import ShardSet, clip_table, describe_shard, index_name, write_index
from vosforge.errors import UserError


def make(broken: tuple[int, ...], item: int) -> pa.Table:
    if item in broken:
        raise UserError(f"video {item}: broken on purpose")
    rng = np.random.default_rng(item)
    masks = np.zeros((2, 24, 32), np.uint8)
    masks[:, 4:20, 4 : 20 + item % 8] = 1
    return clip_table(Clip(f"v{item:03d}", rng.integers(0, 255, (2, 24, 32, 3), dtype=np.uint8), masks), "made")


SOUND = partial(make, ())


def make_and_die_once(marker: Path, item: int) -> pa.Table:
    if item == 5 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return make((), item)


def built(uri: Path, workers: int = 2, work=SOUND, items: int = 8, **settings) -> dict:
    return build(str(uri), "videos", {"made": "by a test"}, list(range(items)), work, 2, workers, **settings)


def hashes(uri: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in uri.iterdir()}


def test_same_bytes_with_any_number_of_workers(tmp_path):
    built(tmp_path / "one", workers=1)
    built(tmp_path / "three", workers=3)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "three")
    assert len(ShardSet(str(tmp_path / "one")).videos) == 8


def test_worker_killed_in_the_middle_changes_nothing(tmp_path):
    built(tmp_path / "straight")
    built(tmp_path / "killed", work=partial(make_and_die_once, tmp_path / "marker"))
    assert (tmp_path / "marker").exists()
    assert hashes(tmp_path / "straight") == hashes(tmp_path / "killed")


def stopped(folder: Path) -> list[Path]:
    """Makes of a finished build one that stopped before its manifest was written; its files."""
    parts = sorted(folder.glob("part-*"))
    for part in parts:
        write_index(describe_shard(part), str(folder / index_name(part.name)))
    (folder / "manifest.json").unlink()
    return parts


def test_build_that_stopped_makes_only_what_is_missing(tmp_path):
    built(tmp_path)
    before = hashes(tmp_path)
    kept = stopped(tmp_path)
    kept[1].unlink()
    (tmp_path / ".part-1.77.aside").write_bytes(b"half")
    written = kept[0].stat().st_mtime_ns
    built(tmp_path)
    assert hashes(tmp_path) == before
    assert kept[0].stat().st_mtime_ns == written


@pytest.mark.parametrize("indexed", [True, False])
def test_file_whose_bytes_changed_is_made_again(tmp_path, indexed):
    built(tmp_path)
    before = hashes(tmp_path)
    part = stopped(tmp_path)[2]
    data = bytearray(part.read_bytes())
    data[500] ^= 255
    part.write_bytes(data)
    if not indexed:
        (tmp_path / index_name(part.name)).unlink()
    built(tmp_path)
    assert hashes(tmp_path) == before


def test_finished_build_whose_files_were_lost_is_completed(tmp_path):
    manifest = built(tmp_path)
    before = hashes(tmp_path)
    kept = sorted(tmp_path.glob("part-*"))
    written = kept[0].stat().st_mtime_ns
    kept[1].unlink()
    kept[2].write_bytes(kept[2].read_bytes()[:-100])
    (tmp_path / "videos.parquet").unlink()
    assert built(tmp_path) == manifest
    assert hashes(tmp_path) == before
    assert kept[0].stat().st_mtime_ns == written


def test_finished_build_is_reused_and_another_recipe_refused(tmp_path):
    first = built(tmp_path)
    assert built(tmp_path, work=None) == first
    with pytest.raises(UserError, match="built already with another made"):
        build(str(tmp_path), "videos", {"made": "otherwise"}, [1], SOUND, 2, 1)


def test_broken_videos_are_skipped_counted_and_listed(tmp_path):
    manifest = built(tmp_path, work=partial(make, (3,)), max_rejects=0.2)
    assert manifest["totals"]["videos"] == 7
    assert manifest["rejected"] == [{"video": "3", "reason": "video 3: broken on purpose"}]


def test_too_many_broken_videos_stop_the_build(tmp_path):
    told = r"2 of 8 videos rejected, more than the allowed 20%, and nothing kept; the first: 3: video 3"
    with pytest.raises(UserError, match=told):
        built(tmp_path, work=partial(make, (3, 6)), max_rejects=0.2)
    assert not list(tmp_path.iterdir())


def test_files_of_another_unfinished_build_are_refused(tmp_path):
    built(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="files of another unfinished build"):
        built(tmp_path, items=6)


def test_progress_counts_files(tmp_path):
    heard: list[int] = []
    built(tmp_path, on_progress=heard.append)
    assert heard == [0, 1, 2, 3, 4]


def test_nothing_to_build_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to build"):
        built(tmp_path, items=0)


def test_manifest_tells_recipe_files_and_totals(tmp_path):
    built(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["recipe"] == {"made": "by a test"}
    assert [file["rows"] for file in manifest["files"]] == [4, 4, 4, 4]
    assert manifest["files"][0]["sha256"] == hashes(tmp_path)[manifest["files"][0]["path"]]


def test_build_goes_on_once_the_broken_input_is_mended(tmp_path):
    with pytest.raises(UserError, match="and nothing kept"):
        built(tmp_path, work=partial(make, (3, 6)), max_rejects=0.2)
    assert built(tmp_path)["totals"]["videos"] == 8


def test_one_broken_video_never_stops_a_build(tmp_path):
    assert built(tmp_path, work=partial(make, (1,)), items=3, max_rejects=0.0)["totals"]["videos"] == 2
