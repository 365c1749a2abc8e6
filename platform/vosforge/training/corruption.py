"""Mask corruption: estimates are spoilt before they are memorised, so that a network learns to trust them less.

SKN, section 3: "for the videos containing multiple objects, we randomly select a square region of two objects and swap
them. For the videos containing a single object, the foreground and background of two random rectangular regions are
swapped. Besides, the mask estimations are randomly dilated or eroded". How often and how large the paper leaves open;
the values here are ours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from vosforge.training.stages import Corruption

Box = tuple[slice, slice]


def corrupted(masks: torch.Tensor, valid: torch.Tensor, how: Corruption, rng: np.random.Generator) -> torch.Tensor:
    """One clip's estimates, spoilt; gradients flow through what stays.

    Args:
        masks: `(K, H, W)` probabilities of the objects.
        valid: `(K,)` bool, which of them there are.
        how: what may happen.
        rng: every draw comes from it, in a fixed order.

    Returns:
        `(K, H, W)` likewise, summing to at most 1 over objects where `masks` does.
    """
    objects = [k for k in range(len(masks)) if valid[k]]
    # Before regions are swapped, whose edges would else be moved too.
    for k in objects:
        if rng.random() < how.morph:
            masks = _morphed(masks, k, how, rng)
    swapped = rng.random() < how.swap
    if swapped and len(objects) > 1:
        first, second = (int(k) for k in rng.choice(objects, 2, replace=False))
        masks = _swap_objects(masks, first, second, how, rng)
    elif swapped and objects:
        masks = _swap_ground(masks, objects[0], how, rng)
    return masks


def _swap_objects(
    masks: torch.Tensor, first: int, second: int, how: Corruption, rng: np.random.Generator
) -> torch.Tensor:
    """Within a square on each of two objects, each is called the other."""
    inside = torch.zeros(masks.shape[1:], dtype=torch.bool, device=masks.device)
    side = max(2, round(rng.uniform(*how.side) * min(_area(masks[k]) for k in (first, second)) ** 0.5))
    for k in (first, second):
        inside[_box(_pixel_of(masks[k], rng), (side, side))] = True
    order = list(range(len(masks)))
    order[first], order[second] = second, first
    return torch.where(inside, masks[order], masks)


def _swap_ground(masks: torch.Tensor, k: int, how: Corruption, rng: np.random.Generator) -> torch.Tensor:
    """Within two rectangles, on the object and somewhere, it is where it was not."""
    inside = torch.zeros(masks.shape[1:], dtype=torch.bool, device=masks.device)
    height, width = masks.shape[1:]
    anywhere = int(rng.integers(height)), int(rng.integers(width))
    for centre in (_pixel_of(masks[k], rng), anywhere):
        sides = tuple(max(2, round(share * _area(masks[k]) ** 0.5)) for share in rng.uniform(*how.side, 2))
        inside[_box(centre, sides)] = True
    spoilt = torch.where(inside, 1 - masks[k], masks[k])
    return torch.stack([spoilt if i == k else plane for i, plane in enumerate(masks)])


def _morphed(masks: torch.Tensor, k: int, how: Corruption, rng: np.random.Generator) -> torch.Tensor:
    """Dilate or erode an object; what it gains the others and the background lose."""
    # Estimates err in shares of what they show: pixels would be nothing on a large object and all of a small one.
    radius = max(1, round(rng.uniform(*how.radius) * _area(masks[k]) ** 0.5))
    sign = 1 if rng.random() < 0.5 else -1
    plane = sign * F.max_pool2d(sign * masks[None, k : k + 1], 2 * radius + 1, stride=1, padding=radius)[0, 0]
    room = (1 - plane) / (1 - masks[k]).clamp(min=1e-6)
    others = masks * room.clamp(max=1)
    return torch.stack([plane if i == k else other for i, other in enumerate(others)])


def _area(plane: torch.Tensor) -> float:
    return float((plane > 0.5).sum().clamp(min=1))


def _pixel_of(plane: torch.Tensor, rng: np.random.Generator) -> tuple[int, int]:
    """A random pixel of an object; of the frame where it has none."""
    places = (plane > 0.5).nonzero()
    draw = rng.random()
    if not len(places):
        return int(draw * plane.shape[0]), int(draw * plane.shape[1])
    row, column = places[int(draw * len(places))].tolist()
    return row, column


def _box(centre: tuple[int, int], sides: tuple[int, ...]) -> Box:
    """A box of that (height, width) around a pixel, as far as it lies in the frame."""
    rows, columns = (slice(max(0, c - n // 2), max(0, c - n // 2) + n) for c, n in zip(centre, sides, strict=True))
    return rows, columns
