"""Per-frame functions as graphs: the same numbers by torch.export and by onnxruntime alone."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks import NETWORKS, KernelReader, MemoryNetwork, SpatialReader, TopKReader, preset, readers, save
from vosforge.networks.collaborative import CollaborativeParts
from vosforge.networks.exporting import Exported, PerFrame, Tensors, check_ready, export, write_onnx

ROOT = Path(__file__).resolve().parent.parent.parent
EVERY = pytest.mark.parametrize("name", NETWORKS)
# No multiples of a stride.
SIZE, OBJECTS = (33, 47), 2
# Every offset's row is a part of the graph: a few of them tell as much.
FEW_WINDOWS = {"windows_4": (2, 4), "windows_8": (1,), "windows_16": (1,)}
# Written by the program, as a user would, the others by the library.
BY_PROGRAM, FRAMES = "stm", (1, 2)
Call = Callable[[str, Tensors], Tensors]


class Case(NamedTuple):
    network: MemoryNetwork
    exported: Exported
    folder: Path
    description: dict
    printed: str = ""


@pytest.fixture(scope="module")
def case(make, tmp_path_factory) -> Iterator[Callable[[str], Case]]:
    """Each network, exported and written once.

    Operators that an earlier network wrote in this order are not written again: it takes seconds, and only numbers
    and weights differ.
    """
    cases: dict[str, Case] = {}
    written: set[tuple[str, ...]] = set()

    def case(name: str) -> Case:
        if name not in cases:
            parts = FEW_WINDOWS if isinstance(preset(name), CollaborativeParts) else {}
            network = make(name, **parts)
            exported = export(network.train(), SIZE, OBJECTS, FRAMES if name in (BY_PROGRAM, "camn") else (1,))
            assert network.training
            folder = tmp_path_factory.mktemp("exported") / "onnx"
            graphs = {function: operators_of(graph) for function, graph in exported.functions.items()}
            if name == BY_PROGRAM:
                printed = run_program(network, folder)
                description = json.loads((folder / "network.json").read_text())
            else:
                fresh = {function: exported.functions[function] for function, g in graphs.items() if g not in written}
                printed, description = "", write_onnx(exported._replace(functions=fresh), folder)
            written.update(graphs.values())
            cases[name] = Case(network.eval(), exported, folder, description, printed)
        return cases[name]

    gc.collect()
    gc.freeze()  # Graphs are many small objects: else every collection walks all that was imported.
    yield case
    gc.unfreeze()


def operators_of(function: PerFrame) -> tuple[str, ...]:
    return tuple(str(node.target) for node in function.program.graph.nodes if node.op == "call_function")


def run_program(network: MemoryNetwork, folder: Path) -> str:
    """What jobs/export.py prints."""
    saved = folder.with_name("network.safetensors")
    save(network, saved)
    size = ["--height", SIZE[0], "--width", SIZE[1], "--objects", OBJECTS, "--frames", *FRAMES]
    command = [sys.executable, ROOT / "jobs" / "export.py", "--model", saved, "--out", folder, *size]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_program(exported: Exported, seen: dict[str, Tensors] | None = None) -> Call:
    """Calls the exported programs, and notes what each was given and answered."""

    def call(name: str, known: Tensors) -> Tensors:
        function = exported.functions[name]
        given = {tensor: known[tensor] for tensor in function.inputs}
        with torch.no_grad():
            answer = function.program.module()(**given)
        if seen is not None:
            seen[name] = given | answer
        return answer

    return call


def by_onnxruntime(folder: Path) -> Call:
    """Calls the files as their description tells, and nothing else."""
    functions = json.loads((folder / "network.json").read_text())["functions"]
    sessions = {name: onnxruntime.InferenceSession(folder / entry["file"]) for name, entry in functions.items()}

    def call(name: str, known: Tensors) -> Tensors:
        takes, gives = ([tensor["name"] for tensor in functions[name][kind]] for kind in ("inputs", "outputs"))
        answers = sessions[name].run(gives, {tensor: known[tensor].numpy() for tensor in takes})
        return {tensor: torch.from_numpy(answer) for tensor, answer in zip(gives, answers, strict=True)}

    return call


def propagate(call: Call, functions: set[str], frames: torch.Tensor, masks: torch.Tensor) -> Tensors:
    """Segment the second frame from the first one's masks, by named tensors alone."""
    known = {"masks": masks, "previous": masks, "prior": masks, "given": torch.ones(1)}
    known |= {"frame": frames[0], "scribbles": scribbles_of(masks)}
    for name in ("encode_target", "encode_query", "encode_memory"):
        if name in functions:
            known |= call(name, known)
    known |= {name: x.unsqueeze(3) for name, x in known.items() if name.startswith("memory_")}
    known["frame"] = frames[1]
    for name in ("encode_query", "read_1", "decode"):
        known |= call(name, known)
    if "assess" in functions:
        known |= call("assess", known | {"masks": known["probabilities"][:, 1:]})
    return known


def scribbles_of(masks: torch.Tensor) -> torch.Tensor:
    return torch.stack([masks, 1 - masks], dim=2).round()


