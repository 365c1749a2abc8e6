"""The propagator: one memory network carries masks from frame to frame."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork, soft_aggregate
from vosforge.propagation.memory import MemoryBank
from vosforge.propagation.segmenter import Segmenter

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Propagator(Segmenter):
    """Segments a video with one memory network.

    Args:
        network: in evaluation mode or not; it is put there.
        memory_every: every N-th frame stays in memory, beside the first and the previous one.
        budget: most frames in memory; None keeps all, as the papers do.
        precision: "fp32", "fp64", or "bf16" and "fp16" by autocast.
        device: where to compute.

    Raises:
        UserError: for an unknown precision.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        memory_every: int = 5,
        budget: int | None = None,
        precision: Precision = "fp32",
        device: str | torch.device = "cpu",
    ):
        super().__init__(device)
        if precision not in _DTYPES:
            raise UserError(f"unknown precision {precision!r}; valid: {', '.join(_DTYPES)}")
        self._half = precision in ("bf16", "fp16")
        self.dtype = torch.float32 if self._half else _DTYPES[precision]
        self._autocast = _DTYPES[precision]
        self.network = network.to(self.device, self.dtype).eval()
        self.memory_every = memory_every
        self.budget = budget
        MemoryBank(memory_every, budget)
        # Objects that entered together share a bank: what they remember starts at the same frame.
        self._banks: list[tuple[list[int], MemoryBank]] = []

    @property
    def memory(self) -> list[dict[str, object]]:
        """What is held: per group of objects that entered together, its `objects`, `frames`, `evicted`, `bytes`."""
        return [
            {"objects": ids, "frames": bank.frames, "evicted": list(bank.evicted), "bytes": bank.bytes}
            for ids, bank in self._banks
        ]

    @torch.inference_mode()
    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        """Read every group's memory, decode, and aggregate all objects softly."""
        height, width = frame.shape[-2:]
        if not self.objects:
            return torch.ones(1, height, width, dtype=self.dtype, device=self.device)
        with self._precision():
            query = self.network.encode_query(frame.to(self.dtype))
            foreground: dict[int, torch.Tensor] = {}
            for ids, bank in self._banks:
                logits = self.network.decode(query, self.network.read(query, *bank.read()))
                foreground.update(zip(ids, logits[0].to(self.dtype).sigmoid(), strict=True))
        probabilities = torch.stack([foreground[i] for i in self.objects])[None]
        return soft_aggregate(probabilities).softmax(dim=1)[0]

    @torch.inference_mode()
    def memorise(self, frame: torch.Tensor, probabilities: torch.Tensor) -> None:
        """Encode the frame with all objects and hand each group its part."""
        if not self.objects:
            return
        known = {i for ids, _ in self._banks for i in ids}
        entering = [i for i in self.objects if i not in known]
        if entering:
            self._banks.append((entering, MemoryBank(self.memory_every, self.budget)))
        with self._precision():
            key, value = self.network.encode_memory(frame.to(self.dtype), probabilities[None, 1:].to(self.dtype))
        for ids, bank in self._banks:
            columns = [self.objects.index(i) for i in ids]
            bank.add(self._index, key[0, columns], value[0, columns], permanent=not bank.held)

    def _precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, self._autocast) if self._half else contextlib.nullcontext()
