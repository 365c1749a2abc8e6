"""The inputs behind the golden answers: formulas, so that only the answers are stored.

The numbers must never change, nor the order in which random values are drawn: the answers beside this file were
computed from exactly these arrays by the published implementations.
"""

from __future__ import annotations

import zlib

import numpy as np

TURN = 6.28
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a parameter of the files without `sine_`: random numbers keyed by its name, float64."""
    leaf = name.rpartition(".")[2]
    draws = np.random.Generator(np.random.Philox(zlib.crc32(name.encode()))).standard_normal(shape)
    if leaf in IMAGENET:
        return np.reshape(IMAGENET[leaf], shape)
    if leaf == "num_batches_tracked":
        return np.zeros(shape)
    if leaf == "running_mean":
        return 0.1 * draws
    if leaf == "running_var":
        return 1 + 0.1 * np.abs(draws)
    if leaf == "weight" and len(shape) == 1:
        return 1 + 0.1 * draws
    scale = 0.05 if leaf == "bias" else np.sqrt(1.4 / np.prod(shape[1:]))
    return (scale * 0.05 if ".pred" in name else scale) * draws


def sine_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a parameter of the `sine_` files: a wave over its elements, float64."""
    leaf = name.rpartition(".")[2]
    if leaf in IMAGENET:
        return np.reshape(IMAGENET[leaf], shape)
    if leaf == "num_batches_tracked":
        return np.zeros(shape)
    phase = zlib.crc32(name.encode()) % 1000 / 1000 * 2 * np.pi
    wave = np.sin(12.9898 * np.arange(np.prod(shape), dtype=np.float64) + phase).reshape(shape)
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return 1 + 0.1 * wave
    if len(shape) == 2 or (len(shape) == 4 and (shape[0] > 1 or shape[2] > 1)):
        return wave * np.sqrt(2 / np.prod(shape[1:]))
    return 0.1 * wave


def sine_image(height: int, width: int, seed: float) -> np.ndarray:
    """Crossing waves, float64 RGB `(3, H, W)` in [0, 1]; memory frames have seed 0.0, query frames 0.6."""
    y, x = np.indices((height, width), dtype=np.float64)
    waves = [np.sin(0.13 * x * (1 + 0.1 * c) + 0.07 * y * (1 + 0.2 * c) + seed + c) for c in range(3)]
    return 0.5 + 0.5 * np.stack(waves)


def sine_masks(height: int, width: int) -> np.ndarray:
    """The two objects of the `sine_` files' memory frame, `(H, W)` uint8 ids; the first hides the second."""
    first, second = disc(height, width, 40, 40, 18), disc(height, width, 50, 85, 22)
    return np.select([first, second], [1, 2]).astype(np.uint8)


def reader_inputs(seed: int, T: int, H: int, W: int, CK: int, CV: int) -> list[np.ndarray]:
    """Memory keys `(1, CK, T, H, W)`, memory values `(1, CV, T, H, W)` and query keys `(1, CK, H, W)`, float32."""
    rng = np.random.Generator(np.random.Philox(seed))
    shapes = [((1, CK, T, H, W), 2), ((1, CV, T, H, W), 1), ((1, CK, H, W), 2)]
    return [rng.standard_normal(shape).astype(np.float32) * gain for shape, gain in shapes]


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