@torch.no_grad()
def expected_of(network: MemoryNetwork, frames: torch.Tensor, masks: torch.Tensor) -> Tensors:
    """The same by the network itself."""
    takes_scribbles = network.parts.memory_input == "mask+scribbles"
    targets = network.encode_target(frames[0], masks)
    query = network.encode_query(frames[0], targets, masks, masks)
    memory = network.encode_memory(frames[0], masks, scribbles_of(masks) if takes_scribbles else None, query)
    query = network.encode_query(frames[1], targets, masks, masks)
    logits = network.decode(query, network.read(query, *(x[:, :, :, None] for x in memory)))
    probabilities = logits.softmax(dim=1) if network.joint else network.aggregate(logits.sigmoid())
    scores = network.assess(frames[1], probabilities[:, 1:])
    answers = {f"memory_{i}": x.unsqueeze(3) for i, x in enumerate(memory)}
    answers |= {"targets": targets, "logits": logits, "probabilities": probabilities, "scores": scores}
    return {name: answer for name, answer in answers.items() if answer is not None}


@pytest.fixture
def clip(clips) -> tuple[torch.Tensor, torch.Tensor]:
    frames, masks, _ = clips(SIZE, videos=1, frames=2, objects=OBJECTS)
    return frames.unbind(1), masks


def difference(found: Tensors, expected: Tensors) -> float:
    """The largest, as a share of the tensor's largest value where that exceeds 1."""
    return max(float((found[name] - x).abs().max() / x.abs().max().clamp(min=1)) for name, x in expected.items())


@EVERY
def test_programs_answer_as_the_network(case, clip, name):
    network, exported, *_ = case(name)
    found = propagate(by_program(exported), set(exported.functions), *clip)
    assert difference(found, expected_of(network, *clip)) < 1e-5


@EVERY
def test_files_answer_as_the_programs(case, clip, name):
    _, exported, folder, description, _ = case(name)
    seen: dict[str, Tensors] = {}
    propagate(by_program(exported, seen), set(exported.functions), *clip)
    assert set(seen) == set(exported.functions) - {"read_2"}
    call = by_onnxruntime(folder)
    for function in description["functions"].keys() & seen.keys():
        known = seen[function]
        answer = call(function, known)
        assert difference(answer, {tensor: known[tensor] for tensor in answer}) < 1e-4, function


@EVERY
def test_onnxruntime_segments_the_second_frame_as_the_network(case, clip, name):
    network, exported, folder, description, _ = case(name)
    written, others = by_onnxruntime(folder), by_program(exported)

    def call(function: str, known: Tensors) -> Tensors:
        return (written if function in description["functions"] else others)(function, known)

    found = propagate(call, set(exported.functions), *clip)
    assert difference(found, expected_of(network, *clip)) < 1e-4


@EVERY
def test_description_tells_what_the_files_take_and_give(case, name):
    network, exported, folder, written, _ = case(name)
    description = json.loads((folder / "network.json").read_text())
    assert description == written
    assert description["network"] == network.description
    assert [description[key] for key in ("height", "width", "objects")] == [33, 47, 2]
    assert description["frames"] == exported.frames
    files = {entry["file"] for entry in description["functions"].values()}
    assert files | {"network.json"} == {path.name for path in folder.iterdir()}
    for entry in description["functions"].values():
        session = onnxruntime.InferenceSession(folder / entry["file"])
        for told, real in ((entry["inputs"], session.get_inputs()), (entry["outputs"], session.get_outputs())):
            assert [(t["name"], t["shape"]) for t in told] == [(tensor.name, tensor.shape) for tensor in real]
            assert {t["dtype"] for t in told} == {"float32"}
            assert {tensor.type for tensor in real} == {"tensor(float)"}


@pytest.mark.parametrize(
    ("name", "function", "expected"),
    [
        ("stm", "encode_query", {"frame"}),
        ("stm", "encode_memory", {"frame", "masks"}),
        ("stm", "decode", {"query_skips_0", "read"}),
        ("stm-interactive", "encode_memory", {"frame", "masks", "scribbles"}),
        ("emn", "encode_target", {"frame", "masks"}),
        ("emn", "encode_query", {"frame", "targets"}),
        ("qpm", "encode_query", {"frame", "prior"}),
        ("qpm", "assess", {"frame", "masks"}),
        ("skn", "encode_query", {"frame", "previous"}),
        ("skn", "read_1", {"query_key", "query_value", "query_previous", "memory_0", "memory_1"}),
        ("stcn", "encode_memory", {"frame", "masks", "query_key", "query_features"}),
        ("cfbi+", "encode_memory", {"masks", "given", "query_levels_0", "query_levels_1", "query_levels_2"}),
    ],
)
def test_functions_take_what_their_network_looks_at(case, name, function, expected):
    assert set(case(name).exported.functions[function].inputs) == expected


