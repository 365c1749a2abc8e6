"""Render videos of moving objects with exact masks, in the manner of BL30K, on Ray Data.

python datasets/bl30k.py --videos 200 --out shards/bl30k --frames 160
python datasets/bl30k.py --videos 48 --out shards/small --frames 8 --height 128 --width 128 --textures photos/
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
from vosforge.data.rendered import SceneItem, read_textures, rendered_table
from vosforge.data.rendering import SceneRecipe


def main(
    videos: int,
    out: str,
    frames: int = 160,
    height: int = 512,
    width: int = 768,
    seed: int = 0,
    speed: float = 1.0,
    textures: Path | None = None,
    quality: int = 98,
    videos_per_file: int = 32,
    workers: int = 2,
    verbose: bool = False,
) -> None:
    """Render videos of moving objects with exact masks.

    Args:
        videos: How many.
        out: Where the shards go: a folder or s3:// URI.
        frames: Frames of a video.
        height: In pixels.
        width: In pixels.
        seed: The same seed gives the same pixels, with any number of workers.
        speed: Of objects and camera; 1 suits 160 frames, short clips want more.
        textures: Folder of pictures that cover objects and backgrounds beside drawn patterns.
        quality: Of the JPEGs; BL30K's is 98.
        videos_per_file: Videos in one Parquet file.
        workers: Parallel processes.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    out = cluster.lasting(out, "--out")
    recipe = SceneRecipe(height=height, width=width, frames=frames, speed=speed)
    pictures, digest = read_textures(textures)
    items = [SceneItem(seed, video) for video in range(videos)]
    print(f"{videos} videos of {frames} frames at {height}x{width}, {len(pictures)} textures beside drawn ones")
    cluster.connect(verbose)
    parameters = {**asdict(recipe), "seed": seed, "videos": videos, "pictures": digest, "quality": quality}
    with console.Progress(-(-videos // max(1, videos_per_file)), "render", "files") as progress:
        manifest = build(
            out,
            "bl30k",
            parameters,
            items,
            partial(rendered_table, recipe, pictures, quality),
            videos_per_file,
            workers,
            progress.update,
        )
    print(f"{out}: {manifest['totals']}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
