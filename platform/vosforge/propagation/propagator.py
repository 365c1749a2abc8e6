"""The propagator: one memory network carries masks from frame to frame."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import torch

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork, Query
from vosforge.networks.base import crop_to, pad_to_stride
from vosforge.propagation.memory import MemoryBank
from vosforge.propagation.segmenter import Segmenter

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Propagator(Segmenter):
    """Segments a video with one memory network.

    Args:
        network: in evaluation mode or not; it is put there. Its parts say which frames are remembered.
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

    @torch.inference_mode()
    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """Read every group's memory, decode, and aggregate all objects."""
        size = (frame.shape[-2], frame.shape[-1])
        if not self.objects:
            return torch.ones(1, *size, dtype=self.dtype, device=self.device)
        with self._precision():
            query = self._encode_query(self._padded(frame))
            foreground: dict[int, torch.Tensor] = {}
            for ids, bank in self._banks:
                part = query.of([self.objects.index(i) for i in ids])
                logits = self.network.decode(part, self.network.read(part, *bank.read()))
                foreground.update(zip(ids, logits[0].to(self.dtype).sigmoid(), strict=True))
        probabilities = self.network.aggregate(torch.stack([foreground[i] for i in self.objects])[None])[0]
        if self.network.parts.memorise_margin:
            self._margins = dict(zip(self.objects, probabilities[1:], strict=True))
        return crop_to(probabilities, size)

    @torch.inference_mode()
    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor, given: Sequence[int]) -> None:
        """Encode the frame with all objects and hand each group its part."""
        query, self._query = self._query, None
        known = {i for ids, _ in self._banks for i in ids}
        entering = [i for i in self.objects if i not in known]
        if entering:
            self._banks.append((entering, self._new_bank()))
        permanent = [not bank.held or not {*ids}.isdisjoint(given) for ids, bank in self._banks]
        wanting = [
            (ids, bank, kept)
            for (ids, bank), kept in zip(self._banks, permanent, strict=True)
            if bank.wants(self._index, kept)
        ]
        if not wanting:
            return
        padded, masks = self._padded(frame), self._masks(probabilities)
        with self._precision():
            self._keep_targets(padded, masks, entering)
            if entering and query is not None:
                query = self._encode_query(padded)
            key, value = self.network.encode_memory(padded, masks, query=query)
        for ids, bank, kept in wanting:
            columns = [self.objects.index(i) for i in ids]
            bank.add(self._index, key[0] if key.shape[1] == 1 else key[0, columns], value[0, columns], permanent=kept)

    def _encode_query(self, frame: torch.Tensor) -> Query:
        targets = torch.stack([self._targets[i] for i in self.objects])[None] if self._targets else None
        self._query = self.network.encode_query(frame, targets)
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
