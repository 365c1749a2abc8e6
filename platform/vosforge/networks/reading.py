"""Reading for several objects: the reader that a network's parts name, and one affinity for all where it can be."""

from __future__ import annotations

import torch

from vosforge.networks import readers
from vosforge.networks.parts import Parts


def make_reader(parts: Parts) -> readers.Reader:
    """The reader that the parts name."""
    affinity = {"scale": parts.scale, "similarity": parts.similarity}
    if parts.reader == "dense":
        return readers.DenseReader(**affinity)
    if parts.reader == "topk":
        return readers.TopKReader(50 if parts.top_k is None else parts.top_k, **affinity)
    kernel = readers.KernelReader if parts.reader == "kernel" else readers.SpatialReader
    return kernel(parts.sigma, parts.top_k, parts.argmax_on, parts.renormalise, **affinity)


def read_objects(
    reader: readers.Reader,
    memory_key: torch.Tensor,
    memory_value: torch.Tensor,
    query_key: torch.Tensor,
    previous: torch.Tensor | None = None,
) -> torch.Tensor:
    """Read each object's values.

    Args:
        reader: any of `vosforge.networks.readers`.
        memory_key: `(B, K or 1, CK, T, h, w)`, or `(B, K, 2 CK, T, h, w)` of foreground and background apart.
        memory_value: `(B, K, CV, T, h, w)`.
        query_key: `(B, K or 1, CK, h, w)`.
        previous: `(B, K, h, w)` each object's mask in the frame before, for a `SpatialReader` alone.

    Returns:
        `(B, K, CV, h, w)`.
    """
    objects = memory_value.shape[1]
    if memory_key.shape[2] == 2 * query_key.shape[2]:
        halves = (x.unflatten(2, (2, -1)).flatten(1, 2) for x in (memory_key, memory_value))
        query_key = query_key.expand(-1, objects, -1, -1, -1).repeat_interleave(2, dim=1)
        before = None if previous is None else previous.repeat_interleave(2, dim=1)
        return read_objects(reader, *halves, query_key, before).unflatten(1, (objects, 2)).flatten(2, 3)
    if memory_key.shape[1] == query_key.shape[1] == 1 and previous is None:
        # One affinity serves all objects: their values are read as channels of one.
        return reader(memory_key[:, 0], memory_value.flatten(1, 2), query_key[:, 0]).unflatten(1, (objects, -1))
    each = [memory_key, memory_value, query_key]
    if previous is not None:
        each.append(previous)
    read = reader(*(x.expand(-1, objects, *x.shape[2:]).flatten(0, 1) for x in each))
    return read.unflatten(0, (-1, objects))
