"""What every memory network shares: its per-frame functions and the training forward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.clip import MAX_OBJECTS
from vosforge.errors import UserError
from vosforge.networks.aggregation import aggregate, soft_aggregate
from vosforge.networks.encoders import IMAGENET_MEAN
from vosforge.networks.parts import Parts
from vosforge.networks.quality import relative


class Query(NamedTuple):
    """A frame encoded to be segmented.

    Attributes:
        key: `(B, K, CK, h, w)`, or K = 1 where all objects share it.
        value: `(B, K, CV, h, w)`, likewise.
        features: `(B, C, h, w)`, the frame's coarsest feature map.
        skips: the frame's finer feature maps, fine to coarse, the last `(B, C', 2h, 2w)`.
        size: (H, W) of the frame before padding.
        previous: `(B, K, h, w)` mean of each object's mask in the frame before, for readers that ask where it was.
    """

    key: torch.Tensor
    value: torch.Tensor
    features: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    size: tuple[int, int]
    previous: torch.Tensor | None = None

    def of(self, objects: Sequence[int]) -> Query:
        """The query for some of the objects, by their position."""
        columns = list(objects)
        previous = None if self.previous is None else self.previous[:, columns]
        if self.key.shape[1] == 1:
            return self._replace(previous=previous)
        return self._replace(key=self.key[:, columns], value=self.value[:, columns], previous=previous)


class Prediction(NamedTuple):
    """What a training step sees of a clip.

    Attributes:
        logits: `(B, T - 1, K + 1, H, W)` for frames 1 to T - 1, background first.
        scores: `(B, T - 1, K)` assessed quality of each object's mask there; None for networks that assess none.
    """

    logits: torch.Tensor
    scores: torch.Tensor | None = None


Draw = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""Estimates `(B, T, K, H, W)` and the number of a round -> frames touched `(B,)`, scribbles `(B, K, 2, H, W)`."""


class MemoryNetwork(nn.Module, ABC):
    """A space-time memory network: its per-frame functions, which a network provides, and what follows from them.

    * `encode_target(frames, masks) -> targets`, what is kept of an object from the frame where its mask was given
    * `encode_query(frames, targets, previous, prior) -> Query`
    * `encode_memory(frames, masks) -> (key, value)`
    * `read(query, memory_key, memory_value) -> (B, K, C, h, w)`
    * `decode(query, read) -> (B, K, H, W)` foreground logits
    * `assess(frames, masks) -> (B, K)`, how good the masks are

    Frames of any size are padded to the stride inside and predictions cropped back.

    Args:
        parts: what the network is made of; how it is used (padding, memory, aggregation) is among them.
    """

    description: dict[str, Any]
    # Whether objects are decoded together, background and all, so that `decode` gives K + 1 logits.
    joint = False

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts
        self.stride = parts.strides[-1]

    def encode_target(self, frames: torch.Tensor, masks: torch.Tensor) -> torch.Tensor | None:
        """What a query needs to know of `(B, K, H, W)` objects given in `(B, 3, H, W)` frames, `(B, K, ...)`.

        None for networks whose query needs nothing.
        """
        return None

    @abstractmethod
    def encode_query(
        self,
        frames: torch.Tensor,
        targets: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        prior: torch.Tensor | None = None,
    ) -> Query:
        """Encode frames that shall be segmented.

        Args:
            frames: `(B, 3, H, W)` in [0, 1].
            targets: as `encode_target` made them, for networks that ask for them.
            previous: `(B, K, H, W)` masks of the frame before, for networks that look near them.
            prior: `(B, K, H, W)` masks that enhance the query; those of the frame before by default.
        """

    @abstractmethod
    def encode_memory(
        self,
        frames: torch.Tensor,
        masks: torch.Tensor,
        scribbles: torch.Tensor | None = None,
        query: Query | None = None,
        given: bool = True,
    ) -> tuple[torch.Tensor, ...]:
        """Encode `(B, 3, H, W)` frames with `(B, K, H, W)` object probabilities into the memory.

        Args:
            frames: in [0, 1].
            masks: in [0, 1].
            scribbles: `(B, K, 2, H, W)` in {0, 1}, positive and negative, for networks that take them.
            query: the same frames encoded as query, if at hand; networks that share keys then save that work.
            given: whether these masks were given, not predicted, for networks that remember the two differently.

        Returns:
            What is remembered, each tensor with its objects, or one for all, in dimension 1: in space-time networks
            key `(B, K, CK, h, w)`, or K = 1 where all objects share it, and value `(B, K, CV, h, w)`.
        """

    @abstractmethod
    def read(self, query: Query, *memory: torch.Tensor) -> torch.Tensor:
        """Read T remembered frames, stacked in dimension 3 (`(B, K or 1, CK, T, h, w)`, ...), for each object."""

    @abstractmethod
    def decode(self, query: Query, read: torch.Tensor) -> torch.Tensor:
        """Foreground logits `(B, K, H, W)` of each object from its read."""

    def admit(self, memory: tuple[torch.Tensor, ...], positions: Sequence[int], total: int) -> tuple[torch.Tensor, ...]:
        """A remembered frame's tensors after more objects entered, for networks that decode all of them together.

        Args:
            memory: as `encode_memory` gave them, without the batch.
            positions: where the objects of the memory now stand.
            total: objects now.
        """
        raise NotImplementedError("objects of this network have memories of their own")

    def assess(self, frames: torch.Tensor, masks: torch.Tensor) -> torch.Tensor | None:
        """Quality `(B, K)` of `(B, K, H, W)` masks in `(B, 3, H, W)` frames, an estimate of their IoU.

        None for networks that assess none.
        """
        return None

    def aggregate(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Background and objects, `(B, K + 1, H, W)`, from each object's `(B, K, H, W)` probability, at test."""
        return aggregate(probabilities, self.parts.aggregation)

    def segment(self, query: Query, *memory: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `(B, K + 1, H, W)` of background and objects: read, decode, soft aggregation.

        A network that trains one object at a time answers its decoder's two classes in training (EMN, 3.2).
        """
        foreground = self.decode(query, self.read(query, *memory))
        if self.training and self.parts.training_objects == "one" and foreground.shape[1] == 1:
            return torch.cat([torch.zeros_like(foreground), foreground], dim=1)
        return soft_aggregate(foreground.sigmoid(), valid)

    def forward(
        self,
        frames: torch.Tensor,
        first_masks: torch.Tensor,
        valid: torch.Tensor | None = None,
        scribbles: torch.Tensor | None = None,
        spoil: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        draw: Draw | None = None,
        rounds: int = 1,
    ) -> Prediction:
        """Segment a clip from its first masks, with gradients through the memory; with `draw`, as `interact`.

        Frame 0 is memorised with its true masks; each later frame reads all frames before it, and is itself
        memorised with its soft prediction. With the memory policy "given" frame 0 alone is memorised, with "ends"
        that and the previous one. Masks are assessed, and serve as priors, without gradients into them.

        Args:
            frames: `(B, T, 3, H, W)` in [0, 1], T >= 2.
            first_masks: `(B, K, H, W)` in [0, 1], the objects of frame 0.
            valid: `(B, K)` bool, which slots hold an object; all by default.
            scribbles: `(B, K, 2, H, W)` on frame 0, for networks that take them.
            spoil: what a frame's estimate `(B, K, H, W)` and position become before it is memorised and serves as the
                previous mask (SKN, section 3); predictions stay as they are.
            draw, rounds: of `interact`.

        Raises:
            UserError: for tensors of another form, naming what was expected and found.
        """
        if draw is not None:
            # Parallel networks are entered here alone.
            return self.interact(frames, draw, rounds, valid)
        self._check_clip(frames)
        self.check(frames[:, 0], first_masks)
        if valid is not None and (valid.shape != first_masks.shape[:2] or valid.dtype != torch.bool):
            raise UserError(
                f"valid must be (B, K) = {tuple(first_masks.shape[:2])} bool like the masks, "
                f"found {tuple(valid.shape)} {valid.dtype}"
            )
        size = (frames.shape[-2], frames.shape[-1])
        if self.parts.memorise_margin:
            frames = self.pad_frames(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            first_masks = pad_to_stride(first_masks, self.stride)
            if scribbles is not None and scribbles.shape[-2:] == size:
                scribbles = pad_to_stride(scribbles, self.stride)
        targets = self.encode_target(frames[:, 0], first_masks)
        memories, predictions, scores = [], [], [self.assess(frames[:, 0], first_masks)]
        masks, query = first_masks, None
        for t in range(1, frames.shape[1]):
            if t == 1 or self.parts.memory_policy != "given":
                drawn = scribbles if t == 1 else None
                memories.append(self.encode_memory(frames[:, t - 1], masks, drawn, query, given=t == 1))
            previous = masks.detach()
            prior = self.choose_prior(previous, first_masks, scores[-1], scores[0])
            query = self.encode_query(frames[:, t], targets, previous, prior)
            if self.parts.memory_policy == "ends" and len(memories) > 2:
                memories = [memories[0], memories[-1]]
            if self.parts.memory_policy == "latest":
                memories = memories[-1:]
            logits = self.segment(
                query, *(torch.stack(kind, dim=3) for kind in zip(*memories, strict=True)), valid=valid
            )
            predictions.append(logits)
            masks = logits.softmax(dim=1)[:, 1:]
            scores.append(self.assess(frames[:, t], masks.detach()))
            masks = masks if spoil is None else spoil(masks, t)
        assessed = None if scores[0] is None else torch.stack(scores[1:], dim=1)
        return Prediction(crop_to(torch.stack(predictions, dim=1), size), assessed)

    def interact(
        self,
        frames: torch.Tensor,
        draw: Draw,
        rounds: int,
        valid: torch.Tensor,
    ) -> Prediction:
        """Segment all frames of a clip in rounds: a user draws on one, and every frame reads those touched so far.

        Frames touched are remembered with their masks of the round before, which are empty at first, and no gradient
        flows into those (STM unified, 3.2).

        Args:
            frames: `(B, T, 3, H, W)` in [0, 1].
            draw: what a user does on seeing estimates `(B, T, K, H, W)` before a round: the frames touched `(B,)`, and
                scribbles `(B, K, 2, H, W)` there.
            rounds: how many.
            valid: `(B, K)` bool, which slots hold an object.

        Returns:
            Logits `(B, rounds * T, K + 1, H, W)`, all frames of the first round first.
        """
        self._check_clip(frames)
        count, length = frames.shape[:2]
        query = self.encode_query(frames.flatten(0, 1))
        masks = frames.new_zeros(count, length, valid.shape[1], *frames.shape[-2:])
        there = valid.repeat_interleave(length, dim=0)
        rows, memories, found = torch.arange(count, device=frames.device), [], []
        for number in range(rounds):
            touched, scribbles = draw(masks.detach(), number)
            memories.append(self.encode_memory(frames[rows, touched], masks[rows, touched].detach(), scribbles))
            memory = (torch.stack(kind, dim=3) for kind in zip(*memories, strict=True))
            logits = self.segment(query, *(x.repeat_interleave(length, dim=0) for x in memory), valid=there)
            logits = crop_to(logits, (frames.shape[-2], frames.shape[-1]))
            found.append(logits.unflatten(0, (count, length)))
            masks = found[-1].softmax(dim=2)[:, :, 1:]
        return Prediction(torch.cat(found, dim=1), None)

    def choose_prior(
        self, previous: torch.Tensor, first: torch.Tensor, score: torch.Tensor | None, first_score: torch.Tensor | None
    ) -> torch.Tensor:
        """The masks that enhance the next query (QPM, 2.3): the previous frame's, or where they are poor the first's.

        Args:
            previous, first: `(B, K, H, W)`.
            score, first_score: `(B, K)` of both, as `assess` gave them.
        """
        if score is None or first_score is None:
            return previous
        reliable = relative(score, first_score) > self.parts.prior_threshold
        return torch.where(reliable[:, :, None, None], previous, first)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Pad `(..., H, W)` with zeros to sizes that the network takes; `crop_to` undoes it."""
        return pad_to_stride(x, self.stride)

    def pad_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Pad `(B, 3, H, W)` frames to multiples of the stride, with the padding that the parts name."""
        padded = self.pad(frames)
        if self.parts.padding == "black" or padded.shape == frames.shape:
            return padded
        margin = 1 - self.pad(torch.ones_like(frames[:1, :1]))
        return padded + margin * frames.new_tensor(IMAGENET_MEAN)[:, None, None]

    def check(self, frames: torch.Tensor, masks: torch.Tensor | None = None) -> None:
        """Refuse tensors that the network cannot encode.

        Raises:
            UserError: naming what was expected and found.
        """
        check_frames(frames, masks)
        if torch.compiler.is_compiling():
            return
        weight = next(self.parameters())
        for name, tensor in (("frames", frames), ("masks", masks)):
            if tensor is None:
                continue
            if tensor.device != weight.device:
                raise UserError(f"{name} are on {tensor.device}, the network is on {weight.device}; move one of them")
            if tensor.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
                raise UserError(f"{name} are {tensor.dtype}, the network is {weight.dtype}; convert one of them")
            # Masks that a training step predicted are its own affair: the loop guards its gradients.
            if name == "frames" or not self.training:
                check_values(name, tensor)

    def _check_clip(self, frames: torch.Tensor) -> None:
        if not isinstance(frames, torch.Tensor) or frames.ndim != 5 or frames.shape[1] < 2:
            found = tuple(frames.shape) if isinstance(frames, torch.Tensor) else type(frames).__name__
            raise UserError(f"frames must be a tensor (B, T, 3, H, W) with T of at least 2, found {found}")


def pad_to_stride(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Pad `(..., H, W)` with zeros on all sides, the odd pixel at the end, to multiples of the stride."""
    bottom, right = (-x.shape[-2]) % stride, (-x.shape[-1]) % stride
    return F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))


def crop_to(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Undo `pad_to_stride`: cut `(..., H', W')` back to `(..., H, W)`."""
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


def check_frames(frames: torch.Tensor, masks: torch.Tensor | None = None) -> None:
    """Refuse tensors that no network can encode.

    Raises:
        UserError: naming what was expected and found.
    """
    if not isinstance(frames, torch.Tensor) or not isinstance(masks, (torch.Tensor, type(None))):
        raise UserError(f"frames and masks must be tensors, found {type(frames).__name__} and {type(masks).__name__}")
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape or not frames.is_floating_point():
        raise UserError(f"frames must be (B, 3, H, W) float in [0, 1], found {tuple(frames.shape)} {frames.dtype}")
    if masks is None:
        return
    if masks.ndim != 4 or masks.shape[0] != frames.shape[0] or masks.shape[2:] != frames.shape[2:]:
        raise UserError(f"masks must be (B, K, H, W) like the frames {tuple(frames.shape)}, found {tuple(masks.shape)}")
    if not masks.is_floating_point():
        raise UserError(f"masks must be float in [0, 1], one plane an object, found {masks.dtype}")
    if masks.shape[1] == 0:
        raise UserError("masks hold no object (K = 0): give at least one object's mask")
    if masks.shape[1] > MAX_OBJECTS:
        raise UserError(f"masks hold {masks.shape[1]} objects; a frame has at most {MAX_OBJECTS}")


def check_values(name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and values far outside [0, 1]; resampling may overshoot a little. On a GPU this would stall it."""
    if tensor.is_cuda or torch.compiler.is_compiling():
        return
    low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
    if not (low >= -0.5 and high <= 1.5):
        raise UserError(f"{name} must be in [0, 1], found {low:.4g} to {high:.4g}")
