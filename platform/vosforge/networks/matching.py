"""Pixel-level matching of foreground and background (CFBI+): how far is each pixel from the nearest one of an object?

Distances are squared and pass `2 sigmoid(d + bias) - 1`, so that 0 is a match and 1 is none. All functions take the
query's embedding `(B, C, h, w)` and answer `(B, O, n, h, w)` for O classes, the background first.

Source: Yang, Wei, Yang: "Collaborative Video Object Segmentation by Multi-Scale Foreground-Background Integration",
sections 3.2 and 3.3; numbers follow the published code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# The distance of a pixel of another class: the sigmoid makes it 1.
_FAR = 5e4
# Distances held at a time.
_CHUNK = 2**24


def global_matching(
    query: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Distance to the nearest pixel of each class in the reference frames.

    Args:
        query: `(B, C, h, w)`.
        reference: `(B, C, T, h, w)`.
        labels: `(B, O, T, h, w)` in {0, 1}, the reference's classes.
        bias: `(O,)`, learnt.

    Returns:
        `(B, O, 1, h, w)` in [0, 1].
    """
    if query.dtype.itemsize < 4:
        return _exactly(global_matching, query, reference, labels, bias)
    keys, points = reference.flatten(2), query.flatten(2).transpose(1, 2)
    away = (1 - labels.flatten(2)) * _FAR
    lengths = keys.square().sum(dim=1)
    chunk = max(1, _CHUNK // (keys.shape[0] * keys.shape[2]))
    nearest = []
    for part in points.split(chunk, dim=1):
        distances = part.square().sum(dim=2)[:, :, None] + lengths[:, None] - 2 * part @ keys
        nearest.append(torch.stack([(distances + a[:, None]).amin(dim=2) for a in away.unbind(1)], dim=1))
    found = torch.cat(nearest, dim=2).unflatten(2, query.shape[-2:])[:, :, None]
    return _squashed(found, bias)


def local_matching(
    query: torch.Tensor,
    previous: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor,
    windows: tuple[int, ...],
    rate: int = 1,
) -> torch.Tensor:
    """Distance to the nearest pixel of each class in the previous frame, within windows of several sizes.

    Args:
        query, previous: `(B, C, h, w)`.
        labels: `(B, O, h, w)` in {0, 1}, the previous frame's classes.
        bias: `(O,)`, learnt.
        windows: greatest offsets in pixels, ascending.
        rate: only offsets that are multiples of it are looked at.

    Returns:
        `(B, O, n, h, w)` in [0, 1]: the largest window first, then the others ascending.
    """
    if query.dtype.itemsize < 4:
        return _exactly(local_matching, query, previous, labels, bias, windows, rate)
    reach = windows[-1] // rate
    room = reach * rate
    padded = F.pad(previous, (room, room, room, room))
    classes = F.pad(labels, (room, room, room, room))
    height, width = query.shape[-2:]
    lengths = query.square().sum(dim=1)[:, None]
    nearest: list[torch.Tensor | None] = [None] * len(windows)
    for row in range(-reach, reach + 1):
        first = room + row * rate
        strip = _offsets(padded[:, :, first : first + height], width, rate)
        products = torch.einsum("bchw,bchkw->bkhw", query, strip)
        distances = lengths + strip.square().sum(dim=1).transpose(1, 2) - 2 * products
        inside = _offsets(classes[:, :, first : first + height], width, rate).transpose(2, 3) > 0.9
        masked = torch.where(inside, distances[:, None], _FAR)
        for n, window in enumerate(windows):
            size = window // rate
            if abs(row) <= size:
                least = masked[:, :, reach - size : reach + size + 1].amin(dim=2)
                nearest[n] = least if nearest[n] is None else torch.minimum(nearest[n], least)
    return _squashed(torch.stack([nearest[-1], *nearest[:-1]], dim=2), bias)


def _exactly(
    matching: Callable[..., torch.Tensor], query: torch.Tensor, *others: torch.Tensor | tuple[int, ...] | int
) -> torch.Tensor:
    """The same in float32: the difference of large products does not survive the rounding of half precision."""
    with torch.autocast(query.device.type, enabled=False):
        wide = (x.float() if isinstance(x, torch.Tensor) else x for x in (query, *others))
        return matching(*wide).to(query.dtype)


def background_distance(distances: torch.Tensor) -> torch.Tensor:
    """Of each class, the distance to the nearest of the others: `(B, O, n, h, w)`, O >= 2, likewise."""
    classes = range(distances.shape[1])
    others = [[j for j in classes if j != i] for i in classes]
    return torch.stack([distances[:, other].amin(dim=1) for other in others], dim=1)


def _offsets(strip: torch.Tensor, width: int, rate: int) -> torch.Tensor:
    """`(B, C, h, w + 2 room)` -> `(B, C, h, n, w)`: the strip at every horizontal offset."""
    return strip.unfold(3, width, rate)


def thinned(labels: torch.Tensor, rate: int, spared: int) -> torch.Tensor:
    """Labels `(B, O, T, h, w)` in every `rate`-th row and column.

    Classes of at most `spared * rate**2` pixels in a frame are left whole.
    """
    points = torch.zeros_like(labels[:1, :1, :1])
    points[..., ::rate, ::rate] = 1
    large = labels.sum(dim=(3, 4), keepdim=True) > spared * rate**2
    return torch.where(large, labels * points, labels)


def _squashed(distances: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return 2 * (distances + bias.view(1, -1, 1, 1, 1)).sigmoid() - 1
