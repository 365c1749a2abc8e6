"""Reading the frames that a user touched (STM unified, 3.2): a memory of those alone, the same for every frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vosforge.errors import UserError
from vosforge.networks import NETWORKS, MemoryNetwork
from vosforge.propagation.propagator import Propagator


class UserFrame(NamedTuple):
    """What is remembered of a frame that the user touched.

    Attributes:
        frame: its position.
        objects: ids known then, ascending.
        tensors: as the network encoded them, the objects or one for all first.
    """

    frame: int
    objects: tuple[int, ...]
    tensors: tuple[torch.Tensor, ...]

    def of(self, objects: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """What is remembered of some of its objects."""
        columns = [self.objects.index(k) for k in objects]
        return tuple(x if len(x) == 1 < len(self.objects) else x[columns] for x in self.tensors)


def takes_scribbles(network: MemoryNetwork) -> bool:
    """Whether a network's memory encoder sees scribbles."""
    return getattr(network.parts, "memory_input", None) == "mask+scribbles"


class UserMemory:
    """A network that takes scribbles, with what it needs to read user frames.

    Every object reads the frames that the user touched since it was first drawn: on earlier ones nobody said where it
    is, and their other scribbles would speak against it.

    Args:
        network: one whose `memory_input` is "mask+scribbles"; put in evaluation mode.
        options: `device`, `precision` and `channels_last` of `Propagator`.

    Raises:
        UserError: for a network that takes no scribbles, or whose query asks for masks.
    """

    def __init__(self, network: MemoryNetwork, **options: Any):
        if not takes_scribbles(network):
            raise UserError(f"this network takes no scribbles; {', '.join(scribbled_networks())} do")
        if network.parts.siamese or network.parts.prior != "none":
            raise UserError(
                "sessions need a network whose query sees the frame alone, found "
                f"siamese={network.parts.siamese}, prior={network.parts.prior!r}; build it without"
            )
        self._propagator = Propagator(network, **options)
        self.network = self._propagator.network

    @torch.inference_mode()
    def encode(
        self, frame: np.ndarray, position: int, objects: Sequence[int], masks: torch.Tensor, scribbles: np.ndarray
    ) -> UserFrame:
        """Remember a frame with its masks so far and what is drawn on it.

        Args:
            frame: `(H, W, 3)` uint8.
            position: of the frame.
            objects: ids, ascending.
            masks: `(K, H, W)` in [0, 1], all zeros for objects that have none yet.
            scribbles: `(K, 2, H, W)` bool, positive and negative.
        """
        own = self._propagator
        drawn = torch.from_numpy(scribbles)[None].to(own.device, own.dtype)
        with own.precision():
            found = self.network.encode_memory(self._image(frame), masks[None].to(own.device, own.dtype), drawn)
        return UserFrame(position, tuple(objects), tuple(x[0] for x in found))

    @torch.inference_mode()
    def segment(self, frame: np.ndarray, objects: Sequence[int], memory: Sequence[UserFrame]) -> torch.Tensor:
        """Probabilities `(K + 1, H, W)` of all objects in one frame, background first."""
        foreground = {}
        with self._propagator.precision():
            query = self.network.encode_query(self._image(frame))
            for group, frames in _groups(objects, memory):
                kinds = zip(*(remembered.of(group) for remembered in frames), strict=True)
                read = self.network.read(query, *(torch.stack(kind, dim=2)[None] for kind in kinds))
                logits = self.network.decode(query, read)[0]
                foreground.update(zip(group, logits.to(self._propagator.dtype).sigmoid(), strict=True))
            return self.network.aggregate(torch.stack([foreground[k] for k in objects])[None])[0]

    def _image(self, frame: np.ndarray) -> torch.Tensor:
        own = self._propagator
        # NumPy's frames may be read-only, which torch warns of.
        return torch.tensor(frame).to(own.device).permute(2, 0, 1)[None].to(own.dtype) / 255


def _groups(objects: Sequence[int], memory: Sequence[UserFrame]) -> list[tuple[list[int], list[UserFrame]]]:
    """Objects that read the same frames, and these frames."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for k in objects:
        groups.setdefault(tuple(i for i, remembered in enumerate(memory) if k in remembered.objects), []).append(k)
    return [(group, [memory[i] for i in frames]) for frames, group in groups.items()]


def scribbled_networks() -> list[str]:
    """Names of networks that take scribbles."""
    return [
        name
        for name, sizes in NETWORKS.items()
        if any(getattr(parts, "memory_input", None) == "mask+scribbles" for parts in sizes.values())
    ]
