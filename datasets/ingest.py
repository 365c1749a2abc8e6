"""Turn a data set on disk into shards.

    python datasets/ingest.py --root photographs --out shards/photographs
    python datasets/ingest.py --root DAVIS --split train --out s3://bucket/davis-train
    python datasets/ingest.py --frames holiday.mp4 --masks holiday-masks --out shards/holiday

Single images with masks become shards of kind "images", BL30K of kind "bl30k", other videos of kind "videos".
docs/ingest.md lists the layouts that are recognised, and what is wrong with masks that are refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import cluster
from vosforge.data.factory import build
from vosforge.data.layouts import (
    Recognised,
    SourceVideo,
    check_md5,
    find_videos,
    mask_notes,
    pair_videos,
    tars_at,
)
from vosforge.errors import UserError
from vosforge.outputs import lasting
from vosforge.storage import join, write_bytes

# So many give files of some 100 MB, and work for several processes.
PER_FILE = {"images": 256, "bl30k": 16, "videos": 32}
MOST_LINES = 10


def main(
    out: str,
    root: Path | None = None,
    layout: str = "auto",
    split: str | None = None,
    frames: Path | None = None,
    masks: Path | None = None,
    dataset: str | None = None,
    licence: str = "",
    repair_masks: bool = False,
    md5: Path | None = None,
    max_rejects: float = 0.1,
    videos_per_file: int | None = None,
    workers: int = 2,
    dry_run: bool = False,
    verbose: bool = False,
) -> None:
    """Turn a data set on disk into shards.

    Args:
        out: Where the shards go: a folder or s3:// URI.
        root: The data set's folder; or a tar of BL30K, or a COCO JSON.
        layout: auto to recognise it; or davis, youtube, mose, bl30k, sav, folders, by-video, pair, films, static, coco.
        split: A list in ImageSets/, such as train; a split's folder; or the split of a COCO file. All videos when left
            out.
        frames: In place of --root: a folder of frames or a video file, or a folder of them.
        masks: With --frames: a folder of PNGs named as the frames, or a folder of such folders, named as the videos.
        dataset: Name of the data set in the shards; the folder's when left out.
        licence: Of the data; stored with every frame.
        repair_masks: Set pixels of anti-aliased masks to the nearest id, instead of refusing them.
        md5: File of "<md5>  <name>" lines to compare BL30K's tars with first.
        max_rejects: Largest share of unusable videos before the build stops; one is always allowed.
        videos_per_file: Videos in one Parquet file; 256 images, 16 of BL30K, else 32 when left out.
        workers: Parallel processes.
        dry_run: Say what is recognised and stop.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    out = lasting(out, "--out")
    source = recognised(root, frames, masks, layout, split, licence, dataset)
    describe(root or masks, source)
    if md5 is not None:
        compare_md5(root, md5)
    if dry_run:
        return
    cluster.connect(verbose)
    recipe = {
        "root": (root or masks).resolve().name,
        "layout": source.layout,
        "split": split,
        "dataset": dataset,
        "licence": licence,
        "repair_masks": repair_masks,
        "source": source.digest,
    }
    items = [replace(video, repair=repair_masks) for video in source.videos + source.unusable]
    per_file = videos_per_file or PER_FILE[source.kind]
    with console.Progress(-(-len(items) // max(1, per_file)), "ingest", "files") as progress:
        manifest = build(
            out, source.kind, recipe, items, SourceVideo.table, per_file, workers, progress.update, max_rejects
        )
    if "notes" not in manifest:
        manifest |= {"source_notes": source.notes, "notes": mask_notes(out)}
        write_bytes(join(out, "manifest.json"), json.dumps(manifest, indent=1).encode())
    print(f"{out}: {manifest['totals']}, {len(manifest['rejected'])} rejected")
    tell("note", manifest["notes"], "note")
    tell("rejected", manifest["rejected"], "reason")


def recognised(
    root: Path | None,
    frames: Path | None,
    masks: Path | None,
    layout: str,
    split: str | None,
    licence: str,
    dataset: str | None,
) -> Recognised:
    """The videos of a root, or of frames and masks."""
    if root is not None and frames is None and masks is None:
        return find_videos(root, layout, split, licence, dataset)
    if root is None and frames is not None and masks is not None:
        if layout not in ("auto", "pair") or split is not None:
            raise UserError("--frames and --masks go without --layout and --split")
        return pair_videos(frames, masks, dataset, licence)
    raise UserError("give either --root, or both --frames and --masks")


def describe(root: Path, source: Recognised) -> None:
    """Say what was recognised, and why."""
    print(f"{root}: layout {source.layout} ({source.reason}), {len(source.videos)} videos of kind {source.kind}")
    for note in source.notes:
        print(f"  {note}")


def compare_md5(root: Path | None, sums: Path) -> None:
    """Compare the tars of a root with their sums."""
    tars = tars_at(root) if root is not None else []
    if not tars:
        raise UserError(f"--md5: expected tars at --root to compare, found none at {root}")
    with console.Progress(sum(tar.stat().st_size for tar in tars), "md5", "bytes") as progress:
        unknown = check_md5(tars, sums, progress.update)
    print(f"md5: {len(tars) - len(unknown)} tars agree" + (f", no sum for {', '.join(unknown)}" if unknown else ""))


def tell(word: str, entries: list[dict[str, str]], key: str) -> None:
    """Print the first of many entries; the manifest has them all."""
    for entry in entries[:MOST_LINES]:
        print(f"{word} {entry['video']}: {entry[key]}")
    if len(entries) > MOST_LINES:
        print(f"... and {len(entries) - MOST_LINES} more in manifest.json")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
