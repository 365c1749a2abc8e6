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
from vosforge.data.image_files import object_statistics
from vosforge.data.shards import ShardSet, Video
from vosforge.errors import UserError
from vosforge.outputs import lasting_file
from vosforge.storage import join, sha256

# Values of a statistic that are printed.
_VALUES = 12


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
    for label, counted in statistics(videos).items():
        print(f"  {label}: {counted}")
    for entry in shards.manifest["rejected"]:
        print(f"  rejected {entry['video']}: {entry['reason']}")
    if sheet is not None:
        chosen = [videos[int(i)] for i in np.linspace(0, len(videos) - 1, min(rows, len(videos)))]
        pictures.write_png(
            lasting_file(sheet, "--sheet"), pictures.contact_sheet([_row(shards, video, columns) for video in chosen])
        )
        print(f"  {sheet}")
    if verify:
        _verify(uri, shards)


def statistics(videos: list[Video]) -> dict[str, str]:
    """What a person asks first, from the index alone."""
    per_frame: Counter[int] = Counter()
    for video in videos:
        per_frame.update((video.areas[video.annotated] > 0).sum(axis=1).tolist())
    told = {
        "objects a video": Counter(len(video.objects) for video in videos),
        "objects a frame": per_frame,
        "sizes": Counter(f"{video.size[0]}x{video.size[1]}" for video in videos),
        "licences": Counter(video.licence or "not stated" for video in videos),
    }
    return {label: _counted(counts) for label, counts in told.items()}


def _counted(counts: Counter) -> str:
    """The most frequent values; whole numbers in their order."""
    most = counts.most_common(_VALUES)
    numbers = all(isinstance(value, int) for value, _ in most)
    listed = ", ".join(f"{value} ({count:,})" for value, count in (sorted(most) if numbers else most))
    return listed + (f", and {len(counts) - _VALUES} more" if len(counts) > _VALUES else "")


def _row(shards: ShardSet, video: Video, columns: int) -> tuple[str, list[np.ndarray]]:
    frames = np.linspace(0, video.frames - 1, min(columns, video.frames)).astype(int)
    clip = shards.read(video, [int(t) for t in frames])
    tinted = [pictures.overlay(frame, mask) for frame, mask in zip(clip.frames, clip.masks, strict=True)]
    return f"{video.dataset} {video.video_id}: {video.frames} frames, objects {video.objects.tolist()}", tinted


def _verify(uri: str, shards: ShardSet) -> None:
    for file in (shards.manifest["index"], *shards.manifest["files"]):
        found = sha256(join(uri, file["path"]))
        if found != file["sha256"]:
            raise UserError(
                f"{join(uri, file['path'])}: expected sha256 {file['sha256'][:16]}, found {found[:16]}; "
                "delete that file and give the same build command again"
            )
    with console.Progress(len(shards.videos), "verify", "videos") as progress:
        for done, video in enumerate(shards.videos, 1):
            _check_index(shards, video)
            progress.update(done)
    print("  every hash agrees, every row decodes, and the index tells what the masks show")


def _check_index(shards: ShardSet, video: Video) -> None:
    """Decode a video and compare areas and boxes with its masks."""
    clip = shards.read(video)
    for t, mask in enumerate(clip.masks):
        ids, areas, boxes = object_statistics(mask)
        seen = {i: (area, boxes[4 * n : 4 * n + 4]) for n, (i, area) in enumerate(zip(ids, areas, strict=True))}
        for k, i in enumerate(video.objects.tolist()):
            told = int(video.areas[t, k]), video.boxes[t, k].tolist()
            found = seen.get(i, (0, [0, 0, 0, 0]))
            if told != (found[0], list(found[1])):
                raise UserError(
                    f"{shards.uri}:{video.video_id}/{clip.frame_ids[t]}: the index says area and box {told} of object "
                    f"{i}, its mask {found}; build the set again"
                )


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main), resumes=False)
