"""Calls of a network that several videos make at once: gathered, padded to the same objects, run as one batch.

A propagator asks for the network's work by `Call`s; who drives it answers them, one by one or those of several videos
together.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork


class Call(NamedTuple):
    """One call of a network's per-frame function for one video.

    Attributes:
        function: "encode_query", "encode_memory", "encode_target", "decode" or "assess".
        arguments: by name; tensors `(1, K, ...)` or `(1, C, h, w)`, queries, or None.
        objects: K.
    """

    function: str
    arguments: dict[str, Any]
    objects: int


# What asks for calls and returns a result in the end.
Calling = Generator[Call, Any, Any]


def answer(network: MemoryNetwork, call: Call) -> Any:
    """Run one call by itself."""
    return getattr(network, call.function)(**call.arguments)


def finish(calling: Calling, network: MemoryNetwork) -> Any:
    """Answer all calls one by one, and give the result."""
    try:
        call = next(calling)
        while True:
            call = calling.send(answer(network, call))
    except StopIteration as done:
        return done.value


def finish_together(callings: Sequence[Calling], network: MemoryNetwork) -> list[Any]:
    """Answer the calls of several videos, alike ones in one batch, and give each video's result.

    A `UserError` of one video, such as a frame of another size, is its result and leaves the others alone.
    """
    results: list[Any] = [None] * len(callings)
    waiting: dict[int, Call] = {}

    def advance(i: int, value: Any) -> None:
        try:
            waiting[i] = callings[i].send(value)
        except StopIteration as done:
            waiting.pop(i, None)
            results[i] = done.value
        except UserError as error:
            waiting.pop(i, None)
            results[i] = error

    for i in range(len(callings)):
        advance(i, None)
    while waiting:
        groups: dict[Any, list[int]] = {}
        for i, call in waiting.items():
            groups.setdefault(_kind(call), []).append(i)
        members = max(groups.values(), key=len)
        answers = answer_together(network, [waiting[i] for i in members])
        for i, value in zip(members, answers, strict=True):
            advance(i, value)
    return results


def answer_together(network: MemoryNetwork, calls: Sequence[Call]) -> list[Any]:
    """Run alike calls as one batch, padded to the most objects among them."""
    if len(calls) == 1:
        return [answer(network, calls[0])]
    most = max(call.objects for call in calls)
    first = calls[0]
    arguments = {name: _joined([call.arguments[name] for call in calls]) for name in first.arguments}
    if first.function == "decode" and network.joint:
        counts = torch.tensor([call.objects for call in calls])
        arguments["valid"] = (torch.arange(most) < counts[:, None]).to(arguments["query"].low_level.device)
    found = getattr(network, first.function)(**arguments)
    extra = 1 if first.function == "decode" and network.joint else 0
    return [_row(found, b, call.objects + extra, most + extra) for b, call in enumerate(calls)]


def _kind(call: Call) -> Any:
    """What calls must have in common to be one batch: all but the number of their objects."""
    return call.function, tuple((name, _shape(value)) for name, value in call.arguments.items())


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # Dimension 1 holds the objects, or channels that are equal anyway.
        return value.ndim, tuple(value.shape[2:]), value.dtype
    if isinstance(value, tuple):
        return tuple(_shape(item) for item in value)
    return value


def _joined(values: list[Any]) -> Any:
    """Tensors along the batch, padded with zeros to the most objects; in tuples alike."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        most = max(value.shape[1] for value in values)
        return torch.cat([_padded(value, most) for value in values])
    if isinstance(first, tuple):
        items = [_joined(list(alike)) for alike in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else tuple(items)
    return first


def _padded(value: torch.Tensor, objects: int) -> torch.Tensor:
    if value.shape[1] == objects:
        return value
    return torch.cat([value, value.new_zeros(len(value), objects - value.shape[1], *value.shape[2:])], dim=1)


def _row(value: Any, b: int, objects: int, most: int) -> Any:
    """One video's part of an answer, without the objects that others have more."""
    if hasattr(value, "_fields"):
        query = type(value)(*(_whole(item, b) for item in value))
        return query if objects == most else query.of(range(objects))
    if isinstance(value, tuple):
        return tuple(_row(item, b, objects, most) for item in value)
    return value if value is None else value[b : b + 1, :objects]


def _whole(value: Any, b: int) -> Any:
    """One video's part of a query, with all objects; sizes are every video's."""
    if isinstance(value, tuple):
        return tuple(_whole(item, b) for item in value)
    return value[b : b + 1] if isinstance(value, torch.Tensor) else value
