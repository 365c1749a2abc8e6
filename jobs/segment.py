"""Segment a video, or a folder of videos, from first masks.

python jobs/segment.py --video frames/ --mask first.png --out masks --overlay
python jobs/segment.py --model models:/demo@champion --video frames/ --mask first.png --out masks
python jobs/segment.py --model runs/stm-nano/network.safetensors --video clip.mp4 --mask first.png --out masks
python jobs/segment.py --model runs/stm-nano/network.safetensors --video DAVIS/JPEGImages/480p \
    --mask DAVIS/Annotations/480p --out masks --workers 8
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import torch
import tyro

from vosforge import cluster
from vosforge.data.streams import run_workers
from vosforge.data.video_files import open_video
from vosforge.errors import UserError
from vosforge.outputs import lasting_file
from vosforge.propagation import Segmenter
from vosforge.propagation.files import VideoFiles, check_empty, find_videos, segment_files
from vosforge.propagation.model import BUNDLED, Model, model_digest
from vosforge.registry import load_model, version_uri
from vosforge.settings import AS_SAVED, Settings
from vosforge.storage import check_space, check_writable, claim, local_path, write_bytes
from vosforge.tracking import default_store

CLAIM = "settings.json"


@dataclass
class Options:
    """Segment a video, or a folder of videos, from first masks."""

    video: Path
    """Video file or folder of frames; or a folder of such files and folders, one a video."""
    mask: Path
    """PNG with the objects' ids in the first frame, or a folder of PNGs named as the frames where objects appear
    first; for a folder of videos, a folder of <video>.png and <video>/<frame>.png."""
    out: Path
    """New folder for one palette PNG a frame, named as the frames; for a folder of videos, of one such folder a
    video, to which the same command adds."""
    model: str = str(BUNDLED)
    """Network file, model folder or models:/name@alias; by default a small network that comes with vosforge."""
    overlay: bool = False
    """Write overlay.mp4 and sheet.png there too."""
    short_side: int | None = None
    """Pixels to which frames are reduced before they are segmented; by default as the model says, else not at all."""
    fps: float = 10.0
    """Frames a second of the overlay video."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = AS_SAVED
    device: str = "cpu"
    """Where networks run, cpu or cuda."""
    workers: int = 2
    """Videos at a time of a folder of videos, one CPU each, on cuda one GPU too."""
    max_bad: float = 0.1
    """Largest share of a folder's videos that may be unusable; one is always allowed."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def main(options: Options) -> None:
    """Segment what was given; a folder of videos in parallel, going on where an earlier run stopped."""
    console.verbosity(options.verbose)
    check(options)
    videos = find_videos(options.video, options.mask)
    if videos is None or not (options.out / CLAIM).exists():
        check_empty(options.out)
    check_writable(options.out if options.out.exists() else options.out.parent)
    check_space(options.out, 100_000_000)
    if videos is None:
        segment_one(options)
    else:
        segment_many(options, videos)


def check(options: Options) -> None:
    """Refuse numbers out of range, and a folder for masks that has to do with what is segmented."""
    if not options.fps > 0:
        raise UserError(f"--fps: expected more than 0, found {options.fps}")
    if options.workers < 1:
        raise UserError(f"--workers: expected at least 1, found {options.workers}")
    if not 0 <= options.max_bad <= 1:
        raise UserError(f"--max-bad: expected a share from 0 to 1, found {options.max_bad}")
    if options.short_side is not None and options.short_side < 16:
        raise UserError(f"--short-side: expected at least 16 pixels, found {options.short_side}")
    out = lasting_file(options.out, "--out").resolve()
    for flag, given in (("--video", options.video), ("--mask", options.mask)):
        # Masks bear the names of frames, so they would take the place of what is there.
        if out == (there := given.resolve()) or out in there.parents or there in out.parents:
            how = "is" if out == there else "contains" if out in there.parents else "lies in"
            raise UserError(f"--out: {options.out} {how} {flag} {given}; choose another")


def segment_one(options: Options) -> None:
    """One video, frame by frame."""
    files = VideoFiles(options.video.stem, options.video, options.mask)
    model = load_model(options.model, default_store())
    segmenter = _start(model, options)
    with console.Progress(len(open_video(options.video)), "segment", "frames") as progress:
        frames = segment_files(segmenter, files, options.out, *_look(model, options), progress.update)
    print(f"{frames} masks of objects {segmenter.objects} in {options.out}")


def segment_many(options: Options, videos: list[VideoFiles]) -> None:
    """All videos that are not segmented yet, on Ray Data."""
    todo = [files for files in videos if not (options.out / files.name).exists()]
    if len(todo) < len(videos):
        print(f"{len(videos) - len(todo)} of {len(videos)} videos are segmented already")
    if todo:
        _start(load_model(options.model, default_store()), options)
    claim(options.out / CLAIM, _started_with(options), f"{options.out}")
    if todo:
        cluster.connect(options.verbose)
        console.heed_sigterm()
    skipped: dict[str, str] = {}
    lengths = [_length(files.video) for files in todo]
    done = 0
    with console.Progress(sum(lengths), "segment", "frames") as progress:
        workers, gpus = min(options.workers, max(1, len(todo))), float(options.device != "cpu")
        rows = run_workers(len(todo), _worker(options, todo), workers, ordered=False, gpus=gpus) if todo else ()
        for row in rows:
            files = todo[row["number"]]
            done += lengths[row["number"]]
            if row["reason"]:
                skipped[files.name] = row["reason"]
                progress.say(f"skipped {files.name}: {row['reason']}")
            progress.update(done)
            _check_share(skipped, len(videos), options.max_bad)
    report = {"videos": len(videos) - len(skipped), "skipped": skipped}
    write_bytes(options.out / "segment.json", json.dumps(report, indent=1).encode())
    print(f"{len(videos) - len(skipped)} of {len(videos)} videos in {options.out}, {len(skipped)} skipped")


def _started_with(options: Options) -> dict[str, Any]:
    """All that says what a video's masks look like: of one folder's videos it has to be the same."""
    model = options.model
    if not model.startswith(("models:/", "runs:/")):
        model = f"sha256:{model_digest(local_path(model))}"
    elif "@" in model:
        model = version_uri(model, default_store())
    given = {"video": str(options.video.resolve()), "mask": str(options.mask.resolve())}
    looks = {"overlay": options.overlay, "short_side": options.short_side}
    return {"model": model, **given, **looks, **asdict(options.settings)}


def _check_share(skipped: dict[str, str], videos: int, most: float) -> None:
    if len(skipped) > max(1, most * videos) or len(skipped) == videos:
        name, reason = next(iter(skipped.items()))
        raise UserError(
            f"{len(skipped)} of {videos} videos cannot be used, past --max-bad {most}; the first: {name}: {reason}"
        )


def _worker(options: Options, todo: list[VideoFiles]) -> Callable[[], Callable[[int], dict]]:
    """What makes a worker's function in its process."""
    store = default_store()
    options = replace(options, out=options.out.absolute())
    todo = [VideoFiles(files.name, files.video.absolute(), files.mask.absolute()) for files in todo]

    def make_work() -> Callable[[int], dict]:
        torch.set_num_threads(1)
        model = load_model(options.model, store)

        def work(number: int) -> dict:
            files, reason = todo[number], ""
            try:
                segment_files(_start(model, options), files, options.out / files.name, *_look(model, options))
            except UserError as error:
                reason = str(error)
            return {"number": number, "reason": reason}

        return work

    return make_work


def _start(model: Model, options: Options) -> Segmenter:
    return model.start(options.device, options.settings)


def _look(model: Model, options: Options) -> tuple[bool, int | None, float]:
    return options.overlay, options.short_side or model.short_side, options.fps


def _length(video: Path) -> int:
    """Frames of a video; 1 for one that cannot be opened, which its worker reports."""
    try:
        return len(open_video(video))
    except (UserError, OSError):
        return 1


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)))
