"""Pseudo-video: clips a second on one core, of vosforge and of the chain of PIL and torchvision that the field runs.

The chain is written plainly here, pass by pass as the public training code goes: for STCN's family (and the papers'
simpler recipes) the clip's affine map, flip, colour jitter and grey, again in every frame; then the frame's bicubic
affine map of picture and mask at the picture's size, bicubic resize, crop, colour jitter, and a thin-plate spline
solved and evaluated at every pixel. For AOT's flip, jitter, affine map and bicubic resized crop of two pictures, and
their merger. Both sides begin with decoded pictures and end with arrays; neither normalises.

Samples are clips, seconds those that the process spent on the core, so that other work on the machine weighs little.
Sides take turns; printed are the medians of the rounds.

    OMP_NUM_THREADS=1 python benchmarks/pseudo_video.py [--seconds 3] [--rounds 3] [--only stcn aot]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode

from vosforge.clip import Clip
from vosforge.data.colour import Jitter
from vosforge.data.pseudo_presets import PRESETS
from vosforge.data.pseudo_video import pseudo_video
from vosforge.data.redrawn import RedrawnRecipe

BICUBIC, NEAREST = InterpolationMode.BICUBIC, InterpolationMode.NEAREST
FILL = [124, 116, 104]
PICTURE = (480, 640)


def picture(seed: int) -> Clip:
    """A picture as large as COCO's, with texture at several scales, and two objects."""
    rng = np.random.default_rng(seed)
    frame = np.zeros((*PICTURE, 3), np.float32)
    for cells in (5, 20, 80):
        noise = rng.uniform(0, 85, (cells, cells, 3)).astype(np.float32)
        frame += cv2.resize(noise, PICTURE[::-1], interpolation=cv2.INTER_CUBIC)
    mask = np.zeros(PICTURE, np.uint8)
    cv2.ellipse(mask, (260, 240), (110, 80), 20.0, 0, 360, 1, cv2.FILLED)
    cv2.ellipse(mask, (420, 230), (70, 120), -10.0, 0, 360, 2, cv2.FILLED)
    return Clip(f"{seed}", np.clip(frame, 0, 255).astype(np.uint8)[None], mask[None])


def jittered(image: Image.Image, ranges: Jitter) -> Image.Image:
    values = (ranges.brightness, ranges.contrast, ranges.saturation, ranges.hue)
    return T.ColorJitter(*values)(image) if any(values) else image


def thin_plate(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, recipe: RedrawnRecipe) -> tuple:
    """Solve for the control points, and evaluate r^2 log r of every pixel and point."""
    height, width = mask.shape
    source = rng.uniform(0, 1, (recipe.points, 2))
    target = source + rng.normal(0, recipe.spread, source.shape)

    def kernel(places: np.ndarray) -> np.ndarray:
        distance = np.sqrt(np.square(places[:, None] - target[None]).sum(-1))
        return distance**2 * np.log(distance + 1e-6)

    system = np.zeros((recipe.points + 3, recipe.points + 3))
    system[:-3, :-3], system[:-3, -3], system[:-3, -2:] = kernel(target), 1, target
    system[-3:] = system[:, -3:].T
    weights = np.linalg.solve(system, np.vstack([source - target, np.zeros((3, 2))]))
    places = np.stack(np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height)), -1).reshape(-1, 2)
    # One coordinate after the other, as there: the kernel is evaluated for each.
    grid = [places[:, c] + kernel(places) @ weights[:-3, c] + weights[-3, c] + places @ weights[-2:, c] for c in (0, 1)]
    across, down = (
        (side * axis).reshape(mask.shape).astype(np.float32) for side, axis in zip((width, height), grid, strict=True)
    )
    return cv2.remap(image, across, down, cv2.INTER_CUBIC), cv2.remap(mask, across, down, cv2.INTER_NEAREST)


