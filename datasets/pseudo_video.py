"""Build pseudo-video: short clips in which static images and objects cut from them move.

python datasets/pseudo_video.py --data shards/photographs --out shards/pseudo --clips-per-image 20
python datasets/pseudo_video.py --data shards/photographs --out shards/stcn --preset stcn --thin-plate 0.5
python datasets/pseudo_video.py --images photos --masks masks --out shards/pseudo
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import cluster
from vosforge.data.factory import build
from vosforge.data.pseudo_presets import preset as preset_of
from vosforge.data.stills import open_stills, pseudo_video_table
from vosforge.errors import UserError
from vosforge.outputs import lasting


def main(
    out: str,
    data: str | None = None,
    images: Path | None = None,
    masks: Path | None = None,
    preset: str = "steady",
    clips_per_image: int = 1,
    frames: int | None = None,
    size: int | None = None,
    objects: int | None = None,
    seed: int = 0,
    rotation: float | None = None,
    shear: float | None = None,
    flip: float | None = None,
    drift: float | None = None,
    paste: int | None = None,
    paste_drift: float | None = None,
    thin_plate: float | None = None,
    merge: float | None = None,
    grey: float | None = None,
    clips_per_file: int = 64,
    max_rejects: float = 0.1,
    workers: int = 2,
    verbose: bool = False,
) -> None:
    """Build pseudo-video from images with object masks.

    Args:
        out: Where the shards go: a folder or s3:// URI.
        data: Shards of images; or give --images and --masks.
        images: Folder of images.
        masks: Folder of mask PNGs with the same names.
        preset: steady, stcn, stm-coco, aot, emn, skn or qpm: how pictures move. What follows changes single values.
        clips_per_image: Clips made from each image.
        frames: Frames of a clip.
        size: Height and width of a clip in pixels.
        objects: Most objects of a clip.
        seed: The same seed gives the same bytes, with any number of workers.
        rotation: Largest turn in degrees, over the whole clip (steady) or of every frame.
        shear: Largest shear in degrees.
        flip: Probability of mirroring the whole clip.
        drift: Largest motion of the picture from frame to frame, as a share of its size (steady alone).
        paste: Most objects cut from other images and pasted in.
        paste_drift: Largest motion of those.
        thin_plate: Probability that a thin-plate spline bends a frame (not steady).
        merge: Probability that all objects of another image lie over the picture (not steady).
        grey: Probability that a clip is grey (not steady).
        clips_per_file: Clips in one Parquet file.
        max_rejects: Largest share of unusable pictures, and of clips without an object; one is always allowed.
        workers: Parallel processes.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    if clips_per_image < 1:
        raise UserError(f"--clips-per-image: expected at least 1, found {clips_per_image}")
    if not 0 <= max_rejects <= 1:
        raise UserError(f"--max-rejects: expected a share from 0 to 1, found {max_rejects}")
    out = lasting(out, "--out")
    recipe = preset_of(
        preset,
        frames=frames,
        size=None if size is None else (size, size),
        objects=objects,
        rotation=rotation,
        shear=shear,
        flip=flip,
        drift=drift,
        paste=paste,
        paste_drift=paste_drift,
        thin_plate=thin_plate,
        merge=merge,
        grey=grey,
    )
    stills = open_stills(data, images, masks, max_rejects)
    if stills.skipped:
        print(f"{images}: {len(stills.skipped)} of {len(stills) + len(stills.skipped)} pictures skipped")
    for reason in stills.skipped[:10]:
        print(f"  {reason}")
    items = stills.items(clips_per_image, seed)
    print(f"{len(stills)} images, {len(items)} clips of {recipe.frames} frames at {recipe.size[0]} px")
    cluster.connect(verbose)
    parameters = {**asdict(recipe), "seed": seed, "clips_per_image": clips_per_image, "source": stills.digest}
    with console.Progress(-(-len(items) // max(1, clips_per_file)), "pseudo-video", "files") as progress:
        manifest = build(
            out,
            "pseudo_video",
            parameters,
            items,
            partial(pseudo_video_table, stills, recipe),
            clips_per_file,
            workers,
            progress.update,
            max_rejects,
        )
    print(f"{out}: {manifest['totals']}, {len(manifest['rejected'])} rejected")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
