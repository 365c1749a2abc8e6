"""Training the stacking network that merges an ensemble's members (CAMN, 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.networks.stacking import StackingNetwork
from vosforge.propagation import Ensemble, Segmenter
from vosforge.propagation.segmenter import Around

Lesson = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Frames `(B, 3, H, W)`, the members' probabilities `(B, M, K + 1, H, W)` of them, true channels `(B, H, W)` int64."""
_LEARNING_RATE = 2e-3


class _Heard(Around):
    """A member whose latest answer is kept."""

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        self.answer = self.member.predict(frame)
        return self.answer

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        self.hand_on(self.member, frame, probabilities, given)

    def fresh(self) -> _Heard:
        return _Heard(self.member.fresh())


def fit_stacking(
    members: int, draw: Callable[[np.random.Generator], Lesson], steps: int = 200, seed: int = 0
) -> StackingNetwork:
    """A stacking network that learnt by cross-entropy, beginning from its members' average.

    The paper names neither its data nor its training.

    Args:
        members: M.
        draw: from random numbers to what one step learns from.
        steps: of Adam; its rate falls linearly to 0.
        seed: of weights and draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = StackingNetwork(members)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
    rng = np.random.default_rng(seed)
    network.train()
    for step in range(steps):
        frames, answers, truth = draw(rng)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(frames, answers), truth).backward()
        optimizer.step()
    return network.eval()


def learn_stacking(members: Sequence[Segmenter], clips: Iterable[Clip], seed: int = 0) -> StackingNetwork:
    """A stacking network that learnt from what members answer on clips.

    Args:
        members: fresh segmenters; on the clips the average of all is what each remembers.
        clips: annotated, with their objects in the first frame; those without objects give nothing.
        seed: as in `fit_stacking`.

    Raises:
        UserError: when no clip has an object.
    """
    lessons = [lesson for clip in clips for lesson in _lessons(members, clip)]
    if not lessons:
        raise UserError("stacking: expected clips with objects to learn from, found none")
    return fit_stacking(len(members), lambda rng: lessons[int(rng.integers(len(lessons)))], seed=seed)


def _lessons(members: Sequence[Segmenter], clip: Clip) -> Iterator[Lesson]:
    """One lesson from each frame after the first."""
    heard = [_Heard(member.fresh()) for member in members]
    ensemble = Ensemble(heard)
    for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        ensemble.step(frame, None if t else mask)
        if not ensemble.objects:
            return
        if t:
            known = np.array([0, *ensemble.objects])
            truth = np.where(np.isin(mask, known), np.searchsorted(known, mask), 0)
            answers = torch.stack([member.answer.float().cpu() for member in heard])
            seen = torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255
            yield seen[None], answers[None], torch.from_numpy(truth)[None]