def test_predicted_masks_are_remembered_apart_from_given_ones(case, clip):
    network, _, folder, *_ = case("cfbi+")
    frames, masks = clip
    with torch.no_grad():
        query = network.encode_query(frames[0])
        levels = {f"query_levels_{i}": x for i, x in enumerate(query.levels)}
        for given in (True, False):
            memory = network.encode_memory(frames[0], masks, query=query, given=given)
            known = levels | {"masks": masks, "given": torch.full((1,), float(given))}
            answer = by_onnxruntime(folder)("encode_memory", known)
            assert all((answer[f"memory_{i}"] == x).all() for i, x in enumerate(memory))


class Read(torch.nn.Module):
    def __init__(self, reader: torch.nn.Module):
        super().__init__()
        self.reader = reader

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.reader(*tensors)


@pytest.mark.parametrize(
    "reader",
    [
        TopKReader(5, similarity="l2"),
        KernelReader(2.0, top_k=5, argmax_on="weights", renormalise=False),
        SpatialReader(2.0, similarity="l2", argmax_on="affinity", renormalise=True),
    ],
    ids=["topk-l2", "kernel-topk", "spatial-l2"],
)
def test_readers_of_several_frames_in_several_chunks_go_through(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_CHUNK", 1500)
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 8, 3, 5, 7), (2, 6, 3, 5, 7), (2, 8, 5, 7), (2, 5, 7)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors = [*tensors[:3], tensors[3].sigmoid()] if isinstance(reader, SpatialReader) else tensors[:3]
    with torch.no_grad():
        expected = reader(*tensors)
        program = torch.export.export(Read(reader), tuple(tensors))
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "read.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "read.onnx")
    feed = {told.name: x.numpy() for told, x in zip(session.get_inputs(), tensors, strict=True)}
    (found,) = session.run(None, feed)
    assert (program.module()(*tensors) - expected).abs().max() < 1e-5
    assert abs(found - expected.numpy()).max() < 1e-5


def test_program_tells_what_it_wrote(case):
    _, exported, folder, _, printed = case(BY_PROGRAM)
    lines = printed.splitlines()
    assert f"{folder}/encode_query.onnx: frame -> query_key, query_value, query_features, query_skips_0" in lines
    assert len(lines) == len(exported.functions) + 1
    assert {line.partition(": ")[0] for line in lines} == {str(path) for path in folder.iterdir()}


def test_onnxruntime_reads_two_remembered_frames(case, clips):
    network, _, folder, *_ = case(BY_PROGRAM)
    frames, masks, _ = clips(SIZE, videos=1, frames=3, objects=OBJECTS)
    call = by_onnxruntime(folder)
    remembered = [call("encode_memory", {"frame": frames[:, t], "masks": masks}) for t in range(2)]
    known = {"frame": frames[:, 2]} | {n: torch.stack([m[n] for m in remembered], dim=3) for n in remembered[0]}
    for function in ("encode_query", "read_2", "decode"):
        known |= call(function, known)
    with torch.no_grad():
        memories = zip(*(network.encode_memory(frames[:, t], masks) for t in range(2)), strict=True)
        query = network.encode_query(frames[:, 2])
        expected = network.decode(query, network.read(query, *(torch.stack(kind, dim=3) for kind in memories)))
    assert (known["logits"] - expected).abs().max() < 1e-4


def test_programs_hold_the_weights_that_they_need_alone(case):
    _, exported, *_ = case("stm")
    held = {name: {weight.split(".")[1] for weight in f.program.state_dict} for name, f in exported.functions.items()}
    assert held == {
        "encode_query": {"query_encoder", "query_head"},
        "encode_memory": {"memory_encoder", "memory_head"},
        "read_1": set(),
        "read_2": set(),
        "decode": {"decoder"},
    }


def test_missing_packages_are_named_with_the_way_to_get_them(monkeypatch, tmp_path):
    # What an import finds where a package is not installed.
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"ONNX files need onnxscript.*pip install -e '\.\[export\]'"):
        check_ready(tmp_path / "out")


def test_folders_of_other_files_are_left_alone_and_earlier_exports_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"expected an empty folder or an earlier export, found thesis\.txt"):
        check_ready(tmp_path)
    with pytest.raises(UserError, match="expected a folder, found a file"):
        check_ready(tmp_path / "thesis.txt")
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    for name in ("network.json", "read_1.onnx", "read_9.onnx", "decode.onnx.data"):
        (earlier / name).write_text("")
    write_onnx(Exported({}, SIZE, 1, [1], {}), earlier)
    assert [path.name for path in earlier.iterdir()] == ["network.json"]


@pytest.mark.parametrize(
    ("size", "objects", "frames", "message"),
    [
        ((0, 47), 1, (1,), "height must be a whole number of at least 1, found 0"),
        ((33, 47.0), 1, (1,), r"width must be .*found 47\.0"),
        ((33, 47), 0, (1,), "objects must be .*found 0"),
        ((33, 47), 256, (1,), "objects must be at most 255, found 256"),
        ((33, 47), 1, (), "at least one number of remembered frames"),
        ((33, 47), 1, (0, 2), r"frames must be .*found 0"),
    ],
    ids=str,
)
def test_impossible_shapes_are_refused(make, size, objects, frames, message):
    with pytest.raises(UserError, match=message):
        export(make("stm"), size, objects, frames)
