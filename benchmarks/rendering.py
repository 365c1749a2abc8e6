"""Frames per second of rendered video on one core, for both presets, against a vectorised NumPy rasteriser.

The baseline is the tests' oracle (tests/data/numpy_rasteriser.py). It draws ids alone, on the same 2x2 samples a
pixel; the renderer shades and shadows as well, so the ratio understates it. CPU time of one thread counts, and of
several passes over the same frames the quickest, so that a busy machine matters little. "End to end" is all that a
row of a shard costs: a share of building the scene, rendering, JPEG, PNG, statistics and Parquet.

    OMP_NUM_THREADS=1 python benchmarks/rendering.py
    OMP_NUM_THREADS=1 python benchmarks/rendering.py --meshes MESHES --textures PHOTOGRAPHS
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import tyro

from vosforge.clip import Clip
from vosforge.data.image_files import encode_frame, encode_mask, object_statistics
from vosforge.data.rendered import Pictures
from vosforge.data.rendering import Scene, SceneRecipe, build_scene, drawing, encodings, preset, shading, truth
from vosforge.data.rendering.render import frame_buffers, render_frame
from vosforge.data.rendering.user_meshes import MeshLibrary, find_meshes, survey
from vosforge.data.shards import clip_table, write_shard

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))
import numpy_rasteriser

FULL_SET = 30_000 * 160
QUALITY = 98


def main(
    height: int = 512,
    width: int = 768,
    videos: int = 6,
    frames: int = 10,
    passes: int = 4,
    baseline_frames: int = 1,
    meshes: Path | None = None,
    textures: Path | None = None,
) -> None:
    """Print milliseconds a frame by step, frames a second, bytes a frame, and the ratio to the baseline.

    Args:
        height: pixels.
        width: pixels.
        videos: scenes of each preset to average over.
        frames: frames of each scene that are rendered.
        passes: times that each is measured; the quickest counts.
        baseline_frames: frames of each scene that the baseline draws.
        meshes: folder of the user's meshes.
        textures: folder of the user's pictures.
    """
    cv2.setNumThreads(1)
    started = time.process_time()
    render_frame(build_scene(preset("hard", height=32, width=48, frames=2), 0, 0), 0)
    print(f"first frame, kernels compiled or read from numba's cache: {time.process_time() - started:.1f} s")
    pictures = Pictures(textures)
    models = MeshLibrary(meshes, [survey(meshes, name) for name in find_meshes(meshes)]) if meshes else ()
    for name in ("bl30k", "hard"):
        recipe = preset(name, height=height, width=width)
        measure(name, recipe, videos, frames, passes, baseline_frames, pictures, models)


def measure(
    name: str,
    recipe: SceneRecipe,
    videos: int,
    frames: int,
    passes: int,
    baseline_frames: int,
    pictures: Pictures,
    models: MeshLibrary | tuple,
) -> None:
    """Measure one preset, its sharp and its blurred clips apart, and print its table."""
    steps: dict[str, list[float]] = {}
    sizes, triangles, covered, equal = [], [], [], []
    sharp, blurred = replace(recipe, blur=0.0), replace(recipe, blur=1.0)
    for video in range(videos):
        seconds, scene = best(lambda video=video: build_scene(sharp, 0, video, pictures, models), 2)
        steps.setdefault("scene", []).append(seconds / recipe.frames)
        buffers = frame_buffers(scene)
        shown = [int(t) for t in np.linspace(0, recipe.frames - 1, frames)]
        rendered = [render_frame(scene, t, buffers) for t in shown]
        for step, seconds in frame_steps(scene, shown, rendered, passes).items():
            steps.setdefault(step, []).append(seconds)
        for t in shown[:: -(-frames // baseline_frames)]:
            seconds, ids = best(lambda scene=scene, t=t: numpy_rasteriser.pixel_ids(scene, t), 1)
            steps.setdefault("baseline", []).append(seconds)
            equal.append(float((ids == rendered[shown.index(t)][1]).mean()))
        sizes.append(np.mean([bytes_a_frame(frame, ids) for frame, ids in rendered], axis=0))
        triangles.append(len(scene.faces))
        if recipe.blur:
            scene = build_scene(blurred, 0, video, pictures, models)
            buffers = frame_buffers(scene)
            seconds, _ = best(lambda scene=scene, buffers=buffers: render_frame(scene, 80, buffers), passes)
            steps.setdefault("blurred", []).append(seconds)
        covered.append(np.mean([(ids > 0).mean() for _, ids in rendered]))
    mean = {step: 1e3 * float(np.mean(values)) for step, values in steps.items()}
    report(name, recipe, mean, np.mean(sizes, axis=0), triangles, covered, equal)


def frame_steps(scene: Scene, shown: list[int], rendered: list, passes: int) -> dict[str, float]:
    """CPU seconds a frame of each step, the quickest of some passes."""
    buffers = frame_buffers(scene)
    geometry = buffers.geometry

    def shadow(t: int) -> None:
        drawing.place(scene, t, -1, geometry.vertices)
        buffers.shadows.fill(geometry.faces, len(scene.faces), geometry.face_part, scene.closed, geometry.vertices)

    def store() -> None:
        clip = Clip("clip", np.stack([frame for frame, _ in rendered]), np.stack([ids for _, ids in rendered]))
        with tempfile.TemporaryDirectory() as folder:
            write_shard([clip_table(clip, "bl30k", quality=QUALITY)], [], Path(folder) / "part.parquet")

    def each(work: Callable[[int], object]) -> Callable[[], None]:
        return lambda: [work(t) for t in shown] and None

    def pairs(work: Callable[[np.ndarray, np.ndarray], object]) -> Callable[[], None]:
        return lambda: [work(frame, ids) for frame, ids in rendered] and None

    works = {
        "render": each(lambda t: render_frame(scene, t, buffers)),
        "  see": each(lambda t: drawing.see(scene, t, buffers)),
        "  shadows": each(shadow),
        "  to sRGB": each(lambda t: shading.encode(buffers.light)),
        "rows": store,
        "  JPEG": pairs(lambda frame, ids: encode_frame(frame, QUALITY)),
        "  PNG": pairs(lambda frame, ids: encode_mask(ids)),
        "  statistics": pairs(lambda frame, ids: object_statistics(ids)),
        "flow": each(lambda t: encodings.encode_flow(*truth.flow(scene, min(t, scene.frames - 2), buffers))),
        "depth": each(lambda t: encodings.encode_depth(truth.depth(scene, t, buffers))),
        "amodal, visible": each(lambda t: encodings.encode_amodal(truth.amodal(scene, t, buffers))),
    }
    return {step: best(work, passes)[0] / len(shown) for step, work in works.items()}


def best(work: Callable[[], object], passes: int) -> tuple[float, object]:
    """CPU seconds of the quickest of some runs, and what the last one returned."""
    seconds = []
    for _ in range(passes):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def bytes_a_frame(frame: np.ndarray, ids: np.ndarray) -> tuple[int, int, int]:
    """Bytes of the JPEG at BL30K's quality, the JPEG at 90, and the mask."""
    return len(encode_frame(frame, QUALITY)), len(encode_frame(frame, 90)), len(encode_mask(ids))


