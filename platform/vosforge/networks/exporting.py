"""A network's per-frame functions as graphs of fixed shapes: `torch.export` programs, and ONNX files.

Tensors go in and come out by name, the frame's batch of one first:

| function | takes | gives |
|---|---|---|
| `encode_target` | frame, masks | targets; for siamese networks alone |
| `encode_query` | frame, targets, previous, prior | query_... |
| `encode_memory` | frame, masks, scribbles, given, query_... | memory_0, memory_1, ... |
| `read_T` | query_..., memory_0, ... of T frames | read or read_... |
| `decode` | query_..., read... | logits, probabilities |
| `assess` | frame, masks | scores; for networks that assess their masks alone |

Each takes only what its network looks at. What these tensors hold, `MemoryNetwork` tells.
"""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import vosforge
from vosforge.clip import MAX_OBJECTS
from vosforge.errors import UserError
from vosforge.networks.base import MemoryNetwork
from vosforge.storage import write_aside

DESCRIPTION = "network.json"
Tensors = dict[str, torch.Tensor]
Call = Callable[[MemoryNetwork, Tensors], Tensors]


class PerFrame(NamedTuple):
    """One per-frame function as a graph.

    Attributes:
        program: `program.module()(**inputs)` answers tensors by name.
        inputs, outputs: an example of each tensor, by name, in the graph's order.
    """

    program: ExportedProgram
    inputs: Tensors
    outputs: Tensors


class Exported(NamedTuple):
    """A network's per-frame functions by name, as the module's docstring has them.

    Attributes:
        network: its description: name, size, parts.
        size: (H, W) of the frames.
        objects: K.
        frames: numbers of remembered frames T.
        functions: by name.
    """

    network: dict[str, Any]
    size: tuple[int, int]
    objects: int
    frames: list[int]
    functions: dict[str, PerFrame]


@torch.no_grad()
def export(network: MemoryNetwork, size: tuple[int, int], objects: int = 1, frames: Iterable[int] = (1,)) -> Exported:
    """The per-frame functions of a network as `torch.export` programs of fixed shapes.

    They hold a copy of its weights, and compute as it does on a CPU in evaluation mode.

    Args:
        network: any; it is left as it is.
        size: (H, W) of the frames; they are padded inside.
        objects: K.
        frames: numbers of remembered frames T, each of which gives a function `read_T`.

    Raises:
        UserError: for numbers below 1, no numbers of frames, or too many objects.
    """
    frames = sorted(set(frames))
    _check(size, objects, frames)
    network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    known = _examples(network, size, objects)
    functions: dict[str, PerFrame] = {}

    def add(name: str, call: Call) -> None:
        functions[name] = _trace(network, call, known)
        known.update(functions[name].outputs)

    if network.encode_target(known["frame"], known["masks"]) is not None:
        add("encode_target", lambda net, t: {"targets": net.encode_target(t["frame"], t["masks"])})
    query = _query(network, known)
    add("encode_query", lambda net, t: _named(_query(net, t), "query"))
    add("encode_memory", partial(_remember, query, _differing(network, query, known)))
    memory = {name: known[name][:, :, :, None] for name in known if name.startswith("memory_")}
    for count in frames:
        known.update({name: x.repeat_interleave(count, dim=3) for name, x in memory.items()})
        add(f"read_{count}", lambda net, t: _named(_read(net, query, list(memory), t), "read"))
    read = _read(network, query, list(memory), known)
    add("decode", partial(_decode, query, read))
    if network.assess(known["frame"], known["masks"]) is not None:
        add("assess", lambda net, t: {"scores": net.assess(t["frame"], t["masks"])})
    return Exported(network.description, size, objects, frames, functions)


