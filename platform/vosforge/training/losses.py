"""Losses on aggregated logits, and on assessed quality."""

from __future__ import annotations

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
    errors = (scores - object_ious(logits.detach(), masks)).square() * valid[:, None]
    return errors.sum() / (valid.sum() * scores.shape[1]).clamp(min=1)
