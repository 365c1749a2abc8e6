"""Frames of several videos in one forward: whatever waits while a batch runs is the next one."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from vosforge.propagation.calls import finish_together
from vosforge.propagation.propagator import Propagator
from vosforge.propagation.segmenter import Segmenter


@dataclass
class _Step:
    segmenter: Segmenter
    frame: np.ndarray
    mask: np.ndarray | None
    answer: Future = field(default_factory=Future)


class Batcher:
    """Runs the steps of many segmenters in one thread, those of one network in one forward.

    Nobody waits for others to come: a step that finds the thread free runs at once, and what arrives meanwhile is
    batched, so that batches grow with the load. Masks are those of every video alone, as `propagate` says. Segmenters
    that are no plain `Propagator` (ensembles, refined ones) are stepped one by one.

    Args:
        most: steps in a batch.

    Attributes:
        steps, batches: run so far.
    """

    def __init__(self, most: int = 8):
        self.most = most
        self.steps = self.batches = 0
        self._waiting: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def step(self, segmenter: Segmenter, frame: np.ndarray, mask: np.ndarray | None = None) -> torch.Tensor:
        """`segmenter.step`, from any thread; one step of a segmenter at a time.

        Raises:
            UserError: as `Segmenter.step`.
        """
        step = _Step(segmenter, frame, mask)
        self._waiting.put(step)
        return step.answer.result()

    def close(self) -> None:
        """End the thread after the steps that wait."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (steps := self._gathered()) is not None:
            groups: dict[int, list[_Step]] = defaultdict(list)
            for step in steps:
                plain = type(step.segmenter) is Propagator
                groups[id(step.segmenter.network if plain else step)].append(step)
            for group in groups.values():
                self._run(group)

    def _gathered(self) -> list[_Step] | None:
        """The next steps, at least one; None at the end."""
        first = self._waiting.get()
        steps = []
        while first is not None:
            steps.append(first)
            if len(steps) == self.most or self._waiting.empty():
                return steps
            first = self._waiting.get()
        if steps:
            # The end was met behind steps that wait.
            self._waiting.put(None)
        return steps or None

    def _run(self, group: list[_Step]) -> None:
        self.steps += len(group)
        self.batches += 1
        try:
            answers = _together(group) if type(group[0].segmenter) is Propagator else [_alone(group[0])]
        except Exception as error:
            # Whoever waits has to hear of it; the thread serves the others.
            answers = [error] * len(group)
        for step, answer in zip(group, answers, strict=True):
            if isinstance(answer, Exception):
                step.answer.set_exception(answer)
            else:
                step.answer.set_result(answer)


def _together(group: list[_Step]) -> list[torch.Tensor | Exception]:
    first = group[0].segmenter
    with torch.inference_mode(), first.precision():
        callings = [step.segmenter.stepping(step.frame, step.mask) for step in group]
        return finish_together(callings, first.network)


def _alone(step: _Step) -> torch.Tensor:
    return step.segmenter.step(step.frame, step.mask)
