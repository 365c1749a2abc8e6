from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vosforge.errors import UserError
from vosforge.networks.stacking import StackingNetwork


def members(seed: int, videos: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Frames, truth `(B, H, W)` of two objects, and three members: one is right in the left half, one in the right."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(videos, 3, 24, 24, generator=generator)
    blocks = torch.randint(0, 3, (videos, 4, 4), generator=generator)
    truth = blocks.repeat_interleave(6, dim=1).repeat_interleave(6, dim=2)
    right, wrong = (F.one_hot(ids, 3).permute(0, 3, 1, 2) * 0.7 + 0.1 for ids in (truth, (truth + 1) % 3))
    left = torch.arange(24) < 12
    # The side can be told from the frames' red, which is dark on the left.
    frames[:, 0] = torch.where(left, 0.1, 0.9)
    noise = torch.rand(right.shape, generator=generator).softmax(dim=1)
    first, second = torch.where(left, right, wrong), torch.where(left, wrong, right)
    return frames, truth, torch.stack([first, second, noise], dim=1)


def test_fresh_stacking_is_the_average():
    frames, _, probabilities = members(0)
    found = StackingNetwork(3)(frames, probabilities).softmax(dim=1)
    assert (found - probabilities.mean(dim=1)).abs().max() < 1e-6


def test_stacking_learns_which_member_to_trust_where():
    torch.manual_seed(0)
    network = StackingNetwork(3)
    frames, truth, probabilities = members(1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(80):
        loss = F.cross_entropy(network(frames, probabilities), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    frames, truth, probabilities = members(2)
    with torch.no_grad():
        stacked = (network(frames, probabilities).argmax(dim=1) == truth).float().mean()
    averaged = (probabilities.mean(dim=1).argmax(dim=1) == truth).float().mean()
    assert averaged < 0.9
    assert stacked > 0.97


def test_order_of_objects_does_not_matter():
    torch.manual_seed(0)
    network = StackingNetwork(3)
    torch.nn.init.normal_(network.correction.weight)
    frames, _, probabilities = members(0)
    with torch.no_grad():
        straight = network(frames, probabilities)
        swapped = network(frames, probabilities[:, :, [0, 2, 1]])
    assert (straight[:, [0, 2, 1]] - swapped).abs().max() < 1e-5
    assert (straight[:, 1] - straight[:, 2]).abs().max() > 1e-2


def test_members_that_are_certain_stay_finite():
    network = StackingNetwork(2)
    certain = F.one_hot(torch.zeros(1, 2, 5, 5, dtype=torch.long), 2).permute(0, 1, 4, 2, 3).float()
    assert network(torch.rand(1, 3, 5, 5), certain).isfinite().all()


def test_wrong_shapes_are_refused():
    frames = torch.rand(1, 3, 8, 8)
    with pytest.raises(UserError, match=r"M = 2 members .* found \(1, 3, 2, 8, 8\)"):
        StackingNetwork(2)(frames, torch.rand(1, 3, 2, 8, 8))
    with pytest.raises(UserError, match=r"found \(1, 2, 1, 8, 8\)"):
        StackingNetwork(2)(frames, torch.rand(1, 2, 1, 8, 8))
    with pytest.raises(UserError, match="at least one member"):
        StackingNetwork(0)
