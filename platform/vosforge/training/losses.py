"""Losses on aggregated logits, and on assessed quality."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from vosforge.training.batches import object_ious


def cross_entropy(logits: torch.Tensor, masks: torch.Tensor, share: float = 1.0) -> torch.Tensor:
    """Cross-entropy over pixels, averaged over the hardest share of each frame.

    Args:
        logits: `(B, T, K + 1, H, W)`, background first.
        masks: `(B, T, H, W)` int64 in 0..K.
        share: 1 averages all pixels; below 1 only the hardest ones count (bootstrapped cross-entropy).

    Returns:
        A scalar.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), masks.flatten(0, 1), reduction="none").flatten(1)
    if share < 1:
        losses = losses.topk(max(1, int(share * losses.shape[1])), dim=1).values
    return losses.mean()


def binary_cross_entropy(logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each object against all that is not it, averaged over pixels and objects (QPM, 3.1).

    Args:
        logits: `(B, T, K + 1, H, W)`, background first.
        masks: `(B, T, H, W)` int64 in 0..K.
        valid: `(B, K)` bool, which objects there are.

    Returns:
        A scalar, 0 where no object is.
    """
    total = logits.logsumexp(dim=2)
    losses = []
    for k in range(1, logits.shape[2]):
        others = torch.cat([logits[:, :, :k], logits[:, :, k + 1 :]], dim=2).logsumexp(dim=2)
        losses.append((total - torch.where(masks == k, logits[:, :, k], others)).mean(dim=(1, 2, 3)))
    return _over_objects(torch.stack(losses, dim=1), valid)


def soft_jaccard(logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One minus the overlap over the union of probable and true pixels, mean over objects and frames (CFBI; AOT).

    Args:
        logits, masks, valid: as `binary_cross_entropy`.
    """
    return _over_objects(1 - _overlaps(logits, masks, lambda both, sums: (both + 1) / (sums - both + 1)), valid)


def dice(logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One minus twice the overlap over the sum of probable and true pixels, mean over objects and frames (XMem).

    Args:
        logits, masks, valid: as `binary_cross_entropy`.
    """
    return _over_objects(1 - _overlaps(logits, masks, lambda both, sums: (2 * both + 1) / (sums + 1)), valid)


def _overlaps(
    logits: torch.Tensor, masks: torch.Tensor, measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """A measure `(B, K)` of each object's overlap and sum of pixels, mean over frames."""
    probabilities = logits.softmax(dim=2)[:, :, 1:].flatten(3)
    ids = torch.arange(1, logits.shape[2], device=masks.device)[:, None]
    truth = (masks.flatten(2)[:, :, None] == ids).to(probabilities.dtype)
    both, sums = (probabilities * truth).sum(dim=3), (probabilities + truth).sum(dim=3)
    return measure(both, sums).mean(dim=1)


def _over_objects(losses: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The mean over clips of the mean of `(B, K)` losses over the objects that each has.

    Every clip weighs the same, so that a batch shared by workers, or taken in pieces, costs what it does as a whole.
    """
    return ((losses * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()


def quality_loss(scores: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean squared error of assessed quality from the masks' true IoU (QPM, 2.2 and 3.1).

    Args:
        scores: `(B, T, K)`.
        logits: `(B, T, K + 1, H, W)`, background first; no gradient flows into them.
        masks: `(B, T, H, W)` int64 in 0..K.
        valid: `(B, K)` bool, which objects there are.

    Returns:
        A scalar, 0 where no object is.
    """
    errors = (scores - object_ious(logits.detach(), masks)).square()
    return _over_objects(errors.mean(dim=1), valid)
