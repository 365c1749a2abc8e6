"""The memory bank: which frames are remembered, and which one goes when the budget is full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from vosforge.errors import UserError

Policy = Literal["previous", "every", "ends", "given"]


@dataclass(frozen=True)
class Remembered:
    """One remembered frame.

    Attributes:
        index: the frame's position in the video.
        permanent: never evicted (the frame where the objects were given).
        lasting: good enough to stay when it is no longer the previous frame.
        tensors: what the network remembers of it, key `(K, CK, h, w)` and value `(K, CV, h, w)`; K = 1 where all
            objects share one.
    """

    index: int
    permanent: bool
    lasting: bool
    tensors: tuple[torch.Tensor, ...]


class MemoryBank:
    """The remembered frames of objects that entered the video together.

    Frames whose masks were given are always held. Beside them the policy "previous" holds the latest frame and
    every N-th (STM unified, 3.1), "every" every N-th alone (STCN), "ends" the latest alone (CFBI+), and "given" none
    (STM unified, 3.2). When that would exceed the budget, the oldest frame that is neither given nor the latest goes.

    Args:
        every: N.
        budget: most frames held, at least 2; None keeps all, as the papers do.
        policy: one of the four.

    Raises:
        UserError: for N below 1, a budget below 2 or an unknown policy.
    """

    def __init__(self, every: int, budget: int | None = None, policy: Policy = "previous"):
        if every < 1:
            raise UserError(f"memory_every must be at least 1, found {every}")
        if budget is not None and budget < 2:
            raise UserError(f"budget must be at least 2 frames (first and previous) or None, found {budget}")
        if policy not in get_args(Policy):
            raise UserError(f"unknown memory policy {policy!r}; valid: {', '.join(get_args(Policy))}")
        self.every = every
        self.budget = budget
        self.policy = policy
        self.held: list[Remembered] = []
        self.evicted: list[int] = []

    def wants(self, index: int, permanent: bool) -> bool:
        """Whether a frame would be held at all, so that what is not wanted need not be encoded."""
        kept = {"previous": True, "every": index % self.every == 0, "ends": True, "given": False}
        return permanent or kept[self.policy]

    def add(self, index: int, tensors: tuple[torch.Tensor, ...], permanent: bool, lasting: bool = True) -> None:
        """Remember a frame; the one before it stays only if it is permanent, or lasting and its turn among every N."""
        if self.policy == "every" and not permanent and not lasting:
            return
        if self.held and not self.held[-1].permanent:
            latest = self.held[-1]
            if self.policy == "ends" or latest.index % self.every or not latest.lasting:
                self.held.pop()
        self.held.append(Remembered(index, permanent, lasting, tensors))
        while self.budget is not None and len(self.held) > self.budget:
            oldest = next((i for i, frame in enumerate(self.held[:-1]) if not frame.permanent), None)
            if oldest is None:
                return
            self.evicted.append(self.held.pop(oldest).index)

    def widen(self, admit: Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]) -> None:
        """Give every remembered frame the form that it has after more objects entered."""
        self.held = [replace(frame, tensors=admit(frame.tensors)) for frame in self.held]

    def read(self) -> tuple[torch.Tensor, ...]:
        """All that is held: key `(1, K, CK, T, h, w)` and value `(1, K, CV, T, h, w)`."""
        kinds = zip(*(frame.tensors for frame in self.held), strict=True)
        return tuple(torch.stack(kind, dim=2)[None] for kind in kinds)

    @property
    def frames(self) -> list[int]:
        """Positions of the frames held, ascending."""
        return [frame.index for frame in self.held]

    @property
    def bytes(self) -> int:
        """Memory taken by keys and values."""
        return sum(tensor.nbytes for frame in self.held for tensor in frame.tensors)
