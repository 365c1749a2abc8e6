"""Turning per-object foreground probabilities into one distribution over background and objects."""

from __future__ import annotations

import torch

_CLAMP = 1e-7


def soft_aggregate(probabilities: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Soft aggregation of independently decoded objects.

    The background's probability is the product of `1 - p_i`; every probability is clamped to
    `[1e-7, 1 - 1e-7]` and turned into its logit; the softmax of the result is the aggregated distribution.

    Args:
        probabilities: `(B, K, H, W)` foreground probability of each object, in [0, 1].
        valid: `(B, K)` bool, False for slots of the batch that hold no object: they get probability 0 after
            the softmax, exactly as if they were not there.

    Returns:
        `(B, K + 1, H, W)` logits, background first; float32 for half-precision probabilities.

    Source: STM (Oh et al. 2019), section 3.4 "soft aggregation", with the published code's clamp.
    """
    # In half precision 1 - 1e-7 rounds to 1, whose logit is infinite.
    if probabilities.dtype in (torch.float16, torch.bfloat16):
        probabilities = probabilities.float()
    background = (1 - probabilities).prod(dim=1, keepdim=True)
    if valid is not None:
        absent = ~valid[:, :, None, None]
        background = (1 - probabilities.masked_fill(absent, 0.0)).prod(dim=1, keepdim=True)
    clamped = torch.cat([background, probabilities], dim=1).clamp(_CLAMP, 1 - _CLAMP)
    logits = torch.log(clamped / (1 - clamped))
    if valid is not None:
        objects = logits[:, 1:].masked_fill(absent, float("-inf"))
        logits = torch.cat([logits[:, :1], objects], dim=1)
    return logits
