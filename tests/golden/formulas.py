"""The inputs behind the golden answers: formulas, so that only the answers are stored.

The numbers must never change, nor the order in which random values are drawn: the answers beside this file were
computed from exactly these arrays by the published implementations.
"""

from __future__ import annotations

import numpy as np

TURN = 6.28


def clip(seed: int, frames: int, height: int, width: int, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Textured discs drifting over a textured ground.

    Returns RGB `(T, 3, H, W)` float32 in [0, 1] and index masks `(T, H, W)` uint8.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    layers = objects + 1
    frequency = rng.uniform(0.02, 0.12, (layers, 3, 2))
    phase = rng.uniform(0, TURN, (layers, 3))
    colour = rng.uniform(0.2, 0.8, (layers, 3))
    start = rng.uniform(0.25, 0.75, (objects, 2)) * [height, width]
    velocity = rng.uniform(-4, 4, (objects, 2))
    radius = rng.uniform(0.12, 0.22, objects) * min(height, width)
    y, x = np.indices((height, width), dtype=np.float64)

    def texture(layer: int, top: float, left: float) -> np.ndarray:
        channels = []
        for (fy, fx), shift, base in zip(frequency[layer], phase[layer], colour[layer], strict=True):
            wave = np.sin(fy * (y - top) * TURN + fx * (x - left) * TURN + shift)
            channels.append(np.clip(base + 0.25 * wave, 0, 1))
        return np.stack(channels)

    rgb = np.empty((frames, 3, height, width), dtype=np.float32)
    masks = np.zeros((frames, height, width), dtype=np.uint8)
    for t in range(frames):
        picture = texture(0, 0.5 * t, -0.3 * t)
        for k, (cy, cx) in enumerate(start + t * velocity):
            inside = disc(height, width, cy, cx, radius[k])
            picture[:, inside] = texture(k + 1, cy, cx)[:, inside]
            masks[t][inside] = k + 1
        rgb[t] = picture
    return rgb, masks


def disc(height: int, width: int, cy: float, cx: float, radius: float) -> np.ndarray:
    """A filled disc, bool `(H, W)`."""
    y, x = np.indices((height, width))
    return (y - cy) ** 2 + (x - cx) ** 2 < radius**2


def prediction(truth: np.ndarray, kind: str) -> np.ndarray:
    """`truth` `(T, H, W)` uint8 with a mistake of one kind: shift, swap, lost, grow or empty."""
    out = truth.copy()
    half = len(truth) // 2
    for t, mask in enumerate(out):
        if kind == "shift":
            out[t] = np.roll(mask, (t, -2 * t), axis=(0, 1))
        elif kind == "swap" and t % 2:
            out[t] = np.array([0, 2, 1], dtype=np.uint8)[np.minimum(mask, 2)]
        elif kind == "lost" and t >= half:
            mask[mask == 1] = 0
        elif kind == "grow":
            for _ in range(3):
                neighbours = np.maximum(np.roll(mask, 1, axis=0), np.roll(mask, 1, axis=1))
                mask[:] = np.where(mask, mask, neighbours)
        elif kind == "empty":
            mask[:] = 0
    return out
