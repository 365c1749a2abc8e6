from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vosforge.clip import Clip
from vosforge.evaluation import score
from vosforge.networks import MemoryNetwork
from vosforge.propagation import Propagator, segment_clip
from vosforge.training.batches import object_ious
from vosforge.training.losses import quality_loss

STEPS = {
    "stm": 150,
    "stm-interactive": 150,
    "emn": 300,
    "qpm": 130,
    "skn": 200,
    "mivos": 200,
    "kmn": 150,
    "stcn": 220,
    "camn": 150,
}


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
    torch.manual_seed(0)  # Dropout would else depend on the tests before.
    optimiser = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for step in range(steps):
        wanted, given = truth, first if scribbles is None else torch.zeros_like(first)
        if alone:
            chosen = step % 2
            wanted, given = (truth == chosen + 1).long(), given[:, chosen : chosen + 1]
        logits, scores = network(frames, given, scribbles=scribbles)
        loss = F.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(0, 1))
        if scores is not None:
            valid = torch.ones(given.shape[:2], dtype=torch.bool)
            loss = loss + quality_loss(scores, logits, wanted[:, 1:], valid)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()


def worst_jaccard(truth: np.ndarray, found: np.ndarray) -> float:
    report = score(truth, found, protocol="all-frames")
    return min(report[k]["J"]["mean"] for k in (1, 2))


@pytest.fixture(scope="module")
def learnt(make, crossing) -> Callable[[str], MemoryNetwork]:
    """A nano network, by name, that has learnt the clip."""

    @functools.cache
    def learnt(name: str) -> MemoryNetwork:
        network = make(name)
        fit(network, crossing, STEPS[name])
        return network

    return learnt


@pytest.mark.parametrize("name", STEPS)
def test_nano_learns_one_clip_of_two_objects(learnt, crossing, name):
    network = learnt(name)
    found = segment_clip(Propagator(network, memory_every=1), crossing)
    assert worst_jaccard(crossing.masks, found) > 0.95


def moved(masks: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks `(1, K, H, W)` elsewhere, and their IoU `(1, K)` with where they were."""
    elsewhere = masks.roll((rows, columns), dims=(2, 3))
    return elsewhere, (masks * elsewhere).sum((2, 3)) / masks.maximum(elsewhere).sum((2, 3))


def test_overfit_network_scores_its_masks_near_their_true_quality(learnt, crossing):
    # The masks of one clip end up all good, so a constant would do: telling masks apart is the next test's.
    network = learnt("qpm")
    frames, truth, first = tensors(crossing)
    with torch.no_grad():
        logits, scores = network(frames, first)
    ious = object_ious(logits, truth[:, 1:])
    assert ious.min() > 0.9
    assert (scores - ious).abs().max() < 0.1


@pytest.mark.parametrize("quality", ["own", "shared"])
def test_quality_head_learns_to_tell_good_masks_from_poor_ones(make, crossing, quality):
    network = make("qpm", quality=quality).train()
    frames, truth, _ = tensors(crossing)
    masks = torch.stack([truth[0] == 1, truth[0] == 2], dim=1).float()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        far = torch.randint(-14, 15, (4, 2), generator=generator).tolist()
        pairs = (moved(masks[t : t + 1], *far[t]) for t in range(4))
        shown, wanted = (torch.cat(kind) for kind in zip(*pairs, strict=True))
        loss = F.mse_loss(network.assess(frames[0], shown), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        seen = [moved(masks[:1], *offset) for offset in ((0, 0), (4, 0), (0, -5), (7, 0), (0, -9), (10, 0), (14, 0))]
        scores = torch.cat([network.assess(frames[:, 0], shown) for shown, _ in seen])
    ious = torch.cat([iou for _, iou in seen])
    assert np.corrcoef(scores.flatten(), ious.flatten())[0, 1] > 0.8
    assert (scores[0] > 2 * scores[-1]).all()


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
            found = network(frames, torch.zeros_like(first), scribbles=given).logits.argmax(dim=2)
        jaccards.append(worst_jaccard(crossing.masks[1:], found[0].numpy().astype(np.uint8)))
    assert jaccards[0] > 0.95
    assert jaccards[1] < 0.5
