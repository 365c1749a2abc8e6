"""Turn a data set on disk into shards.

    python datasets/ingest.py --root photographs --out shards/photographs
    python datasets/ingest.py --root DAVIS --split train --out s3://bucket/davis-train

A set of single images with masks becomes shards of kind "images", a set of videos shards of kind "videos".
"""

from __future__ import annotations

from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import cluster
from vosforge.data.factory import build
from vosforge.data.layouts import SourceVideo, find_videos


def main(
    root: Path,
    out: str,
    layout: str = "auto",
    split: str | None = None,
    licence: str = "",
    max_rejects: float = 0.1,
    videos_per_file: int = 64,
    workers: int = 2,
    verbose: bool = False,
) -> None:
    """Turn a data set on disk into shards.

    Args:
        root: The data set's folder.
        out: Where the shards go: a folder or s3:// URI.
        layout: davis, static, or auto to recognise it.
        split: A list in ImageSets/, such as train; all videos when left out.
        licence: Of the data; stored with every frame.
        max_rejects: Largest share of unreadable videos before the build stops.
        videos_per_file: Videos in one Parquet file.
        workers: Parallel processes.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    out = cluster.lasting(out, "--out")
    source = find_videos(root, layout, split, licence)
    print(f"{root}: layout {source.layout} ({source.reason}), {len(source.videos)} videos of kind {source.kind}")
    cluster.connect(verbose)
    recipe = {"root": root.name, "layout": source.layout, "split": split, "licence": licence, "source": source.digest}
    files = -(-len(source.videos) // max(1, videos_per_file))
    with console.Progress(files, "ingest", "files") as progress:
        manifest = build(
            out,
            source.kind,
            recipe,
            source.videos,
            SourceVideo.table,
            videos_per_file,
            workers,
            progress.update,
            max_rejects,
        )
    print(f"{out}: {manifest['totals']}, {len(manifest['rejected'])} rejected")
    for entry in manifest["rejected"]:
        print(f"rejected {entry['video']}: {entry['reason']}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
