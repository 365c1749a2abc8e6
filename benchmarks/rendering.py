"""Frames per second of the renderer on one core, against a vectorised NumPy rasteriser on the same scenes.

The baseline is the tests' oracle (tests/data/numpy_rasteriser.py). It draws ids alone, on the same 2x2 samples a
pixel; the renderer shades as well, so the ratio understates it. CPU time counts, so that a busy machine matters
little.

    python benchmarks/rendering.py --height 512 --width 768 --videos 4
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import tyro

from vosforge.data.rendering import SceneRecipe, build_scene, render_frame
from vosforge.data.rendering.render import frame_buffers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))
import numpy_rasteriser


def main(height: int = 512, width: int = 768, videos: int = 4, frames: int = 20, baseline_frames: int = 2) -> None:
    """Print milliseconds a frame, frames a second and the ratio.

    Args:
        height: pixels.
        width: pixels.
        videos: scenes to average over.
        frames: frames of each scene that we render.
        baseline_frames: frames of each scene that the baseline draws.
    """
    recipe = SceneRecipe(height=height, width=width)
    render_frame(build_scene(recipe, 0, 0), 0)
    build = ours = theirs = 0.0
    triangles, covered, equal = [], [], []
    for video in range(videos):
        start = time.process_time()
        scene = build_scene(recipe, 0, video)
        build += time.process_time() - start
        buffers = frame_buffers(scene)
        shown = np.linspace(0, recipe.frames - 1, frames).astype(int)
        start = time.process_time()
        rendered = {int(t): render_frame(scene, int(t), buffers)[1] for t in shown}
        ours += time.process_time() - start
        for t in list(rendered)[:: -(-frames // baseline_frames)]:
            start = time.process_time()
            ids = numpy_rasteriser.pixel_ids(scene, t)
            theirs += time.process_time() - start
            equal.append(float((ids == rendered[t]).mean()))
        triangles.append(len(scene.faces))
        covered += [float((ids > 0).mean()) for ids in rendered.values()]
    ours /= videos * frames
    theirs /= len(equal)
    build /= videos
    print(f"{height}x{width}, {videos} scenes of {np.mean(triangles):,.0f} triangles, {np.mean(covered):.0%} covered")
    print(f"scene            {1e3 * build:8.1f} ms a video")
    print(f"vosforge         {1e3 * ours:8.1f} ms a frame {1 / ours:8.1f} frames/s  colour and ids")
    with_scene = ours + build / recipe.frames
    print(f"  with its scene {1e3 * with_scene:8.1f} ms a frame {1 / with_scene:8.1f} frames/s  {recipe.frames} frames")
    print(f"NumPy baseline   {1e3 * theirs:8.1f} ms a frame {1 / theirs:8.1f} frames/s  ids only")
    print(f"ratio            {theirs / ours:8.1f} x; ids equal in {np.mean(equal):.4%} of the pixels")


if __name__ == "__main__":
    tyro.cli(main)