def report(name, recipe, mean, sizes, triangles, covered, equal) -> None:
    """Print one preset's table."""
    print(
        f"\n{name}: {recipe.height}x{recipe.width}, {len(triangles)} scenes of {np.mean(triangles):,.0f} triangles, "
        f"{np.mean(covered):.0%} covered"
    )
    for step in ("scene", "render", "  see", "  shadows", "  to sRGB", "rows", "  JPEG", "  PNG", "  statistics"):
        print(f"  {step:18}{mean[step]:8.1f} ms a frame")
    rendered = mean["render"]
    if recipe.blur:
        print(f"  {'blurred':18}{mean['blurred']:8.1f} ms a frame, {recipe.blur:.0%} of the clips")
        rendered += recipe.blur * (mean["blurred"] - mean["render"])
    whole = mean["scene"] + rendered + mean["rows"]
    hours = whole / 1e3 * FULL_SET / 3600
    jpeg, smaller, png = sizes
    print(f"  {'rendered':18}{rendered:8.1f} ms a frame {1e3 / rendered:8.1f} frames/s/core")
    print(f"  {'end to end':18}{whole:8.1f} ms a frame {1e3 / whole:8.1f} frames/s/core")
    print(f"  {'NumPy, ids only':18}{mean['baseline']:8.1f} ms a frame {1e3 / mean['baseline']:8.1f} frames/s/core")
    print(f"  ratio {mean['baseline'] / mean['render']:.0f}x; ids equal in {np.mean(equal):.4%} of the pixels")
    extra = ", ".join(f"{step} {mean[step]:.1f}" for step in ("flow", "depth", "amodal, visible"))
    print(f"  further outputs, ms a frame with their encoding: {extra}")
    print(f"  {jpeg / 1e3:.0f} KB a JPEG of quality {QUALITY} ({smaller / 1e3:.0f} of 90), {png / 1e3:.1f} KB a mask")
    print(f"  {FULL_SET:,} frames: {hours:.0f} core-hours, {(jpeg + png) * FULL_SET / 1e9:.0f} GB")


if __name__ == "__main__":
    tyro.cli(main)
