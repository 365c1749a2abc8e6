"""The propagator: one memory network carries masks from frame to frame."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from typing import Literal

import torch

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork, Query
from vosforge.networks.base import crop_to, pad_to_stride
from vosforge.networks.quality import SCORE_FLOOR, relative
from vosforge.propagation.memory import MemoryBank
from vosforge.propagation.segmenter import Segmenter

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Propagator(Segmenter):
    """Segments a video with one memory network.

    Args:
        network: in evaluation mode or not; it is put there. Its parts say which frames are remembered. Where it
            assesses its masks, only good ones stay in memory, and the mask that enhances the next query is the
            previous one or, if that is poor, the one given (QPM, 2.2 and 2.3).
        memory_every: every N-th frame stays in memory, beside the first and the previous one.
        budget: most frames in memory; None keeps all, as the papers do.
        precision: "fp32", "fp64", or "bf16" and "fp16" by autocast; None takes the network's own.
        device: where to compute.

    Raises:
        UserError: for an unknown precision.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        memory_every: int = 5,
        budget: int | None = None,
        precision: Precision | None = None,
        device: str | torch.device = "cpu",
    ):
        super().__init__(device)
        if precision is None:
            precision = "fp64" if next(network.parameters()).dtype == torch.float64 else "fp32"
        if precision not in _DTYPES:
            raise UserError(f"unknown precision {precision!r}; valid: {', '.join(_DTYPES)}")
        self._half = precision in ("bf16", "fp16")
        self.dtype = torch.float32 if self._half else _DTYPES[precision]
        self._autocast = _DTYPES[precision]
        self.network = network.to(self.device, self.dtype).eval()
        self.memory_every = memory_every
        self.budget = budget
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
        # What was predicted in the padding, for networks that remember it.
        self._margins: dict[int, torch.Tensor] = {}

    def _new_bank(self) -> MemoryBank:
        return MemoryBank(self.memory_every, self.budget, self.network.parts.memory_policy)

    @property
    def memory(self) -> list[dict[str, object]]:
        """What is held: per group of objects that entered together, its `objects`, `frames`, `evicted`, `bytes`."""
        return [
            {"objects": ids, "frames": bank.frames, "evicted": list(bank.evicted), "bytes": bank.bytes}
            for ids, bank in self._banks
        ]

    @property
    def quality(self) -> dict[int, float]:
        """Assessed quality of each object's mask in the latest frame, relative to where it was given.

        Empty for networks that assess none.
        """
        return {i: float(relative(self._scores[i], self._first_scores[i])) for i in self._scores}

    @torch.inference_mode()
    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """Read every group's memory, decode, and aggregate all objects."""
        size = (frame.shape[-2], frame.shape[-1])
        if not self.objects:
            return torch.ones(1, *size, dtype=self.dtype, device=self.device)
        with self._precision():
            probabilities = self._segment(self._encode_query(self._padded(frame)))
        if self.network.parts.memorise_margin:
            self._margins = dict(zip(self.objects, probabilities[1:], strict=True))
        return crop_to(probabilities, size)

    def _segment(self, query: Query) -> torch.Tensor:
        """Probabilities `(K + 1, H, W)` of all objects from every group's memory."""
        if self.network.joint:
            ((_, bank),) = self._banks
            logits = self.network.decode(query, self.network.read(query, *bank.read()))
            return logits[0].to(self.dtype).softmax(dim=0)
        foreground: dict[int, torch.Tensor] = {}
        for ids, bank in self._banks:
            part = query.of([self.objects.index(i) for i in ids])
            logits = self.network.decode(part, self.network.read(part, *bank.read()))
            foreground.update(zip(ids, logits[0].to(self.dtype).sigmoid(), strict=True))
        return self.network.aggregate(torch.stack([foreground[i] for i in self.objects])[None])[0]

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

    @torch.inference_mode()
    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Encode the frame with all objects and hand each group its part."""
        if not self.objects:
            return
        query, self._query = self._query, None
        known = {i for ids, _ in self._banks for i in ids}
        entering = [i for i in self.objects if i not in known]
        self._enter(entering)
        padded, masks = self._padded(frame), self._masks(probabilities)
        with self._precision():
            self._keep_targets(padded, masks, entering)
        self._note(padded, masks, given)
        if entering and query is not None:
            with self._precision():
                query = self._encode_query(padded)
        permanent = [not bank.held or not {*ids}.isdisjoint(given) for ids, bank in self._banks]
        wanting = [
            (ids, bank, kept)
            for (ids, bank), kept in zip(self._banks, permanent, strict=True)
            if bank.wants(self._index, kept)
        ]
        if not wanting:
            return
        with self._precision():
            memory = self.network.encode_memory(padded, masks, query=query)
        for ids, bank, kept in wanting:
            columns = [self.objects.index(i) for i in ids]
            own = tuple(x[0] if x.shape[1] == 1 else x[0, columns] for x in memory)
            bank.add(self._index, own, permanent=kept, lasting=self._good(ids))

    def _note(self, padded: torch.Tensor, masks: torch.Tensor, given: Sequence[int]) -> None:
        """Keep this frame's masks and their quality for the next query."""
        planes = dict(zip(self.objects, masks[0], strict=True))
        self._previous = planes
        self._first.update({i: planes[i] for i in given})
        with self._precision():
            scores = self.network.assess(padded, masks)
        if scores is not None:
            self._scores = dict(zip(self.objects, scores[0].to(self.dtype), strict=True))
            self._first_scores.update({i: self._scores[i] for i in given})
            if any(self._first_scores[i] < SCORE_FLOOR for i in given):
                warnings.warn(
                    f"frame {self._index}: a given mask is assessed below {SCORE_FLOOR}; all its masks count as good",
                    stacklevel=3,
                )

    def _good(self, ids: Sequence[int]) -> bool:
        """Whether the objects' masks are on average good enough to stay in memory (QPM, equation 3)."""
        quality = self.quality
        return not quality or sum(quality[i] for i in ids) / len(ids) > self.network.parts.memory_threshold

    def _encode_query(self, frame: torch.Tensor) -> Query:
        targets, previous, first, scores, first_scores = (
            torch.stack([kept[i] for i in self.objects])[None] if kept else None
            for kept in (self._targets, self._previous, self._first, self._scores, self._first_scores)
        )
        prior = self.network.choose_prior(previous, first, scores, first_scores)
        self._query = self.network.encode_query(frame, targets, previous, prior)
        return self._query

    def _keep_targets(self, frame: torch.Tensor, masks: torch.Tensor, entering: list[int]) -> None:
        """Encode what the network keeps of objects from the frame where they were given."""
        columns = [self.objects.index(i) for i in entering]
        targets = self.network.encode_target(frame, masks[:, columns]) if entering else None
        if targets is not None:
            self._targets.update(zip(entering, targets[0], strict=True))

    def _padded(self, frame: torch.Tensor) -> torch.Tensor:
        """The frame in the network's precision; padded here where its margin is to be remembered too."""
        frame = frame.to(self.dtype)
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

    def _precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, self._autocast) if self._half else contextlib.nullcontext()
