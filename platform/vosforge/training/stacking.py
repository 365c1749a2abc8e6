"""Training the stacking network that merges an ensemble's members (CAMN, 2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.networks.stacking import StackingNetwork
from vosforge.propagation import Ensemble, Segmenter
from vosforge.propagation.segmenter import Around

Example = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A frame `(3, H, W)`, the members' probabilities `(M, K + 1, H, W)` of it, and the true channel `(H, W)` int64."""


class _Heard(Around):
    """A member whose latest answer is kept."""

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        self.answer = self.member.predict(frame)
        return self.answer

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        self.hand_on(self.member, frame, probabilities, given)

    def fresh(self) -> _Heard:
        return _Heard(self.member.fresh())


def stacking_examples(members: Sequence[Segmenter], clips: Iterable[Clip]) -> list[Example]:
    """What members answer on clips when their average is what all remember.

    Args:
        members: fresh segmenters.
        clips: annotated, with their objects in the first frame; those without objects give nothing.
    """
    examples = []
    for clip in clips:
        heard = [_Heard(member.fresh()) for member in members]
        ensemble = Ensemble(heard)
        for t, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
            ensemble.step(frame, mask if t == 0 else None)
            if t == 0 and not ensemble.objects:
                break
            if t:
                known = np.array([0, *ensemble.objects])
                truth = np.where(np.isin(mask, known), np.searchsorted(known, mask), 0)
                answers = torch.stack([member.answer.float().cpu() for member in heard])
                seen = torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255
                examples.append((seen, answers, torch.from_numpy(truth)))
    return examples


def train_stacking(examples: Sequence[Example], steps: int = 300, rate: float = 3e-3, seed: int = 0) -> StackingNetwork:
    """A stacking network that learnt from examples, by cross-entropy; it starts as the members' average.

    The paper names neither its data nor its training.

    Args:
        examples: of `stacking_examples`.
        steps: of Adam, one example each.
        rate: of Adam.
        seed: of weights and order.

    Raises:
        UserError: when there is no example.
    """
    if not examples:
        raise UserError("stacking: expected clips with objects to learn from, found none")
    torch.manual_seed(seed)
    network = StackingNetwork(len(examples[0][1]))
    optimizer = torch.optim.Adam(network.parameters(), rate)
    rng = np.random.default_rng([seed, len(examples)])
    for step in range(steps):
        frame, answers, truth = examples[int(rng.integers(len(examples)))]
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        loss = F.cross_entropy(network(frame[None], answers[None]), truth[None])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return network.eval()
