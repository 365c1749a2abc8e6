"""How much memory a stage takes on each worker, and how many operations, found before anything is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vosforge.networks import MemoryNetwork, Prediction
from vosforge.training.stages import Stage
from vosforge.training.steps import Execution, objective

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Moments that an optimiser keeps of every learnt weight.
_MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}


@dataclass(frozen=True)
class Memory:
    """Bytes that a worker holds when a step needs most.

    Attributes:
        weights: of the network, its buffers included.
        gradients: of what is learnt; twice that where workers exchange them.
        optimizer: its moments.
        average: the running average of weights.
        activations: the clips of one piece of the batch, and all that is computed from them and held at once.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def estimate(stage: Stage, network: MemoryNetwork, share: int, execution: Execution, workers: int = 1) -> Memory:
    """The memory of one worker at a stage, for clips with as many objects as the stage takes.

    Forward and backward are gone through with tensors that have shapes alone, so a network of any size takes seconds
    and no memory. What a device needs beyond its tensors is left out (work spaces of convolutions, fragments, CUDA's
    own half a gigabyte), and so are an optimiser's intermediate results, which come when activations are gone.
    Attention is counted as a CPU holds it; the fused kernels of GPUs need less.

    Args:
        stage: what is learnt.
        network: its weights, on any device; they stay as they are.
        share: clips of the worker in one step.
        execution: its precision and the clips that it takes at once hold.
        workers: how many share the batch.
    """
    weights = sum(_size(tensor) for tensor in (*network.parameters(), *network.buffers()))
    learnt = sum(_size(p) for p in network.parameters() if p.requires_grad)
    moments = 0 if stage.optimizer == "sgd" and not stage.momentum else _MOMENTS[stage.optimizer]
    return Memory(
        weights=weights,
        gradients=learnt * (2 if workers > 1 else 1),
        optimizer=moments * learnt,
        average=weights if stage.ema else 0,
        activations=activations(stage, network, share // execution.pieces(share, stage.batch), execution),
    )


def activations(stage: Stage, network: MemoryNetwork, clips: int, execution: Execution) -> int:
    """The most bytes that forward and backward of some clips hold at once, beside weights and gradients.

    Args:
        stage, network, execution: as `estimate`.
        clips: in one piece.
    """
    learning, meter = network.training, _Meter()
    network.train()
    half = _HALF.get(execution.precision)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake:
            state = {name: _shape(fake, tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
            for tensor in state.values():
                meter.leave_out(tensor)
                if tensor.grad is not None:
                    meter.leave_out(tensor.grad)
            with meter, torch.autocast("cpu", half, enabled=half is not None):
                _loss(stage, partial(_called, network, state), network, clips).backward()
    finally:
        network.train(learning)
    return meter.peak


def operations(stage: Stage, network: MemoryNetwork, clips: int) -> int:
    """Floating-point operations of a training step's forward pass; backward takes twice as many.

    Convolutions, matrix products and attention count, a multiplication and an addition as two. Forward alone is counted
    since torch counts too many for the weight gradients of grouped convolutions.

    Args:
        stage, network: as `estimate`.
        clips: with as many objects as the stage takes.
    """
    learning, meter, counter = network.training, _Meter(), FlopCounterMode(display=False)
    network.train()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), meter, counter:
            state = {name: _shape(fake, tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
            _loss(stage, partial(_called, network, state), network, clips)
    finally:
        network.train(learning)
    return counter.get_total_flops()


def _shape(fake: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of that shape, whose gradient stands ready where it has one: it is no activation."""
    shape = fake.from_tensor(tensor.detach().cpu()).requires_grad_(tensor.requires_grad)
    if tensor.requires_grad:
        shape.grad = torch.zeros_like(shape)
    return shape


def _called(network: MemoryNetwork, state: dict[str, torch.Tensor], *args: Any, **settings: Any) -> Prediction:
    return torch.func.functional_call(network, state, args, settings)


def _loss(stage: Stage, model: Callable[..., Prediction], network: MemoryNetwork, clips: int) -> torch.Tensor:
    """The loss of clips of nothing; what is drawn at random or from values is replaced by what takes as much."""
    length, (height, width) = stage.sampling.frames, stage.sampling.crop
    objects = 1 if network.parts.training_objects == "one" else stage.sampling.objects
    frames = torch.zeros(clips, length, 3, height, width)
    masks = torch.zeros(clips, length, height, width, dtype=torch.int64)
    first, valid = torch.zeros(clips, objects, height, width), torch.ones(clips, objects, dtype=torch.bool)
    if stage.rounds:

        def draw(estimates: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
            touched = torch.full((clips,), number % length)
            return touched, torch.zeros(clips, objects, 2, height, width, dtype=estimates.dtype)

        logits, scores = model(frames, first, valid, draw=draw, rounds=stage.rounds)
        truth = masks.repeat(1, stage.rounds, 1, 1)
    else:
        spoil = (lambda estimates, _: estimates.clone()) if stage.corruption.happens else None
        logits, scores = model(frames, first, valid, spoil=spoil)
        truth = masks[:, 1:]
    scores = None if scores is None else scores.float()
    return objective(stage.loss, logits.float(), scores, truth, valid, progress=1.0)


class _Meter(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, from one operation to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Never count this tensor, nor its views."""
        self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it made."""
        # Tensors without values are asked for some, by checks of ranges and for the frames that were given.
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_zeros(1, args[0].ndim, dtype=torch.int64)
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else (result,):
            for tensor in made if isinstance(made, (tuple, list)) else (made,):
                if isinstance(tensor, torch.Tensor):
                    self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # Views, and operations that write into a tensor, have its storage.
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.live -= size


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
