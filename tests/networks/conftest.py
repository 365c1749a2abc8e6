from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from vosforge.networks import NETWORKS, MemoryNetwork, build, preset
from vosforge.networks.collaborative import CollaborativeParts

# Those whose query and memory are keys and values; the others match embeddings.
SPACE_TIME = [name for name in NETWORKS if not isinstance(preset(name), CollaborativeParts)]


@pytest.fixture(params=SPACE_TIME)
def space_time(request: pytest.FixtureRequest) -> str:
    """The name of each network of the space-time skeleton in turn."""
    return request.param


@pytest.fixture(scope="session")
def make() -> Callable[..., MemoryNetwork]:
    """Builds a network whose weights depend on the seed alone, in evaluation mode."""

    built: dict[str, MemoryNetwork] = {}

    def make(name: str, size: str = "nano", seed: int = 0, **parts: object) -> MemoryNetwork:
        key = repr((name, size, seed, parts))
        if key not in built:
            torch.manual_seed(seed)
            built[key] = build(name, size, **parts).eval()
        return copy.deepcopy(built[key])

    return make


@pytest.fixture(scope="session")
def clips() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Random frames `(B, T, 3, H, W)`, disjoint first masks of a few blocks each, and which slots are valid."""

    def clips(size: tuple[int, int], videos: int = 2, frames: int = 3, objects: int = 3, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        clip = torch.rand(videos, frames, 3, *size, generator=generator, dtype=dtype)
        block = max(1, min(size) // 5)
        blocks = torch.randint(0, objects + 1, (videos, 1, *(-(-n // block) for n in size)), generator=generator)
        owner = blocks.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[..., : size[0], : size[1]]
        masks = (owner == torch.arange(1, objects + 1)[None, :, None, None]).to(dtype)
        return clip, masks, torch.ones(videos, objects, dtype=torch.bool)

    return clips


@pytest.fixture(scope="session")
def scribble() -> Callable[[torch.Tensor], torch.Tensor]:
    """Scribbles `(B, K, 2, H, W)` for masks: every fourth row inside an object is positive, outside negative."""

    def scribble(masks: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros_like(masks)
        rows[:, :, 1::4] = 1
        return torch.stack([masks * rows, (1 - masks) * rows], dim=2)

    return scribble
