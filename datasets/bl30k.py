"""Render videos of moving objects with exact masks, in the manner of BL30K, on Ray Data.

python datasets/bl30k.py --videos 200 --out shards/bl30k --frames 160
python datasets/bl30k.py --videos 48 --out shards/small --frames 8 --height 128 --width 128 --speed 4
python datasets/bl30k.py --preset hard --videos 200 --out shards/hard --meshes ShapeNetCore.v2 --textures photos/ \
    --outputs flow depth amodal visible
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge import cluster
from vosforge.data.factory import build
from vosforge.data.rendered import Pictures, Production, SceneItem, rendered_table
from vosforge.data.rendering import preset as named_preset
from vosforge.data.rendering.user_meshes import MeshFile, MeshLibrary, find_meshes, survey
from vosforge.data.streams import run_tasks
from vosforge.errors import UserError
from vosforge.outputs import lasting

_FILES_A_TASK = 64


def main(
    videos: int,
    out: str,
    preset: Literal["bl30k", "hard"] = "bl30k",
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    speed: float | None = None,
    objects: tuple[int, int] | None = None,
    blur: float | None = None,
    shadows: int | None = None,
    meshes: Path | None = None,
    textures: Path | None = None,
    outputs: tuple[Literal["flow", "depth", "amodal", "visible"], ...] = (),
    quality: int = 98,
    videos_per_file: int = 32,
    workers: int = 2,
    verbose: bool = False,
) -> None:
    """Render videos of moving objects with exact masks.

    Args:
        videos: How many.
        out: Where the shards go: a folder or s3:// URI.
        preset: bl30k, rigid objects on polynomial paths; or hard, with jointed and deforming objects, exits and
            re-entries, unlabelled distractors, camera shake and motion blur. Other flags override it.
        frames: Frames of a video; 160.
        height: In pixels; 512.
        width: In pixels; 768.
        seed: The same seed gives the same pixels, with any number of workers.
        speed: Of objects and camera; 1 suits 160 frames, short clips want more.
        objects: Fewest and most objects; 3 5.
        blur: Share of the videos that motion blurs; they take 5 times as long.
        shadows: Lamps that cast shadows; 1.
        meshes: Folder of OBJ, GLB or PLY files, or of ShapeNet's layout, mixed with drawn shapes; on every node.
        textures: Folder of pictures that cover objects and backgrounds beside drawn patterns; on every node.
        outputs: More to store with each frame: optical flow, depth, amodal masks, visible shares.
        quality: Of the JPEGs; BL30K's is 98.
        videos_per_file: Videos in one Parquet file.
        workers: Parallel processes.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    if videos < 1:
        raise UserError(f"--videos: expected at least 1, found {videos}")
    if not 1 <= quality <= 100:
        raise UserError(f"--quality: expected 1 to 100, found {quality}")
    out = lasting(out, "--out")
    changes = {"frames": frames, "height": height, "width": width, "speed": speed, "objects": objects}
    recipe = named_preset(preset, **changes, blur=blur, shadows=shadows)
    pictures = Pictures(textures and textures.resolve())
    if pictures.skipped:
        print(f"{textures}: {len(pictures.skipped)} of {len(pictures) + len(pictures.skipped)} textures skipped")
    for reason in pictures.skipped[:10]:
        print(f"  {reason}")
    cluster.connect(verbose)
    library = read_library(meshes.resolve(), workers) if meshes else ()
    print(
        f"{videos} videos of {recipe.frames} frames at {recipe.height}x{recipe.width}, preset {preset}; "
        f"{len(library)} meshes and {len(pictures)} textures beside drawn ones"
    )
    parameters: dict[str, Any] = {**asdict(recipe), "seed": seed, "videos": videos, "quality": quality}
    parameters |= {"pictures": pictures.digest, "outputs": sorted(outputs)}
    parameters["meshes"] = library.digest if meshes else ""
    production = Production(recipe, quality, outputs, pictures, library)
    with console.Progress(-(-videos // max(1, videos_per_file)), "render", "files") as progress:
        manifest = build(
            out,
            "bl30k",
            parameters,
            [SceneItem(seed, video) for video in range(videos)],
            partial(rendered_table, production),
            videos_per_file,
            workers,
            progress.update,
        )
    print(f"{out}: {manifest['totals']}")


def read_library(folder: Path, workers: int) -> MeshLibrary:
    """Try every mesh of a folder, in parallel, and say which are of no use."""
    names = find_meshes(folder)
    groups = [names[i : i + _FILES_A_TASK] for i in range(0, len(names), _FILES_A_TASK)]
    files: list[MeshFile] = []
    for row in run_tasks(len(groups), partial(try_meshes, folder, groups), workers):
        files += [MeshFile(*file) for file in zip(row["names"], row["digests"], row["reasons"], strict=True)]
    library = MeshLibrary(folder, files)
    if library.skipped:
        print(f"{folder}: {len(library.skipped)} of {len(names)} meshes skipped")
    for file in library.skipped[:10]:
        print(f"  {file.reason}")
    return library


def try_meshes(folder: Path, groups: list[list[str]], number: int) -> dict[str, list[str]]:
    """One task's files."""
    files = [survey(folder, name) for name in groups[number]]
    return {
        "names": [file.name for file in files],
        "digests": [file.digest for file in files],
        "reasons": [file.reason for file in files],
    }


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