def write_onnx(exported: Exported, folder: str | Path) -> dict[str, Any]:
    """Per-frame functions as ONNX files, one each, and `network.json`, which describes them.

    The folder is written aside and moved into place as a whole.

    Args:
        exported: by `export`.
        folder: new, empty, or an earlier export's, which is replaced.

    Returns:
        What `network.json` holds: `vosforge` (version), `network` (name, size, parts), `height`, `width`, `objects`,
        `frames`, and `functions` by name: each its `file`, `inputs` and `outputs`, and those their `name`, `dtype` and
        `shape`.

    Raises:
        UserError: as `check_ready`.
    """
    check_ready(folder)
    description = {
        "vosforge": vosforge.__version__,
        "network": exported.network,
        "height": exported.size[0],
        "width": exported.size[1],
        "objects": exported.objects,
        "frames": exported.frames,
        "functions": {name: _described(f"{name}.onnx", function) for name, function in exported.functions.items()},
    }
    with write_aside(folder) as aside:
        aside.mkdir()
        for name, function in exported.functions.items():
            names = {"input_names": list(function.inputs), "output_names": list(function.outputs)}
            graph = torch.onnx.export(function.program, dynamo=True, verbose=False, **names)
            graph.save(aside / f"{name}.onnx")
        (aside / DESCRIPTION).write_text(json.dumps(description, indent=1))
    return description


def check_ready(folder: str | Path) -> None:
    """Refuse early what `write_onnx` cannot do.

    Raises:
        UserError: when onnx or onnxscript are not installed, or the folder holds what no export wrote.
    """
    try:
        for package in ("onnx", "onnxscript"):
            importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"ONNX files need {error.name}, which is missing: pip install -e '.[export]'") from error
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a folder, found a file; choose another folder")
    found = sorted(path.name for path in folder.glob("*")) if folder.exists() else []
    foreign = [name for name in found if name != DESCRIPTION and not name.endswith((".onnx", ".onnx.data"))]
    if foreign:
        raise UserError(f"{folder}: expected an empty folder or an earlier export, found {foreign[0]}; choose another")


def _examples(network: MemoryNetwork, size: tuple[int, int], objects: int) -> Tensors:
    """What a user brings, by name."""
    dtype = next(network.parameters()).dtype
    masks = torch.full((1, objects, *size), 0.5, dtype=dtype)
    examples = {"frame": torch.full((1, 3, *size), 0.5, dtype=dtype), "masks": masks, "given": masks.new_ones(1)}
    if network.parts.memory_input == "mask+scribbles":
        examples["scribbles"] = masks[:, :, None].repeat(1, 1, 2, 1, 1)
    return examples | {"previous": masks.clone(), "prior": masks.clone()}


def _query(network: MemoryNetwork, tensors: Tensors) -> Any:
    return network.encode_query(tensors["frame"], tensors.get("targets"), tensors["previous"], tensors["prior"])


