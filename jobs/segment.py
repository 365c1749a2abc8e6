"""Segment a video from its first mask.

python jobs/segment.py --model models:/demo@champion --video frames/ --mask first.png --out masks --overlay
python jobs/segment.py --model runs/stm-nano/network.safetensors --video clip.mp4 --mask first.png --out masks
"""

from __future__ import annotations

from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import pictures
from vosforge.data.image_files import decode_mask, encode_mask
from vosforge.data.video_files import open_video
from vosforge.errors import UserError
from vosforge.propagation import segment_frame
from vosforge.registry import load_model
from vosforge.storage import check_space, check_writable, write_bytes
from vosforge.tracking import default_store

_SHEET_PICTURES = 8


def main(
    model: str,
    video: Path,
    mask: Path,
    out: Path,
    overlay: bool = False,
    short_side: int | None = None,
    fps: float = 10.0,
    device: str = "cpu",
    verbose: bool = False,
) -> None:
    """Segment a video from its first mask.

    Args:
        model: Network file, model folder or models:/name@alias.
        video: Video file or folder of frames.
        mask: PNG with the objects' ids in the first frame.
        out: Folder for one palette PNG a frame, named as the frames.
        overlay: Write overlay.mp4 and sheet.png there too.
        short_side: Pixels to which frames are reduced before they are segmented.
        fps: Frames a second of the overlay video.
        device: Where networks run, cpu or cuda.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    if fps <= 0:
        raise UserError(f"--fps must be positive, found {fps}")
    if not mask.is_file():
        raise UserError(f"{mask}: no such mask file")
    source = open_video(video)
    check_writable(out)
    check_space(out, 100_000_000)
    segmenter = load_model(model, default_store()).start(device)
    given = decode_mask(mask.read_bytes(), str(mask))
    if not given.any():
        raise UserError(f"{mask}: the mask is empty; mark at least one object")
    tinted = []
    with console.Progress(len(source), "segment", "frames") as progress:
        for t, (name, frame) in enumerate(source):
            if t == 0 and given.shape != frame.shape[:2]:
                raise UserError(f"{mask}: expected the video's size {frame.shape[:2]}, found {given.shape}")
            labels = segment_frame(segmenter, frame, given if t == 0 else None, short_side)
            write_bytes(out / f"{name}.png", encode_mask(labels))
            if overlay:
                tinted.append(pictures.overlay(frame, labels))
            progress.update(t + 1)
    if overlay:
        pictures.write_video(out / "overlay.mp4", tinted, fps)
        chosen = [tinted[round(i * (len(tinted) - 1) / (_SHEET_PICTURES - 1))] for i in range(_SHEET_PICTURES)]
        pictures.write_png(out / "sheet.png", pictures.contact_sheet([(f"{video.name}: {model}", chosen)], height=160))
    print(f"{len(source)} masks of objects {segmenter.objects} in {out}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
