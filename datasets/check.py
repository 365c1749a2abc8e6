"""Look into shards: counts, sizes, a sheet of pictures; with --verify every hash and every row.

python datasets/check.py shards/pseudo --sheet sheet.png --verify
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import numpy as np
import tyro

from vosforge import pictures
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.storage import join, sha256


def main(
    uri: tyro.conf.Positional[str],
    sheet: Path | None = None,
    rows: int = 8,
    columns: int = 8,
    verify: bool = False,
    verbose: bool = False,
) -> None:
    """Look into shards.

    Args:
        uri: Folder or s3:// URI of the shards.
        sheet: Write a contact sheet of some videos to this PNG.
        rows: Videos on the sheet.
        columns: Frames of each.
        verify: Compare every file with its hash and decode every row.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    shards = ShardSet(uri)
    totals, videos = shards.manifest["totals"], shards.videos
    print(f"{uri}: kind {shards.kind}, {shards.manifest['generator']}, digest {shards.digest[:16]}")
    print("  " + ", ".join(f"{totals[name]:,} {name}" for name in ("videos", "frames", "objects", "bytes")))
    print(f"  objects a video: {dict(sorted(Counter(len(video.objects) for video in videos).items()))}")
    print(f"  sizes: {dict(Counter(f'{v.size[0]}x{v.size[1]}' for v in videos).most_common(5))}")
    for entry in shards.manifest["rejected"]:
        print(f"  rejected {entry['video']}: {entry['reason']}")
    if sheet is not None:
        chosen = [videos[int(i)] for i in np.linspace(0, len(videos) - 1, min(rows, len(videos)))]
        pictures.write_png(sheet, pictures.contact_sheet([_row(shards, video, columns) for video in chosen]))
        print(f"  {sheet}")
    if verify:
        _verify(uri, shards)


def _row(shards: ShardSet, video, columns: int) -> tuple[str, list[np.ndarray]]:
    frames = np.linspace(0, video.frames - 1, min(columns, video.frames)).astype(int)
    clip = shards.read(video, [int(t) for t in frames])
    tinted = [pictures.overlay(frame, mask) for frame, mask in zip(clip.frames, clip.masks, strict=True)]
    return f"{video.dataset} {video.video_id}: {video.frames} frames, objects {video.objects.tolist()}", tinted


def _verify(uri: str, shards: ShardSet) -> None:
    for file in shards.manifest["files"]:
        found = sha256(join(uri, file["path"]))
        if found != file["sha256"]:
            raise UserError(f"{join(uri, file['path'])}: expected sha256 {file['sha256'][:16]}, found {found[:16]}")
    with console.Progress(len(shards.videos), "verify", "videos") as progress:
        for done, video in enumerate(shards.videos, 1):
            shards.read(video)
            progress.update(done)
    print("  every hash agrees and every row decodes")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), resumes=False)