def _memory(network: MemoryNetwork, query: Any, given: bool, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    frame, masks, scribbles = tensors["frame"], tensors["masks"], tensors.get("scribbles")
    return network.encode_memory(frame, masks, scribbles, _placed(query, "query", tensors), given=given)


def _differing(network: MemoryNetwork, query: Any, tensors: Tensors) -> list[bool]:
    """Which tensors of the memory tell given masks from predicted ones."""
    both = (_memory(network, query, given, tensors) for given in (True, False))
    return [not torch.equal(*pair) for pair in zip(*both, strict=True)]


def _remember(query: Any, differing: list[bool], network: MemoryNetwork, tensors: Tensors) -> Tensors:
    memory = _memory(network, query, True, tensors)
    if any(differing):
        predicted, given = _memory(network, query, False, tensors), tensors["given"] > 0.5
        pairs = zip(memory, predicted, differing, strict=True)
        memory = [torch.where(given, yes, no) if differs else yes for yes, no, differs in pairs]
    return {f"memory_{i}": x for i, x in enumerate(memory)}


def _read(network: MemoryNetwork, query: Any, memory: list[str], tensors: Tensors) -> Any:
    return network.read(_placed(query, "query", tensors), *(tensors[name] for name in memory))


def _decode(query: Any, read: Any, network: MemoryNetwork, tensors: Tensors) -> Tensors:
    logits = network.decode(_placed(query, "query", tensors), _placed(read, "read", tensors))
    joint = logits.softmax(dim=1) if network.joint else network.aggregate(logits.sigmoid())
    return {"logits": logits, "probabilities": joint}


class _ByName(nn.Module):
    """A function of a network from tensors by name to tensors by name, with examples for what is left out."""

    def __init__(self, network: MemoryNetwork, call: Call, examples: Tensors):
        super().__init__()
        self.network, self.call, self.examples = network, call, examples

    def forward(self, **tensors: torch.Tensor) -> Tensors:
        answer = self.call(self.network, {**self.examples, **tensors})
        # The ONNX exporter gives an input that is also an output another name.
        passed = {id(x) for x in tensors.values()}
        return {name: x.clone() if id(x) in passed else x for name, x in answer.items()}


def _trace(network: MemoryNetwork, call: Call, known: Tensors) -> PerFrame:
    """The function of those known tensors that it looks at, with those weights that it needs."""
    function = _ByName(network, call, dict(known))
    program = torch.export.export(function, (), dict(known))
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    pairs = zip(known, program.graph_signature.user_inputs, strict=True)
    used = {name: known[name] for name, node in pairs if nodes[node].users}
    weights = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    idle = [weight.removeprefix("network.") for node, weight in weights.items() if not nodes[node].users]
    lean = _ByName(_without(network, idle), call, dict(known))
    program = torch.export.export(lean, (), used)
    found = [node.meta["val"] for node in program.graph.output_node().args[0]]
    outputs = pytree.tree_unflatten([torch.zeros(x.shape, dtype=x.dtype) for x in found], program.call_spec.out_spec)
    return PerFrame(program, used, outputs)


def _without(network: MemoryNetwork, weights: Iterable[str]) -> MemoryNetwork:
    """The network, its other weights shared, without some."""
    shared = {id(x): x for x in (*network.parameters(), *network.buffers())}
    lean = copy.deepcopy(network, shared)
    for weight in weights:
        module, _, name = weight.rpartition(".")
        setattr(lean.get_submodule(module), name, None)
    return lean


def _named(nest: Any, prefix: str) -> Tensors:
    """The tensors in a nest of tuples, by their place in it: "query_key", "query_skips_0"."""
    leaves = pytree.tree_flatten_with_path(nest)[0]
    return {_name(prefix, path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}


def _placed(nest: Any, prefix: str, tensors: Tensors) -> Any:
    """The nest with the named tensors in their places; what else it holds stays."""
    return pytree.tree_map_with_path(lambda path, leaf: tensors.get(_name(prefix, path), leaf), nest)


def _name(prefix: str, path: Sequence[Any]) -> str:
    return "_".join([prefix, *(str(getattr(key, "name", getattr(key, "idx", key))) for key in path)])


def _described(file: str, function: PerFrame) -> dict[str, Any]:
    """A file's entry in the description."""
    tensors = {
        kind: [{"name": n, "dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)} for n, x in of.items()]
        for kind, of in (("inputs", function.inputs), ("outputs", function.outputs))
    }
    return {"file": file, **tensors}


def _check(size: tuple[int, int], objects: int, frames: list[int]) -> None:
    numbers = {"height": size[0], "width": size[1], "objects": objects}
    for field, number in [*numbers.items(), *(("frames", count) for count in frames)]:
        if type(number) is not int or number < 1:
            raise UserError(f"export: {field} must be a whole number of at least 1, found {number!r}")
    if not frames:
        raise UserError("export: frames must name at least one number of remembered frames, found none")
    if objects > MAX_OBJECTS:
        raise UserError(f"export: objects must be at most {MAX_OBJECTS}, found {objects}")
