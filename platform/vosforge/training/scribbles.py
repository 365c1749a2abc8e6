"""Scribbles as a user would draw them, made from masks: for networks that learn from scribbles.

STM unified, section 2.4: "we use morphological skeletonization and random walk algorithm to automatically generate
realistic scribbles". The first round crosses objects and background, later ones what is wrong in the present estimate.
How long, thick and many the lines are the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import skimage
import torch

# Steps of a walk as a share of the square root of the region's area, and the least region that is drawn in.
_LENGTH = (1.0, 3.0)
_LEAST_PIXELS = 8
# Users' lines differ in thickness (here in pixels; with thinner ones small networks hardly learn at all), and cross
# several errors in a round.
_WIDTHS = (2, 3)
_MOST_LINES = 3
_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def scribble(region: np.ndarray, rng: np.random.Generator, lines: int = 1) -> np.ndarray:
    """Thin lines through the largest parts of a region: each a random walk on its skeleton.

    Args:
        region: `(H, W)` bool.
        rng: every draw comes from it.
        lines: the most parts that are drawn in.

    Returns:
        `(H, W)` bool, all False for regions of a few pixels.
    """
    drawn = np.zeros(region.shape, bool)
    _, parts, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    for part in np.argsort(-areas, kind="stable")[:lines]:
        if areas[part] >= _LEAST_PIXELS:
            skeleton = skimage.morphology.skeletonize(parts == 1 + part)
            _walk(drawn, skeleton, rng.uniform(*_LENGTH) * areas[part] ** 0.5, rng)
    return drawn


def _walk(drawn: np.ndarray, left: np.ndarray, length: float, rng: np.random.Generator) -> None:
    """Walk over a skeleton, never back, and draw where one comes."""
    rows, columns = np.nonzero(left)
    here = int(rng.integers(len(rows)))
    row, column = int(rows[here]), int(columns[here])
    for _ in range(max(2, round(length))):
        drawn[row, column], left[row, column] = True, False
        onward = [(row + dy, column + dx) for dy, dx in _NEIGHBOURS if _inside(left, row + dy, column + dx)]
        if not onward:
            break
        row, column = onward[int(rng.integers(len(onward)))]


def _inside(plane: np.ndarray, row: int, column: int) -> bool:
    return 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1] and bool(plane[row, column])


def draw_round(
    truth: np.ndarray, estimate: np.ndarray | None, objects: int, touched: Sequence[int], rng: np.random.Generator
) -> tuple[int, np.ndarray]:
    """What a user does next: which frame is touched, and what is drawn there.

    Args:
        truth: `(T, H, W)` ids 0..K.
        estimate: `(T, H, W)` likewise; None before the first round.
        objects: K.
        touched: frames of earlier rounds, which are left out while there are others.
        rng: every draw comes from it.

    Returns:
        The frame, and `(K, 2, H, W)` bool, positive and negative scribbles of each object. A stroke for an object is
        negative for the others; one for the background for all.
    """
    frame = _worst(truth, estimate, touched, rng)
    true = truth[frame]
    wrong = np.ones(true.shape, bool) if estimate is None else true != estimate[frame]
    brush = np.ones((int(rng.choice(_WIDTHS)),) * 2, np.uint8)
    most = 1 if estimate is None else _MOST_LINES
    lines = np.stack([_drawn((true == k) & wrong, most, brush, rng) for k in range(objects + 1)])
    planes = np.zeros((objects, 2, *true.shape), bool)
    for k in range(objects):
        planes[k, 0] = lines[k + 1]
        planes[k, 1] = np.delete(lines, k + 1, axis=0).any(axis=0)
    return frame, planes


def _drawn(region: np.ndarray, lines: int, brush: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lines of a brush's thickness, no wider than their region."""
    return (cv2.dilate(scribble(region, rng, lines).astype(np.uint8), brush) > 0) & region


def _worst(truth: np.ndarray, estimate: np.ndarray | None, touched: Sequence[int], rng: np.random.Generator) -> int:
    """In the first round any frame that shows an object, later the one with most wrong pixels among the untouched."""
    free = [t for t in range(len(truth)) if t not in touched] or list(range(len(truth)))
    if estimate is None:
        shown = [t for t in free if truth[t].any()] or free
        return int(rng.choice(shown))
    return max(free, key=lambda t: int((truth[t] != estimate[t]).sum()))


class Rounds:
    """Draws for a batch of clips, round after round, as `MemoryNetwork.interact` asks for it.

    Args:
        masks: `(B, T, H, W)` int64 ids 0..K, the truth.
        objects: K.
        seeds: one a clip; with the round they decide every draw.
    """

    def __init__(self, masks: torch.Tensor, objects: int, seeds: Sequence[Sequence[int]]):
        self.device = masks.device
        self.truth = masks.cpu().numpy()
        self.objects, self.seeds = objects, seeds
        self.touched: list[list[int]] = [[] for _ in seeds]

    def __call__(self, estimates: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames touched `(B,)` and scribbles `(B, K, 2, H, W)`.

        Args:
            estimates: `(B, T, K, H, W)` probabilities of the round before; ignored in round 0.
            number: of the round, from 0.
        """
        background = (1 - estimates.sum(dim=2, keepdim=True)).clamp(min=0)
        labels = torch.cat([background, estimates], dim=2).max(dim=2).indices.cpu().numpy()
        frames, planes = [], []
        for b, seed in enumerate(self.seeds):
            rng = np.random.default_rng([*seed, number])
            present = labels[b] if number else None
            frame, drawn = draw_round(self.truth[b], present, self.objects, self.touched[b], rng)
            self.touched[b].append(frame)
            frames.append(frame)
            planes.append(drawn)
        return (
            torch.tensor(frames, device=self.device),
            torch.from_numpy(np.stack(planes)).to(self.device, estimates.dtype),
        )