def redrawn_chain(recipe: RedrawnRecipe, image: Image.Image, mask: Image.Image, rng: np.random.Generator) -> tuple:
    """The passes of STCN's family."""
    shared_seed, side = int(rng.integers(2**31)), recipe.size[0]
    frames, masks = [], []
    for _ in range(recipe.frames):
        torch.manual_seed(shared_seed)
        im, gt = image, mask
        if recipe.shared.scale != (1.0, 1.0):
            scale = float(torch.empty(1).uniform_(*recipe.shared.scale))
            im = F.affine(im, 0.0, [0, 0], scale, [0.0], NEAREST, FILL)
            gt = F.affine(gt, 0.0, [0, 0], scale, [0.0], NEAREST, [0])
        if torch.rand(1) < recipe.flip:
            im, gt = F.hflip(im), F.hflip(gt)
        im = jittered(im, recipe.shared_colour)
        if torch.rand(1) < recipe.grey:
            im = F.rgb_to_grayscale(im, 3)
        torch.manual_seed(int(rng.integers(2**31)))
        if torch.rand(1) < recipe.each_flip:
            im, gt = F.hflip(im), F.hflip(gt)
        each = recipe.each
        shear = (-each.shear, each.shear) if each.shear else None
        drawn = T.RandomAffine.get_params((-each.rotation, each.rotation), None, each.scale, shear, list(im.size))
        im, gt = F.affine(im, *drawn, BICUBIC, FILL), F.affine(gt, *drawn, BICUBIC, [0])
        shorter = round(side * recipe.zoom)
        im, gt = F.resize(im, shorter, BICUBIC), F.resize(gt, shorter, NEAREST)
        window = T.RandomCrop.get_params(im, recipe.size)
        im, gt = F.crop(im, *window), F.crop(gt, *window)
        im = jittered(im, recipe.each_colour)
        frame, ids = np.asarray(im), np.asarray(gt)
        if rng.random() < recipe.thin_plate:
            frame, ids = thin_plate(frame, ids, rng, recipe)
        frames.append(frame)
        masks.append(ids)
    return np.stack(frames), np.stack(masks)


def aot_sequence(recipe: RedrawnRecipe, image: Image.Image, mask: Image.Image) -> tuple:
    frames, masks = [], []
    if torch.rand(1) < recipe.flip:
        image, mask = F.hflip(image), F.hflip(mask)
    for t in range(recipe.frames):
        im, gt = image, mask
        if t > 0:
            if torch.rand(1) < recipe.each_flip:
                im, gt = F.hflip(im), F.hflip(gt)
            im, each = jittered(im, recipe.each_colour), recipe.each
            ranges = (-each.rotation, each.rotation), (each.shift,) * 2, each.scale, (-each.shear, each.shear)
            drawn = T.RandomAffine.get_params(*ranges, list(im.size))
            im, gt = F.affine(im, *drawn, fill=FILL), F.affine(gt, *drawn, fill=[0])
        window = T.RandomResizedCrop.get_params(im, list(recipe.area), list(recipe.aspect))
        frames.append(np.asarray(F.resized_crop(im, *window, recipe.size, BICUBIC)))
        masks.append(np.asarray(F.resized_crop(gt, *window, recipe.size, NEAREST)))
    return np.stack(frames), np.stack(masks)


def aot_chain(recipe: RedrawnRecipe, pairs: list, rng: np.random.Generator) -> tuple:
    torch.manual_seed(int(rng.integers(2**31)))
    (frames, masks), (over, ids) = (aot_sequence(recipe, *pair) for pair in pairs)
    inside = ids > 0
    return np.where(inside[..., None], over, frames), np.where(inside, ids + recipe.objects, masks)


def rate(make: Callable[[int], object], seconds: float, first: int) -> float:
    """Clips a second of the core's time."""
    begin, done = time.process_time(), 0
    while time.process_time() - begin < seconds:
        make(first + done)
        done += 1
    return done / (time.process_time() - begin)


def sides(recipe: RedrawnRecipe, clips: list[Clip]) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """Clip i, of the chain and of vosforge."""
    pairs = [(Image.fromarray(clip.frames[0]), Image.fromarray(clip.masks[0])) for clip in clips]
    count = len(clips)

    def chain(i: int) -> object:
        rng = np.random.default_rng(i)
        if recipe.merge:
            return aot_chain(recipe, [pairs[i % count], pairs[(i + 1) % count]], rng)
        return redrawn_chain(recipe, *pairs[i % count], rng)

    def ours(i: int) -> object:
        return pseudo_video("clip", clips[i % count], [clips[(i + 1) % count]], recipe, np.random.default_rng(i))

    return chain, ours


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    stcn = PRESETS["stcn"]
    recipes = {
        "stcn": stcn,
        "stcn, no thin plates": replace(stcn, thin_plate=0.0),
        "stcn, all thin plates": replace(stcn, thin_plate=1.0),
        **{name: PRESETS[name] for name in ("emn", "skn", "aot")},
    }
    clips = [picture(seed) for seed in range(8)]
    print(
        f"clips a second of one core from pictures of {PICTURE[1]}x{PICTURE[0]}, medians of {arguments.rounds} rounds"
    )
    for name, recipe in recipes.items():
        if arguments.only and name.split(",")[0] not in arguments.only:
            continue
        measured: tuple[list[float], list[float]] = ([], [])
        pair = sides(recipe, clips)
        for turn in range(arguments.rounds):
            for make, found in zip(pair, measured, strict=True):
                found.append(rate(make, arguments.seconds, 1000 * turn))
        slow, fast = (statistics.median(found) for found in measured)
        shape = f"{recipe.frames} frames of {recipe.size[0]}"
        print(f"{name:22} {shape}: chain {slow:6.2f}, vosforge {fast:6.2f}, {fast / slow:5.1f}x", flush=True)


if __name__ == "__main__":
    main()
