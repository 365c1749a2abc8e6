"""The propagator: one memory network carries masks from frame to frame."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork, Query
from vosforge.networks.base import crop_to, pad_to_stride
from vosforge.networks.quality import SCORE_FLOOR, relative
from vosforge.propagation.calls import Call, Calling, finish
from vosforge.propagation.memory import MemoryBank, parse_budget
from vosforge.propagation.segmenter import Frame, Segmenter
from vosforge.settings import Eviction, Precision

_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Propagator(Segmenter):
    """Segments a video with one memory network.

    Args:
        network: moved to the device and into evaluation mode; copied where another precision is asked for. Its parts
            say which frames are remembered. Where it assesses its masks, only good ones stay in memory, and the mask
            that enhances the next query is the previous one or, if that is poor, the one given (QPM, 2.2 and 2.3).
        memory_every: every N-th frame stays in memory, beside the first and the previous one.
        budget: of the memory: a number of frames for objects that entered together, or bytes for all, as "512MiB" or
            "2GB"; None keeps all, as the papers do. When it is exceeded a frame goes by the rule of `eviction`;
            given frames and the latest stay, even if they alone exceed it.
        precision: "fp32", "fp64", or "bf16" and "fp16" by autocast; None takes the network's own.
        device: where to compute.
        eviction: "oldest"; or, for networks that assess their masks, "quality", the frame whose assessed quality plus
            `exp(-age)` is least, as QPM's authors do in later code; age in frames.
        channels_last: keep the network and frames in that memory format, faster on some GPUs.

    Raises:
        UserError: for what is no network, an unknown precision, a `memory_every` or budget of another form, or
            eviction by a quality that the network does not assess.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        memory_every: int = 5,
        budget: int | str | None = None,
        precision: Precision | None = None,
        device: str | torch.device = "cpu",
        eviction: Eviction = "oldest",
        channels_last: bool = False,
    ):
        super().__init__(device)
        check_network(network)
        if precision is None:
            precision = "fp64" if next(network.parameters()).dtype == torch.float64 else "fp32"
        if precision not in _DTYPES:
            raise UserError(f"unknown precision {precision!r}; valid: {', '.join(_DTYPES)}")
        if eviction == "quality" and network.parts.quality == "none":
            raise UserError('eviction "quality" needs a network that assesses its masks (qpm); take "oldest"')
        self._half = precision in ("bf16", "fp16")
        self.dtype = torch.float32 if self._half else _DTYPES[precision]
        self._autocast = _DTYPES[precision]
        self._settings = (memory_every, budget, precision, device, eviction, channels_last)
        self._format = torch.channels_last if channels_last else torch.preserve_format
        if next(network.parameters()).dtype != self.dtype:
            # Others may run the same network as it is.
            network = copy.deepcopy(network)
        self.network = network.to(self.device, self.dtype, memory_format=self._format).eval()
        self.memory_every = memory_every
        self.eviction = eviction
        self._most_frames, self._most_bytes = parse_budget(budget)
        self._new_bank()
        # Objects that entered together share a bank: what they remember starts at the same frame.
        self._banks: list[tuple[list[int], MemoryBank]] = []
        self._targets: dict[int, torch.Tensor] = {}
        self._query: Query | None = None
        # Masks of the previous frame, those given, and quality where they were given and in the previous frame.
        self._previous: dict[int, torch.Tensor] = {}
        self._first: dict[int, torch.Tensor] = {}
        self._first_scores: dict[int, torch.Tensor] = {}
        self._scores: dict[int, torch.Tensor] = {}
        # Objects whose first predicted mask is still to set the scale of their quality.
        self._unscaled: set[int] = set()
        # What was predicted in the padding, for networks that remember it.
        self._margins: dict[int, torch.Tensor] = {}

    def _new_bank(self) -> MemoryBank:
        return MemoryBank(self.memory_every, self._most_frames, self.network.parts.memory_policy, self.eviction)

    @property
    def memory(self) -> list[dict[str, object]]:
        """What is held: per group of objects that entered together, its `objects`, `frames`, `evicted`, `bytes`.

        Of the frames that were evicted the latest 1,000 are told.
        """
        return [
            {"objects": ids, "frames": bank.frames, "evicted": bank.evicted, "bytes": bank.bytes}
            for ids, bank in self._banks
        ]

    @property
    def quality(self) -> dict[int, float]:
        """Assessed quality of each object's mask in the latest frame, relative to where it was given.

        Empty for networks that assess none.
        """
        return {i: float(relative(self._scores[i], self._first_scores[i])) for i in self._scores}

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """Read every group's memory, decode, and aggregate all objects."""
        return self._run(self.predicting(frame))

    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Encode the frame with all objects and hand each group its part."""
        self._run(self.memorising(frame, probabilities, given))

    def stepping(self, frame: Frame, mask: np.ndarray | torch.Tensor | None = None) -> Calling:
        """`step`, asking for the network's calls rather than making them."""
        image, given = self.enter(frame, mask)
        probabilities, ids = self.with_given((yield from self.predicting(image)), given)
        yield from self.memorising(image, probabilities, ids)
        return probabilities

    def _run(self, calling: Calling) -> Any:
        with torch.inference_mode(), self.precision():
            return finish(calling, self.network)

    def predicting(self, frame: torch.Tensor) -> Calling:
        """`predict`, asking for the network's calls."""
        size = (frame.shape[-2], frame.shape[-1])
        if not self.objects:
            return torch.ones(1, *size, dtype=self.dtype, device=self.device)
        query = yield from self._encode_query(self._padded(frame))
        probabilities = yield from self._segment(query)
        if self.network.parts.memorise_margin:
            self._margins = dict(zip(self.objects, probabilities[1:], strict=True))
        return crop_to(probabilities, size)

    def _segment(self, query: Query) -> Calling:
        """Probabilities `(K + 1, H, W)` of all objects from every group's memory."""
        if self.network.joint:
            ((_, bank),) = self._banks
            logits = yield self._decode(query, bank, len(self.objects))
            return logits[0].to(self.dtype).softmax(dim=0)
        foreground: dict[int, torch.Tensor] = {}
        for ids, bank in self._banks:
            part = query if len(ids) == len(self.objects) else query.of([self.objects.index(i) for i in ids])
            logits = yield self._decode(part, bank, len(ids))
            foreground.update(zip(ids, logits[0].to(self.dtype).sigmoid(), strict=True))
        return self.network.aggregate(torch.stack([foreground[i] for i in self.objects])[None])[0]

    def _decode(self, query: Query, bank: MemoryBank, objects: int) -> Call:
        read = self.network.read(query, *bank.read())
        return Call("decode", {"query": query, "read": read}, objects)

    def _enter(self, entering: list[int]) -> None:
        """Give objects that enter a bank of their own, or a place in that of all."""
        if not entering:
            return
        if not self.network.joint or not self._banks:
            self._banks.append((entering, self._new_bank()))
            return
        ((known, bank),) = self._banks
        positions = [self.objects.index(i) for i in known]
        bank.widen(lambda memory: self.network.admit(memory, positions, len(self.objects)))
        self._banks = [(list(self.objects), bank)]

    def memorising(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> Calling:
        """`memorise`, asking for the network's calls."""
        if not self.objects:
            return
        query, self._query = self._query, None
        known = {i for ids, _ in self._banks for i in ids}
        entering = [i for i in self.objects if i not in known]
        self._enter(entering)
        padded, masks = self._padded(frame), self._masks(probabilities)
        yield from self._keep_targets(padded, masks, entering)
        yield from self._note(padded, masks, given)
        if entering and query is not None:
            query = yield from self._encode_query(padded)
        permanent = [not bank.held or not {*ids}.isdisjoint(given) for ids, bank in self._banks]
        wanting = [
            (ids, bank, kept)
            for (ids, bank), kept in zip(self._banks, permanent, strict=True)
            if bank.wants(self._index, kept)
        ]
        if not wanting:
            return
        arguments = {"frames": padded, "masks": masks, "query": query, "given": bool(given)}
        memory = yield Call("encode_memory", arguments, len(self.objects))
        for ids, bank, kept in wanting:
            columns = [self.objects.index(i) for i in ids]
            own = tuple(x[0] if x.shape[1] == 1 else x[0, columns] for x in memory)
            bank.add(self._index, own, permanent=kept, lasting=self._good(ids), quality=self._quality_of(ids))
        self._keep_within()

    def _note(self, padded: torch.Tensor, masks: torch.Tensor, given: Sequence[int]) -> Calling:
        """Keep this frame's masks and their quality for the next query."""
        planes = dict(zip(self.objects, masks[0], strict=True))
        self._previous = planes
        self._first.update({i: planes[i] for i in given})
        if self.network.parts.quality == "none":
            return
        scores = yield Call("assess", {"frames": padded, "masks": masks}, len(self.objects))
        self._scores = dict(zip(self.objects, scores[0].to(self.dtype), strict=True))
        if self.network.parts.quality_reference == "predicted":
            # Until it is predicted for the first time an object's given mask sets its scale.
            self._first_scores.update({i: self._scores[i] for i in self._unscaled if i not in given})
            self._unscaled = {*given}
        self._first_scores.update({i: self._scores[i] for i in given})
        if any(self._first_scores[i] < SCORE_FLOOR for i in given):
            warnings.warn(
                f"frame {self._index}: a given mask is assessed below {SCORE_FLOOR}; all its masks count as good",
                stacklevel=3,
            )

    def _quality_of(self, ids: Sequence[int]) -> float:
        """Mean quality of the objects' masks, 1 for networks that assess none."""
        quality = self.quality
        return sum(quality[i] for i in ids) / len(ids) if quality else 1.0

    def _good(self, ids: Sequence[int]) -> bool:
        """Whether the objects' masks are on average good enough to stay in memory (QPM, equation 3)."""
        return not self._scores or self._quality_of(ids) > self.network.parts.memory_threshold

    def _encode_query(self, frame: torch.Tensor) -> Calling:
        targets, previous, first, scores, first_scores = (
            torch.stack([kept[i] for i in self.objects])[None] if kept else None
            for kept in (self._targets, self._previous, self._first, self._scores, self._first_scores)
        )
        prior = self.network.choose_prior(previous, first, scores, first_scores)
        arguments = {"frames": frame, "targets": targets, "previous": previous, "prior": prior}
        self._query = yield Call("encode_query", arguments, len(self.objects))
        return self._query

    def _keep_targets(self, frame: torch.Tensor, masks: torch.Tensor, entering: list[int]) -> Calling:
        """Encode what the network keeps of objects from the frame where they were given."""
        if not entering:
            return
        columns = [self.objects.index(i) for i in entering]
        targets = yield Call("encode_target", {"frames": frame, "masks": masks[:, columns]}, len(entering))
        if targets is not None:
            self._targets.update(zip(entering, targets[0], strict=True))

    def _keep_within(self) -> None:
        """Drop frames by the rule, first where most is held, until the budget in bytes is kept."""
        if self._most_bytes is None:
            return
        banks = [bank for _, bank in self._banks]
        while sum(bank.bytes for bank in banks) > self._most_bytes:
            if not any(bank.evict() for bank in sorted(banks, key=lambda bank: bank.bytes, reverse=True)):
                return

    def forget(self, objects: Sequence[int]) -> None:
        """Drop what is remembered of some objects."""
        remaining = []
        for ids, bank in self._banks:
            kept = [n for n, i in enumerate(ids) if i not in objects]
            if len(kept) < len(ids):
                bank.select(kept, len(ids))
            if kept:
                remaining.append(([ids[n] for n in kept], bank))
        self._banks = remaining
        for known in (self._targets, self._previous, self._first, self._scores, self._first_scores, self._margins):
            for i in objects:
                known.pop(i, None)
        self._unscaled -= {*objects}

    def fresh(self) -> Propagator:
        """Another propagator of this network with these settings, at the start of a video."""
        return Propagator(self.network, *self._settings)

    def _padded(self, frame: torch.Tensor) -> torch.Tensor:
        """The frame in the network's precision; padded here where its margin is to be remembered too."""
        frame = frame.to(self.dtype, memory_format=self._format)
        return self.network.pad_frames(frame) if self.network.parts.memorise_margin else frame

    def _masks(self, probabilities: torch.Tensor) -> torch.Tensor:
        """`(1, K, H, W)` of the objects, with the margin as predicted where the network remembers it."""
        masks = probabilities[None, 1:].to(self.dtype)
        if not self.network.parts.memorise_margin:
            return masks
        padded = pad_to_stride(masks, self.network.stride)
        inside = pad_to_stride(torch.ones_like(masks[0, 0]), self.network.stride) > 0
        empty = torch.zeros_like(padded[0, 0])
        margins = torch.stack([self._margins.get(i, empty) for i in self.objects])[None]
        return torch.where(inside, padded, margins)

    def precision(self) -> contextlib.AbstractContextManager:
        """The context in which the network's calls are made."""
        return torch.autocast(self.device.type, self._autocast) if self._half else contextlib.nullcontext()


def check_network(network: Any) -> None:
    """Refuse what is no network, a file's name or a `Model` for example.

    Raises:
        UserError: naming what was found, and what makes a network or a segmenter of it.
    """
    if isinstance(network, MemoryNetwork):
        return
    found, way = type(network).__name__, ""
    if isinstance(network, str | Path):
        found, way = f"the path {network}", "; load it with networks.load(path)"
    elif hasattr(network, "start"):
        way = f"; {found}.start() gives its segmenter"
    raise UserError(f"network: expected a MemoryNetwork, found {found}{way}")
