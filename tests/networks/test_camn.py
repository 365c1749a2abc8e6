"""CAMN: what it remembers and matches, its parts, and the choices that it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks import MemoryNetwork, build
from vosforge.networks.readers import SpatialReader
from vosforge.propagation import Propagator

# Table 2, from its baseline on; the memory is figure 2's.
ABLATION = {
    "CFBI": {"memory_encoder": "none", "pyramid": "none", "object_context": False},
    "+FPN": {"memory_encoder": "none", "pyramid": "fpn", "object_context": False},
    "+PAN": {"memory_encoder": "none", "pyramid": "pan", "object_context": False},
    "+OCNet": {"memory_encoder": "none", "pyramid": "none"},
    "+memory": {},
    "+memory, figure 2b": {"memory_encoder": "prior"},
}
OTHERS = [
    {"memory_keys": "separate"},
    {"memory_encoder": "prior", "memory_keys": "separate", "similarity": "l2"},
    {"reader": "topk", "top_k": 5},
    {"reader": "kernel", "sigma": 2, "renormalise": False},
    {"reader": "spatial", "memory_keys": "separate"},
    {"scale": None, "key_channels": 8, "value_channels": 6},
    {"fpa": True},
    {"fpa": True, "pyramid": "none", "object_context": False},
    {"memory_policy": "every"},
    {"memory_policy": "given"},
    {"memory_policy": "latest"},
    {"padding": "black", "channel_order": "bgr", "frozen_batch_norm": True},
    {"matching_rate": 1, "matching_spared": 2, "windows_4": (3,)},
    {"backbone": "test_efficientnet", "aspp_dilations": (1, 3)},
]
LEVELS, LABELS, GIVEN, KEY, VALUE = (0, 1, 2), (3, 4, 5), 6, 7, 8


def named(parts: dict[str, object]) -> str:
    return "-".join(f"{part}={value}" for part, value in parts.items())


@pytest.fixture(scope="session")
def scene(clips):
    """Four frames `(B, 4, 3, 40, 56)` and masks `(B, 2, 40, 56)` of two objects in each of the first three."""
    frames, masks, _ = clips((40, 56), frames=4, objects=2, dtype=torch.float64)
    return frames, [masks.roll(6 * t, dims=3) for t in range(3)]


def remembered(network: MemoryNetwork, scene, given=(True, False, False), videos=slice(None)) -> list[torch.Tensor]:
    """The first three frames as `read` takes them."""
    frames, masks = scene
    with torch.no_grad():
        each = [network.encode_memory(frames[videos, t], masks[t][videos], given=given[t]) for t in range(3)]
    return [torch.stack(kind, dim=3) for kind in zip(*each, strict=True)]


def answered(network: MemoryNetwork, scene, memory: list[torch.Tensor], videos=slice(None)) -> torch.Tensor:
    """Logits `(B, 3, 40, 56)` of the last frame."""
    with torch.no_grad():
        return network.segment(network.encode_query(scene[0][videos, 3]), *memory)


def with_other(memory: list[torch.Tensor], frame: int, kinds: tuple[int, ...]) -> list[torch.Tensor]:
    """The memory with some kinds of a frame's tensors exchanged between the two videos."""
    changed = [tensor.clone() for tensor in memory]
    for kind in kinds:
        changed[kind][:, :, :, frame] = memory[kind][:, :, :, frame].flip(0)
    return changed


@pytest.mark.parametrize("parts", [*ABLATION.values(), *OTHERS], ids=named)
def test_every_choice_segments_a_clip_as_propagation_does(make, scene, parts):
    network = make("camn", **parts).double()
    frames, masks = scene[0][:1, :, :, :33, :47], scene[1][0][:1, :, :33, :47]
    owner = (masks[0] * torch.tensor([1.0, 2.0])[:, None, None]).sum(dim=0).long()
    with torch.no_grad():
        together = network(frames, masks).logits[0].softmax(dim=1)
    propagator = Propagator(network, memory_every=1)
    steps = [propagator.step(frame, owner if t == 0 else None) for t, frame in enumerate(frames[0])]
    assert together.shape == (3, 3, 33, 47)
    assert together.isfinite().all()
    assert (together - torch.stack(steps[1:])).abs().max() < 1e-6


def test_without_its_additions_it_is_cfbi_plus(make, scene):
    frames, masks = scene
    plain, other = make("cfbi+").double(), make("camn", **ABLATION["+FPN"]).double()
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert (plain(frames, masks[0]).logits - other(frames, masks[0]).logits).abs().max() < 1e-9


def test_every_row_of_the_ablation_adds_weights():
    counts = [sum(p.numel() for p in build("camn", "nano", **parts).parameters()) for parts in ABLATION.values()]
    # Without a pyramid levels are brought to one width as with it.
    assert counts[0] == counts[1] < min(counts[2:4])
    assert max(counts[2:4]) < counts[4] < counts[5]


