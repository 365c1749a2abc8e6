"""Ensembles: several segmenters as one, and one segmenter on several views of its video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from vosforge.errors import UserError
from vosforge.networks.stacking import StackingNetwork
from vosforge.propagation.segmenter import Around, Segmenter

How = Literal["average", "vote"]


@dataclass(frozen=True)
class FlipAndScales:
    """Test-time augmentation: every member also sees its video mirrored and at other sizes (SKN, CAMN).

    Attributes:
        flip: mirrored left to right, too.
        scales: factors on the frame's sides.

    Raises:
        UserError: for a scale that is not positive, or none.
    """

    flip: bool = True
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise UserError(f"scales must be positive factors, at least one, found {self.scales}")

    def views(self, segmenter: Segmenter) -> list[Segmenter]:
        """The segmenter once for every scale and direction, each with a memory of its own."""
        mirrored = (False, True) if self.flip else (False,)
        return [View(segmenter.fresh(), scale, mirror) for scale in self.scales for mirror in mirrored]


class View(Around):
    """A segmenter that sees frames scaled and mirrored, and answers in the frame's own form.

    Args:
        member: a fresh segmenter.
        scale: factor on the frame's sides.
        mirror: left to right.
    """

    def __init__(self, member: Segmenter, scale: float = 1.0, mirror: bool = False):
        super().__init__(member)
        self.scale = scale
        self.mirror = mirror

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """The member's probabilities, mirrored back and at the frame's size."""
        found = self.member.predict(self._seen(frame))[None]
        found = found.flip(-1) if self.mirror else found
        return _resized(found, (frame.shape[-2], frame.shape[-1]))[0]

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Hand frame and probabilities to the member as it sees them."""
        self.hand_on(self.member, self._seen(frame), self._seen(probabilities[None])[0], given)

    def fresh(self) -> View:
        """A view of a fresh member."""
        return View(self.member.fresh(), self.scale, self.mirror)

    def _seen(self, x: torch.Tensor) -> torch.Tensor:
        size = tuple(max(1, round(side * self.scale)) for side in x.shape[-2:])
        x = _resized(x, size)
        return x.flip(-1) if self.mirror else x


class Ensemble(Segmenter):
    """Several segmenters as one: merged at every frame, each member keeps its own memory.

    Every member memorises the merged masks, so that all remember the same. An ensemble is a segmenter too, and may be
    a member of another one.

    Args:
        members: fresh segmenters, at least one.
        augment: views that every member gets; None for the frame alone.
        how: "average" of probabilities; "vote", each member for its most probable object, ties by the average; or a
            stacking network for that many members (CAMN, 2.3).
        counts: how often each member counts in averages and votes; None counts all once.

    Raises:
        UserError: when there is no member, for an unknown way, a stacking network for another number of members, or
            other counts than one whole number from 1 a member.
    """

    def __init__(
        self,
        members: Sequence[Segmenter],
        augment: FlipAndScales | None = None,
        how: How | StackingNetwork = "average",
        counts: Sequence[int] | None = None,
    ):
        if not members:
            raise UserError("an ensemble needs at least one member")
        strange = [member for member in members if not isinstance(member, Segmenter)]
        if strange:
            raise UserError(f"an ensemble has segmenters, as Propagator(network), found {type(strange[0]).__name__}")
        super().__init__(members[0].device)
        if isinstance(how, StackingNetwork):
            if how.members != len(members):
                raise UserError(f"the stacking network merges {how.members} members, found {len(members)}")
            how = how.to(self.device).eval()
        elif how not in get_args(How):
            raise UserError(f"unknown way to merge {how!r}; valid: {', '.join(get_args(How))}, or a stacking network")
        self.how = how
        self.counts = check_counts(counts, len(members))
        # Views of one member are averaged first: they are one opinion.
        self.members = [_merged(member, augment) for member in members]

    @torch.inference_mode()
    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """The members' probabilities, merged."""
        found = torch.stack([member.predict(frame).to(self.device) for member in self.members])
        if isinstance(self.how, StackingNetwork):
            if not self.objects:
                return found.mean(dim=0)
            return self.how(frame.float(), found[None].float())[0].softmax(dim=0)
        return merge(found, self.how, self.counts)

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Hand the merged probabilities to every member."""
        for member in self.members:
            self.hand_on(member, frame, probabilities, given)

    @property
    def memory(self) -> list[dict[str, object]]:
        """What every member remembers, one after the other."""
        return [held for member in self.members for held in member.memory]

    @property
    def quality(self) -> dict[int, float]:
        """Mean over the members that assess their masks; empty where none does."""
        told = [quality for member in self.members if (quality := member.quality)]
        return {i: sum(quality[i] for quality in told) / len(told) for i in (told[0] if told else ())}

    def forget(self, objects: Sequence[int]) -> None:
        """Have every member forget them."""
        for member in self.members:
            member.remove(*objects)

    def fresh(self) -> Ensemble:
        """An ensemble of fresh members."""
        return Ensemble([member.fresh() for member in self.members], how=self.how, counts=self.counts)


def merge(found: torch.Tensor, how: How, counts: Sequence[int]) -> torch.Tensor:
    """Members' probabilities `(M, ..., K + 1, H, W)`, whose classes are the third dimension from the end, as one.

    Args:
        found: in [0, 1].
        how: "average" or "vote".
        counts: how often each member counts.
    """
    total = sum(counts)
    share = torch.tensor(counts, dtype=found.dtype, device=found.device).view(-1, *[1] * (found.ndim - 1))
    average = (found * share).sum(dim=0) / total
    if how == "average":
        return average
    own = F.one_hot(found.max(dim=-3).indices, found.shape[-3]).movedim(-1, -3)
    # Averages are at most 1: they settle ties, and no majority.
    return ((own * share).sum(dim=0) + average) / (total + 1)


def check_counts(counts: Sequence[int] | None, members: int) -> tuple[int, ...]:
    """The counts, 1 for each member where there are none.

    Raises:
        UserError: for others than one whole number from 1 a member.
    """
    if counts is None:
        return (1,) * members
    whole = isinstance(counts, list | tuple) and all(type(count) is int and count > 0 for count in counts)
    if not whole or len(counts) != members:
        raise UserError(f"counts: expected a whole number from 1 for each of {members} members, found {counts}")
    return tuple(counts)


def _merged(member: Segmenter, augment: FlipAndScales | None) -> Segmenter:
    """The member, or the average of its views."""
    return member if augment is None else Ensemble(augment.views(member))


def _resized(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """`(B, C, H, W)` bilinearly at another size, without aliasing."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
