"""Merging objects that were decoded apart into one map a frame."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from vosforge.errors import UserError

Aggregation = Literal["soft", "winner-take-all", "none"]
_CLAMP = 1e-7


def aggregate(probabilities: torch.Tensor, how: Aggregation = "soft") -> torch.Tensor:
    """Background and objects at test, from each object's own probability (EMN table 1).

    * "soft": the softmax of `soft_aggregate`.
    * "winner-take-all": probabilities of all but the strongest object of a pixel are set to zero.
    * "none": every object keeps its own probability.

    In the latter two the background is what the strongest object leaves, so that a pixel is an object's where its
    probability exceeds one half; with "none" a pixel's probabilities may sum to more than 1.

    Args:
        probabilities: `(B, K, H, W)` foreground probability of each object, in [0, 1].
        how: one of the three.

    Returns:
        `(B, K + 1, H, W)` probabilities, background first; float32 for half-precision probabilities with "soft".

    Raises:
        UserError: for another way, listing the three.
    """
    if how not in get_args(Aggregation):
        raise UserError(f"unknown aggregation {how!r}; valid: {', '.join(get_args(Aggregation))}")
    if how == "soft":
        return soft_aggregate(probabilities).softmax(dim=1)
    strongest, winner = probabilities.max(dim=1, keepdim=True)
    if how == "winner-take-all":
        probabilities = torch.zeros_like(probabilities).scatter(1, winner, strongest)
    return torch.cat([1 - strongest, probabilities], dim=1)


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
    absent = None if valid is None else ~valid[:, :, None, None]
    present = probabilities if absent is None else probabilities.masked_fill(absent, 0.0)
    background = (1 - present).prod(dim=1, keepdim=True)
    clamped = torch.cat([background, probabilities], dim=1).clamp(_CLAMP, 1 - _CLAMP)
    logits = torch.log(clamped / (1 - clamped))
    if absent is not None:
        objects = logits[:, 1:].masked_fill(absent, float("-inf"))
        logits = torch.cat([logits[:, :1], objects], dim=1)
    return logits
