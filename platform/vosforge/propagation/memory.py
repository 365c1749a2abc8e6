"""The memory bank: which frames are remembered, and which one goes when the budget is full."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal, get_args

import torch

from vosforge.errors import UserError
from vosforge.settings import Eviction

Policy = Literal["previous", "every", "ends", "given", "latest"]
# Videos have no end; of the frames that went only the latest are told.
_TOLD = 1000
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Remembered:
    """One remembered frame.

    Attributes:
        index: the frame's position in the video.
        permanent: never evicted (the frame where the objects were given).
        lasting: good enough to stay when it is no longer the previous frame.
        quality: assessed quality of its masks, 1 where none is.
        tensors: what the network remembers of it, key `(K, CK, h, w)` and value `(K, CV, h, w)`; K = 1 where all
            objects share one.
    """

    index: int
    permanent: bool
    lasting: bool
    tensors: tuple[torch.Tensor, ...]
    quality: float = 1.0


class MemoryBank:
    """The remembered frames of objects that entered the video together.

    Frames whose masks were given are always held. Beside them the policy "previous" holds the latest frame and
    every N-th (STM unified, 3.1), "every" every N-th alone (STCN), "ends" the latest alone (CFBI+), and "given" none
    (STM unified, 3.2). Only "latest" holds nothing but the latest frame, given or not, as propagation without a memory
    does. When the budget would be exceeded, of the frames that are neither given nor the latest the oldest goes, or
    the one whose quality plus `exp(-age)` is least.

    Args:
        every: N.
        budget: most frames held, at least 2; None keeps all, as the papers do.
        policy: one of the five.
        eviction: "oldest" or "quality".

    Raises:
        UserError: for N below 1, a budget below 2, an unknown policy or eviction.
    """

    def __init__(
        self, every: int, budget: int | None = None, policy: Policy = "previous", eviction: Eviction = "oldest"
    ):
        if not isinstance(every, Integral) or every < 1:
            raise UserError(f"memory_every must be a whole number of at least 1, found {every!r}")
        if budget is not None and budget < 2:
            raise UserError(f"budget must be at least 2 frames (first and previous) or None, found {budget}")
        if policy not in get_args(Policy):
            raise UserError(f"unknown memory policy {policy!r}; valid: {', '.join(get_args(Policy))}")
        if eviction not in get_args(Eviction):
            raise UserError(f"unknown eviction {eviction!r}; valid: {', '.join(get_args(Eviction))}")
        self.every = every
        self.eviction = eviction
        self.budget = budget
        self.policy = policy
        self.held: list[Remembered] = []
        self._evicted: deque[int] = deque(maxlen=_TOLD)

    def wants(self, index: int, permanent: bool) -> bool:
        """Whether a frame would be held at all, so that what is not wanted need not be encoded."""
        kept = {"every": index % self.every == 0, "given": False}
        return permanent or kept.get(self.policy, True)

    def add(
        self,
        index: int,
        tensors: tuple[torch.Tensor, ...],
        permanent: bool,
        lasting: bool = True,
        quality: float = 1.0,
    ) -> None:
        """Remember a frame; the one before it stays only if it is permanent, or lasting and its turn among every N."""
        if self.policy == "every" and not permanent and not lasting:
            return
        if self.policy == "latest":
            self.held.clear()
        if self.held and not self.held[-1].permanent:
            latest = self.held[-1]
            if self.policy == "ends" or latest.index % self.every or not latest.lasting:
                self.held.pop()
        self.held.append(Remembered(index, permanent, lasting, tensors, quality))
        while self.budget is not None and len(self.held) > self.budget and self.evict():
            pass

    def evict(self) -> bool:
        """Drop one frame by the rule; whether there was one that may go."""
        free = [i for i, frame in enumerate(self.held[:-1]) if not frame.permanent]
        if not free:
            return False
        latest = self.held[-1].index

        def worth(i: int) -> float:
            return self.held[i].quality + math.exp(self.held[i].index - latest)

        chosen = free[0] if self.eviction == "oldest" else min(free, key=worth)
        self._evicted.append(self.held.pop(chosen).index)
        return True

    def select(self, kept: list[int], total: int) -> None:
        """Keep some of the objects, by their position among all."""
        self.held = [
            replace(frame, tensors=tuple(x[kept] if len(x) == total > 1 else x for x in frame.tensors))
            for frame in self.held
        ]

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
    def evicted(self) -> list[int]:
        """Positions of the latest frames that were evicted, in the order in which they went."""
        return list(self._evicted)

    @property
    def bytes(self) -> int:
        """Memory taken by keys and values."""
        return sum(tensor.nbytes for frame in self.held for tensor in frame.tensors)


def parse_budget(budget: int | str | None) -> tuple[int | None, int | None]:
    """A budget as most frames and most bytes, one of them None; both for no budget.

    Args:
        budget: frames as 24 or "24", bytes as "512MiB" or "2GB", or no limit as None or "unlimited".

    Raises:
        UserError: for something that is neither a number of frames nor a size such as "512MiB".
    """
    if budget is None or type(budget) is int:
        return budget, None
    if str(budget).strip().lower() == "unlimited":
        return None, None
    if str(budget).strip().isdecimal():
        return int(budget), None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", str(budget).upper())
    if not match or float(match[1]) == 0:
        raise UserError(f"budget must be a number of frames, or bytes as '512MiB' or '2GB', found {budget!r}")
    return None, int(float(match[1]) * _UNITS[match[2]])
