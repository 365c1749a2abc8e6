"""The data factory: builds a directory of shards in parallel on Ray Data.

A row of the Ray dataset is the *plan* of a shard; the task that receives it makes the videos, writes the file aside,
moves it into place and then, beside it, its part of the index. So files are complete or absent, nothing large passes
through Ray, and a build that died goes on with the files that are missing: those that are there are compared with the
hash in their index.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import pyarrow as pa

from vosforge.data.shards import describe_shard, finish, index_name, read_index, write_index, write_shard
from vosforge.data.streams import run_tasks
from vosforge.errors import UserError
from vosforge.s3 import abort_unfinished_uploads
from vosforge.storage import (
    check_space,
    check_writable,
    delete,
    download_file,
    exists,
    join,
    list_names,
    list_sizes,
    read_bytes,
    sha256,
    upload_file,
)

Item = TypeVar("Item")
_SMALLEST_DISK = 200_000_000
_QUIET_SECONDS = 2


def build(
    uri: str,
    kind: str,
    recipe: dict[str, Any],
    items: list[Item],
    make: Callable[[Item], pa.Table],
    per_file: int,
    workers: int,
    on_progress: Callable[[int], None] = lambda done: None,
    max_rejects: float = 0.1,
) -> dict[str, Any]:
    """Build shards of `items`, or finish a build that stopped.

    Args:
        uri: directory of the shards, local or `s3://`.
        kind: "images", "pseudo_video", "bl30k" or "videos".
        recipe: every parameter that the bytes depend on, JSON-serialisable.
        items: one a video, in the order of the shards; each serialisable and self-contained.
        make: one item's rows; a `UserError` rejects the item, with its reason in the manifest.
        per_file: videos a file.
        workers: parallel processes, one CPU each.
        on_progress: hears how many files are finished.
        max_rejects: largest share of rejected items; one is always allowed.

    Returns:
        The manifest.

    Raises:
        UserError: when there is nothing to build, the directory holds other shards or cannot be written, or too
            many items are rejected.
    """
    if not items:
        raise UserError(f"{uri}: nothing to build, the source holds no video")
    if per_file < 1 or workers < 1:
        raise UserError(f"expected at least one video a file and one worker, found {per_file} and {workers}")
    recipe = json.loads(json.dumps(recipe))
    finished = _finished(uri, recipe)
    if finished is not None and _whole(uri, finished):
        return finished
    # What a manifest says of its files holds, even where some of them are gone.
    known = {file["path"]: file["sha256"] for file in finished["files"]} if finished else {}
    check_writable(uri)
    check_space(uri, _SMALLEST_DISK)
    abort_unfinished_uploads(uri)
    digest = hashlib.sha256(json.dumps([kind, recipe, len(items), per_file], sort_keys=True).encode()).hexdigest()[:8]
    groups = [items[i : i + per_file] for i in range(0, len(items), per_file)]
    names = [f"part-{digest}-{i:05d}.parquet" for i in range(len(groups))]
    there = _own_files(uri, names)
    todo = [(name, group) for name, group in zip(names, groups, strict=True)]
    done, rejected = 0, []
    on_progress(done)
    with contextlib.closing(run_tasks(len(todo), partial(_write, uri, todo, make, there, known), workers)) as rows:
        for row in rows:
            done += 1
            on_progress(done)
            rejected += json.loads(row["rejected"])
            if _too_many(rejected, len(items), max_rejects):
                break
    if _too_many(rejected, len(items), max_rejects):
        _clear(uri)
        first = rejected[0]
        raise UserError(
            f"{uri}: {len(rejected)} of {len(items)} videos rejected, more than the allowed {max_rejects:.0%}, and "
            f"nothing kept; the first: {first['video']}: {first['reason']}"
        )
    _delete(uri, (".part-", ".index-"))
    return finish(uri, kind, recipe, names)


def _own_files(uri: str, names: list[str]) -> set[str]:
    """What lies in the directory, or a `UserError` where it holds files of another build."""
    there = set(list_names(uri))
    foreign = sorted(name for name in there if name.startswith("part-") and name not in names)
    if foreign:
        raise UserError(
            f"{uri}: holds files of another unfinished build ({foreign[0]}); delete them or choose another --out"
        )
    return there


def _delete(uri: str, beginnings: tuple[str, ...]) -> int:
    """Delete files by how their names begin; hidden ones are what killed tasks had begun. How many there were."""
    found = [name for name in list_names(uri) if name.startswith(beginnings)]
    for name in found:
        delete(join(uri, name))
    return len(found)


def _whole(uri: str, manifest: dict[str, Any]) -> bool:
    """Whether all files of a manifest are there with their sizes; datasets/check.py compares their hashes."""
    there = list_sizes(uri)
    return all(there.get(file["path"]) == file["bytes"] for file in (*manifest["files"], manifest["index"]))


def _too_many(rejected: list[dict[str, str]], items: int, most: float) -> bool:
    """Whether too much of the input is unusable. One bad video never is too much."""
    return len(rejected) > max(1, most * items) or len(rejected) == items


def _clear(uri: str) -> None:
    """Delete all files of a build; tasks that were under way when it stopped may still write for a moment."""
    quiet = 0
    while quiet < _QUIET_SECONDS:
        quiet = 0 if _delete(uri, ("part-", "index-", ".part-", ".index-")) else quiet + 1
        time.sleep(1)


def _finished(uri: str, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a directory that is built already; None when it is not.

    Raises:
        UserError: when it was built with another recipe.
    """
    path = join(uri, "manifest.json")
    if not exists(path):
        return None
    manifest = json.loads(read_bytes(path))
    differing = sorted(key for key in recipe | manifest["recipe"] if recipe.get(key) != manifest["recipe"].get(key))
    if differing:
        raise UserError(f"{uri}: built already with another {', '.join(differing)}; choose another --out or delete it")
    return manifest


def _write(
    uri: str,
    todo: list[tuple[str, list[Any]]],
    make: Callable[[Any], pa.Table],
    there: set[str],
    known: dict[str, str],
    number: int,
) -> dict[str, Any]:
    """Make and write one file of the plan, unless it is there and whole."""
    cv2.setNumThreads(1)
    name, items = todo[number]
    if name in there:
        kept = _kept(uri, name, index_name(name) in there, known.get(name))
        if kept is not None:
            return {"rejected": json.dumps(kept)}
    rejected: list[dict[str, str]] = []

    def tables() -> Iterator[pa.Table]:
        for item in items:
            try:
                yield make(item)
            except UserError as error:
                rejected.append({"video": str(getattr(item, "video_id", item)), "reason": str(error)})

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / name
        write_shard(tables(), rejected, local)
        upload_file(local, join(uri, name))
        write_index(describe_shard(local), join(uri, index_name(name)))
    return {"rejected": json.dumps(rejected)}


def _kept(uri: str, name: str, indexed: bool, known: str | None) -> list[dict[str, str]] | None:
    """The rejected inputs of a file that is there; None when nothing vouches for it, or it is not what was written."""
    index = join(uri, index_name(name))
    try:
        if not indexed:
            if known != sha256(join(uri, name)):
                return None
            with tempfile.TemporaryDirectory() as folder:
                write_index(describe_shard(download_file(join(uri, name), Path(folder) / name)), index)
        _, file, rejected = read_index(index)
    except (UserError, OSError, pa.ArrowException):
        return None
    return rejected if sha256(join(uri, name)) == file["sha256"] else None