def test_paper_size_adds_less_than_four_million_parameters_to_cfbi_plus():
    camn, cfbi = (sum(p.numel() for p in build(name).parameters()) for name in ("camn", "cfbi+"))
    assert 3.5e6 < camn - cfbi < 4e6


def test_all_remembered_frames_are_read(make, scene):
    for parts, read in [({}, True), ({"memory_encoder": "prior"}, True), ({"memory_encoder": "none"}, False)]:
        network = make("camn", **parts).double()
        memory = remembered(network, scene)
        kinds = (*LEVELS, *LABELS, KEY, VALUE) if read else (*LEVELS, *LABELS)
        changed = answered(network, scene, with_other(memory, 1, kinds))
        assert bool((changed - answered(network, scene, memory)).abs().max() > 1e-6) == read


@pytest.mark.parametrize(("frame", "matched"), [(0, True), (1, False), (2, True)])
def test_given_frames_and_the_last_alone_are_matched(make, scene, frame, matched):
    network = make("camn").double()
    memory = remembered(network, scene)
    expected = answered(network, scene, memory)
    for level in LEVELS:
        changed = answered(network, scene, with_other(memory, frame, (level,)))
        assert bool((changed - expected).abs().max() > 1e-6) == matched


def test_frame_given_in_the_middle_is_matched_too(make, scene):
    network = make("camn").double()
    memory = remembered(network, scene, given=(True, True, False))
    expected = answered(network, scene, memory)
    assert (answered(network, scene, remembered(network, scene)) - expected).abs().max() > 1e-6
    for level in LEVELS:
        assert (answered(network, scene, with_other(memory, 1, (level,))) - expected).abs().max() > 1e-6


@pytest.mark.parametrize("parts", [{}, {"memory_encoder": "prior", "memory_keys": "separate"}], ids=named)
def test_videos_of_a_batch_may_be_given_masks_at_other_times(make, scene, parts):
    network = make("camn", **parts).double()
    times = [(True, False, False), (False, True, False)]
    apart = [remembered(network, scene, given, slice(b, b + 1)) for b, given in enumerate(times)]
    together = [torch.cat(kind) for kind in zip(*apart, strict=True)]
    assert together[GIVEN].flatten(1).tolist() == [list(map(float, given)) for given in times]
    found = answered(network, scene, together)
    for b, memory in enumerate(apart):
        assert (found[b] - answered(network, scene, memory, slice(b, b + 1))[0]).abs().max() < 1e-9


def test_memory_takes_a_query_at_hand(make, scene):
    network = make("camn").double()
    frames, masks = scene
    with torch.no_grad():
        fresh = network.encode_memory(frames[:, 0], masks[0])
        saved = network.encode_memory(frames[:, 0], masks[0], query=network.encode_query(frames[:, 0]), given=False)
    assert all((a == b).all() for kind, (a, b) in enumerate(zip(fresh, saved, strict=True)) if kind != GIVEN)
    assert fresh[GIVEN].all()
    assert not saved[GIVEN].any()


@pytest.mark.parametrize("keys", ["shared", "separate"])
def test_spatial_reader_looks_where_each_class_was_in_the_previous_frame(make, scene, keys):
    network = make("camn", reader="spatial", memory_keys=keys, sigma=1).double()
    memory = remembered(network, scene)
    objects = memory[5][:, :, 0]
    labels = torch.cat([1 - objects.sum(dim=1, keepdim=True), objects], dim=1)
    half = network.parts.value_channels // 2
    reader = SpatialReader(1, None, network.parts.argmax_on, network.parts.renormalise)
    constrained, free = [], []
    with torch.no_grad():
        query = network.encode_query(scene[0][:, 3])
        query_key = network.query_key(query.levels[2])
        for k in range(3):
            for side, share in enumerate((labels[:, k], 1 - labels[:, k])):
                key, value = (memory[kind][:, 0] for kind in (KEY, VALUE))
                if keys == "separate":
                    key = key.chunk(2, dim=1)[side] * share[:, None]
                halves = key, value[:, side * half : (side + 1) * half] * share[:, None]
                constrained.append(reader(*halves, query_key, labels[:, k, -1]))
                free.append(reader(*halves, query_key))
        found = network.read(query, *memory).levels[2][:, :, -2 * half :].flatten(1, 2)
    assert (found - torch.cat(constrained, dim=1)).abs().max() < 1e-9
    assert (found - torch.cat(free, dim=1)).abs().max() > 1e-3


def test_late_objects_join_the_memory_of_the_others(make):
    torch.manual_seed(0)
    propagator, frames = Propagator(make("camn"), memory_every=2), torch.rand(7, 3, 40, 48)
    first, second = np.zeros((40, 48), np.uint8), np.zeros((40, 48), np.uint8)
    first[5:20, 5:20], second[25:35, 25:45] = 7, 2
    for t, frame in enumerate(frames):
        found = propagator.step(frame, {0: first, 3: second}.get(t))
        assert (found.sum(dim=0) - 1).abs().max() < 1e-5
    assert propagator.objects == [2, 7]
    assert [(m["objects"], m["frames"]) for m in propagator.memory] == [([2, 7], [0, 2, 3, 4, 6])]


