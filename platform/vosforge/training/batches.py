"""Batches: clips as the tensors that a network trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from vosforge.clip import Clip


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips of one length and size.

    Attributes:
        frames: `(B, T, 3, H, W)` float in [0, 1].
        masks: `(B, T, H, W)` int64 ids 0..K.
        first_masks: `(B, K, H, W)` float, one plane an object of frame 0.
        valid: `(B, K)` bool, which planes hold an object; K is the largest number in the batch.
    """

    frames: torch.Tensor
    masks: torch.Tensor
    first_masks: torch.Tensor
    valid: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(
            *(
                tensor.to(device, non_blocking=True)
                for tensor in (self.frames, self.masks, self.first_masks, self.valid)
            )
        )

    def pieces(self, count: int) -> list[Batch]:
        """The batch in equal parts, in order."""
        size = len(self.frames) // count
        tensors = (self.frames, self.masks, self.first_masks, self.valid)
        return [Batch(*(tensor[n * size : (n + 1) * size] for tensor in tensors)) for n in range(count)]


def make_batch(clips: list[Clip]) -> Batch:
    """Collate clips whose objects are numbered 1..K; clips of fewer objects leave planes empty."""
    frames = torch.from_numpy(np.stack([clip.frames for clip in clips])).permute(0, 1, 4, 2, 3).float() / 255
    masks = torch.from_numpy(np.stack([clip.masks for clip in clips])).long()
    objects = max(1, int(masks[:, 0].max()))
    first_masks = torch.stack([masks[:, 0] == i for i in range(1, objects + 1)], dim=1)
    return Batch(frames, masks, first_masks.float(), first_masks.flatten(2).any(dim=2))


def one_object(clip: Clip, *key: int) -> Clip:
    """The clip with one of the objects of its frame 0 alone, drawn at random (EMN, 3.1).

    Args:
        clip: named by its number in the stage; its objects are numbered 1..K.
        key: with that number decides the draw, so that it is the same on any number of workers.
    """
    objects = np.unique(clip.masks[0][clip.masks[0] > 0])
    if not len(objects):
        return clip
    chosen = np.random.default_rng([*key, int(clip.name)]).choice(objects)
    return replace(clip, masks=(clip.masks == chosen).astype(np.uint8))


def mean_jaccard(logits: torch.Tensor, batch: Batch) -> float:
    """Mean IoU of the objects over the last frames of a batch, as many as there are logits; 1 where both are empty."""
    ious = object_ious(logits, batch.masks[:, -logits.shape[1] :])
    return float(ious[batch.valid[:, None].expand_as(ious)].mean())


def object_ious(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """IoU `(B, T, K)` of each object's most probable pixels with its mask; 1 where both are empty.

    Args:
        logits: `(B, T, K + 1, H, W)`, background first.
        masks: `(B, T, H, W)` int64 in 0..K.
    """
    predicted = logits.argmax(dim=2)
    ious = []
    for i in range(1, logits.shape[2]):
        a, b = predicted == i, masks == i
        union = (a | b).sum(dim=(-1, -2))
        overlap = (a & b).sum(dim=(-1, -2))
        ious.append(torch.where(union > 0, overlap / union.clamp(min=1), 1.0))
    return torch.stack(ious, dim=2)
