from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vosforge.clip import Clip
from vosforge.evaluation import score
from vosforge.networks import MemoryNetwork
from vosforge.propagation import Propagator, segment_clip

STEPS = {"stm": 150, "stm-interactive": 150, "emn": 300, "mivos": 200, "kmn": 150, "stcn": 220}


@pytest.fixture(scope="module")
def crossing() -> Clip:
    """A red square and a blue disc that cross a textured ground on different ways."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    frames = np.repeat(cv2.GaussianBlur(noise, (0, 0), 2)[None], 4, axis=0)
    masks = np.zeros((4, 64, 64), np.uint8)
    for t in range(4):
        masks[t, 10 + 3 * t : 28 + 3 * t, 8 + 4 * t : 26 + 4 * t] = 1
        cv2.circle(masks[t], (46 - 4 * t, 44 - 2 * t), 10, 2, -1)
    frames[masks == 1], frames[masks == 2] = (220, 40, 40), (40, 60, 230)
    return Clip("crossing", frames, masks)


def tensors(clip: Clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames `(1, T, 3, H, W)`, ids `(1, T, H, W)`, first masks `(1, 2, H, W)`."""
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)[None].float() / 255
    truth = torch.from_numpy(clip.masks).long()[None]
    return frames, truth, torch.stack([truth[:, 0] == 1, truth[:, 0] == 2], dim=1).float()


def fit(network: MemoryNetwork, clip: Clip, steps: int, scribbles: torch.Tensor | None = None) -> None:
    """Train on one clip: from its first masks, or from scribbles in their place."""
    frames, truth, first = tensors(clip)
    alone = network.parts.training_objects == "one"
    network.train()
    optimiser = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        wanted, given = truth, first if scribbles is None else torch.zeros_like(first)
        if alone:
            chosen = step % 2
            wanted, given = (truth == chosen + 1).long(), given[:, chosen : chosen + 1]
        logits = network(frames, given, scribbles=scribbles)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()


def worst_jaccard(truth: np.ndarray, found: np.ndarray) -> float:
    report = score(truth, found, protocol="all-frames")
    return min(report[k]["J"]["mean"] for k in (1, 2))


@pytest.mark.parametrize("name", STEPS)
def test_nano_learns_one_clip_of_two_objects(make, crossing, name):
    network = make(name)
    fit(network, crossing, STEPS[name])
    found = segment_clip(Propagator(network, memory_every=1), crossing)
    assert worst_jaccard(crossing.masks, found) > 0.95


def thin_lines(clip: Clip) -> torch.Tensor:
    """Scribbles `(1, 2, 2, H, W)`: a line through each object, and one outside it."""
    lines = np.zeros((1, 2, 2, *clip.size), np.float32)
    for k in (1, 2):
        rows, columns = np.nonzero(clip.masks[0] == k)
        middle = int(np.median(rows))
        inside = columns[rows == middle]
        lines[0, k - 1, 0, middle, inside.min() + 3 : inside.max() - 2] = 1
        lines[0, k - 1, 1, 60 if k == 1 else 4, 10:54] = 1
    return torch.from_numpy(lines)


def test_interactive_network_learns_from_scribbles_alone(make, crossing):
    network, scribbles = make("stm-interactive"), thin_lines(crossing)
    frames, _, first = tensors(crossing)
    assert all((scribbles[:, k, 0] * (1 - first[:, k])).sum() == 0 < scribbles[:, k, 0].sum() for k in (0, 1))
    fit(network, crossing, 240, scribbles)
    jaccards = []
    for given in (scribbles, None):
        with torch.no_grad():
            found = network(frames, torch.zeros_like(first), scribbles=given).argmax(dim=2)
        jaccards.append(worst_jaccard(crossing.masks[1:], found[0].numpy().astype(np.uint8)))
    assert jaccards[0] > 0.95
    assert jaccards[1] < 0.5
