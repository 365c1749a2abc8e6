"""The siamese query: where in a frame does it look like the target? (EMN, 2.2)"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vosforge.networks.parts import Parts


def crop_targets(frames: torch.Tensor, masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Each object's bounding box, cut from the frame and resized (EMN, 2.2: the target patch P_0).

    Args:
        frames: `(B, 3, H, W)`.
        masks: `(B, K, H, W)` in [0, 1]; the box is that of the pixels above one half. Without any, the whole
            frame is the target.
        size: (height, width) of the patches; the aspect ratio is not kept.

    Returns:
        `(B, K, 3, height, width)`, sampled bilinearly.
    """
    batch, objects = masks.shape[:2]
    inside = masks > 0.5
    top, bottom = _extent(inside.any(dim=3))
    left, right = _extent(inside.any(dim=2))
    # From pixel edges to affine_grid's coordinates, in which a frame reaches from -1 to 1.
    scale_y, scale_x = bottom - top, right - left
    zero = torch.zeros_like(top)
    theta = torch.stack(
        [
            torch.stack([scale_x, zero, left + right - 1], dim=-1),
            torch.stack([zero, scale_y, top + bottom - 1], dim=-1),
        ],
        dim=-2,
    ).to(frames.dtype)
    grid = F.affine_grid(theta.flatten(0, 1), [batch * objects, 3, *size], align_corners=False)
    sources = frames.repeat_interleave(objects, dim=0)
    patches = F.grid_sample(sources, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return patches.unflatten(0, (batch, objects))


def correlate(features: torch.Tensor, targets: torch.Tensor, correlation: str) -> torch.Tensor:
    """The query's features filtered with each target's: `feat_p * feat_t` of EMN's equation 8.

    The target's features are the filter, with as many zeros around the query that its size is kept. The sum over
    the filter's cells is a mean here, so that its size does not depend on the frame's.

    Args:
        features: `(B, C, h, w)` of the query frame.
        targets: `(B, K, C, h', w')`.
        correlation: "depthwise" filters every channel with its own, "full" sums over channels.

    Returns:
        `(B, K, C, h, w)`, or `(B, K, 1, h, w)` with "full".
    """
    batch, objects, channels, height, width = targets.shape
    top, left = (height - 1) // 2, (width - 1) // 2
    padded = F.pad(features, (left, width - 1 - left, top, height - 1 - top))
    filters = targets / (height * width)
    if correlation == "full":
        merged = F.conv2d(padded.flatten(0, 1)[None], (filters / channels).flatten(0, 1), groups=batch)
        return merged[0].unflatten(0, (batch, objects, 1))
    # One group a channel of an object: eightfold faster on CPU than objects as the outputs of a channel's group.
    repeated = padded[:, None].expand(-1, objects, -1, -1, -1).flatten(0, 2)
    groups = batch * objects * channels
    filtered = F.conv2d(repeated[None], filters.reshape(groups, 1, height, width), groups=groups)
    return filtered[0].unflatten(0, (batch, objects, channels))


def correlation_channels(parts: Parts, channels: int) -> int:
    """Channels that the siamese part adds to the query's `channels`."""
    if not parts.siamese:
        return 0
    return channels if parts.correlation == "depthwise" else 1


def target_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(H/4, W/4) rounded up to the stride, so that the extractor need not pad a patch."""
    return tuple(-(-side // (4 * stride)) * stride for side in size)


def _extent(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last-plus-one True of `(B, K, n)` as shares of n; (0, 1) where there is none."""
    length = occupied.shape[2]
    first = occupied.int().argmax(dim=2)
    last = length - occupied.flip(2).int().argmax(dim=2)
    return first / length, last / length