def test_object_that_was_not_there_yet_is_background_in_what_is_remembered(make, scene):
    network = make("camn").double()
    frames, masks = scene
    with torch.no_grad():
        one = tuple(x[0] for x in network.encode_memory(frames[:1, 0], masks[0][:1, :1]))
        two = tuple(
            x[0] for x in network.encode_memory(frames[:1, 0], torch.cat([0 * masks[0][:1, :1], masks[0][:1, :1]], 1))
        )
    admitted = network.admit(one, [1], 2)
    assert all((a == b).all() for a, b in zip(admitted, two, strict=True))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"value_channels": 33}, "value_channels must be even, half of them the background's, found 33"),
        (
            {"reader": "topk", "memory_encoder": "none"},
            "reader='topk' has no effect with memory_encoder='none'; choose",
        ),
        ({"key_channels": 8, "memory_encoder": "none"}, "key_channels=8 has no effect with memory_encoder='none'"),
        ({"memory_keys": "separate", "memory_encoder": "none"}, "memory_keys='separate' has no effect"),
        ({"memory_encoder": "value"}, "unknown memory_encoder 'value'; valid: none, product, prior$"),
        ({"memory_keys": "own"}, "unknown memory_keys 'own'; valid: shared, separate"),
        ({"pyramid": "panet"}, "unknown pyramid 'panet'; valid: none, fpn, pan"),
        ({"object_context": "yes"}, "object_context must be bool, found 'yes'"),
        ({"fpa": 1}, "fpa must be bool, found 1"),
        ({"windows_8": (4, 2)}, r"windows_8 must be greatest offsets in ascending order, .*found \(4, 2\)"),
        ({"windows_4": (2, 2)}, r"windows_4 must be .*found \(2, 2\)"),
        ({"windows_16": (0, 2)}, r"windows_16 must be .*found \(0, 2\)"),
        ({"windows_16": ()}, r"windows_16 must be .*found \(\)"),
        ({"matching_channels": (8, 16)}, "three numbers from 1 to embedding_channels=32"),
        ({"matching_channels": (8, 16, 33)}, r"embedding_channels=32, found \(8, 16, 33\)"),
        ({"matching_channels": (0, 16, 32)}, r"embedding_channels=32, found \(0, 16, 32\)"),
        ({"matching_rate": 0}, "matching_rate must be at least 1, found 0"),
        ({"ensembler_channels": 3}, "ensembler_channels must be at least 4, found 3"),
        ({"refine_channels": 2}, "refine_channels must be at least 4, found 2"),
        ({"embedding_channels": 1}, "embedding_channels must be at least 4, found 1"),
        ({"siamese": True}, "siamese=True does not go with this network: its objects share one memory"),
        ({"quality": "own"}, "quality='own' does not go with this network"),
        ({"memory_input": "mask+scribbles"}, r"memory_input='mask\+scribbles' does not go with this network"),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_choices_without_sense_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        build("camn", "nano", **parts)


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("stm", {"quality": "shared"}, "quality='shared' needs a memory encoder, which memory_encoder='product' lacks"),
        ("stm", {"memory_input": "mask+scribbles"}, "sees masks alone, no scribbles; choose memory_input='mask'"),
        ("stm-interactive", {}, "memory_encoder='product' sees masks alone, no scribbles; choose memory_input='mask'"),
        ("stm", {"value_channels": 33}, "value_channels must be even"),
        ("stm", {"memory_backbone": "test_efficientnet"}, "has no effect with memory_encoder='product'"),
    ],
)
def test_memory_without_an_encoder_is_refused_what_needs_one(name, parts, message):
    with pytest.raises(UserError, match=message):
        build(name, "nano", memory_encoder="product", **parts)
    assert build("stm-interactive", "nano", memory_encoder="product", memory_input="mask").parts.memory_input == "mask"


@pytest.mark.parametrize("name", ["camn", "cfbi+"])
def test_first_frame_is_the_reference_where_none_was_given(make, scene, name):
    network = make(name).double()
    frames, masks = scene[0][:1, :, :, :33, :47], scene[1][0][:1, :, :33, :47]
    flags = [(False, False), (True, False), (False, True)]
    with torch.no_grad():
        query = network.encode_query(frames[:, 2])
        kept = [[network.encode_memory(frames[:, t], masks, given=g) for t, g in enumerate(row)] for row in flags]
        found = [network.read(query, *(torch.stack(x, dim=3) for x in zip(*row, strict=True))).head for row in kept]
    assert (found[0] - found[1]).abs().max() < 1e-6
    assert (found[0] - found[2]).abs().max() > 1e-6
