"""Losses on aggregated logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F


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
