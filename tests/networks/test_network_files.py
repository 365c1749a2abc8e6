from __future__ import annotations

import pytest
import safetensors.torch
import torch

from vosforge.errors import UserError
from vosforge.networks import NETWORKS, build, describe, load, load_weights, save

EVERY = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture
def stm_file(make, tmp_path):
    save(make("stm"), tmp_path / "stm.safetensors")
    return tmp_path / "stm.safetensors"


@EVERY
def test_saved_network_comes_back_the_same(make, clips, tmp_path, name):
    network = make(name)
    tensors = clips((33, 40))
    with torch.no_grad():
        network.train()(*tensors)  # So that batch norm's statistics are not the fresh ones.
    save(network.eval(), tmp_path / "network.safetensors")
    back = load(tmp_path / "network.safetensors")
    with torch.no_grad():
        assert (back(*tensors).logits == network(*tensors).logits).all()
    assert not back.training
    assert back.parts == network.parts
    assert describe(tmp_path / "network.safetensors") == back.description == network.description
    assert back.description["name"] == name


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("stm", {"siamese": True, "correlation": "full", "aspp": "read", "aspp_dilations": [1, 3]}),
        ("mivos", {"memory_encoder": "value", "strides": (4, 8, 16), "planes_at": "stem"}),
        ("stcn", {"scale": None, "top_k": None, "memory_backbone": "test_efficientnet"}),
        ("kmn", {"sigma": 3, "top_k": 9, "renormalise": False}),
        ("emn", {"aspp": "none", "frozen_batch_norm": True}),
        ("mivos", {"reader": "dense"}),
        ("qpm", {"quality": "shared", "quality_cells": 5, "prior": "object", "prior_threshold": 2}),
        ("stm", {"quality": "own", "quality_activation": "relu", "memory_threshold": 0.5}),
        ("skn", {"aspp_output": 20, "sigma": 3, "renormalise": True}),
        ("stm", {"memory_encoder": "prior", "memory_keys": "separate", "pyramid": "pan", "object_context": True}),
        ("stcn", {"memory_encoder": "product", "pyramid": "fpn", "fpa": True}),
        ("camn", {"memory_encoder": "prior", "memory_keys": "separate", "reader": "spatial", "fpa": True}),
        ("cfbi+", {"pyramid": "none", "windows_16": [1, 3], "channel_order": "bgr"}),
    ],
    ids=str,
)
def test_parts_chosen_at_building_come_back_with_the_weights(make, clips, tmp_path, name, parts):
    network = make(name, **parts)
    save(network, tmp_path / "network.safetensors")
    back = load(tmp_path / "network.safetensors")
    tensors = clips((24, 32))
    with torch.no_grad():
        assert (back(*tensors).logits == network(*tensors).logits).all()
    assert (back.parts, back.description) == (network.parts, network.description)


@pytest.mark.parametrize(
    ("name", "built", "chosen", "expected"),
    [
        ("stm", {}, {"reader": "topk", "top_k": 7}, ("TopKReader", 7)),
        ("stm", {}, {"reader": "topk"}, ("TopKReader", 50)),
        ("mivos", {}, {"top_k": 20}, ("TopKReader", 20)),
        ("mivos", {}, {"reader": "dense"}, ("DenseReader", None)),
        ("stm", {"reader": "topk", "top_k": 20}, {"reader": "dense"}, ("DenseReader", None)),
        ("kmn", {"sigma": 3}, {"reader": "dense"}, ("DenseReader", None)),
        ("kmn", {}, {"top_k": 5}, ("KernelReader", None)),
        ("skn", {}, {"reader": "kernel"}, ("KernelReader", None)),
        ("kmn", {"sigma": 3}, {"reader": "spatial"}, ("SpatialReader", None)),
    ],
    ids=str,
)
def test_parts_without_weights_can_be_chosen_anew_at_loading(make, tmp_path, name, built, chosen, expected):
    save(make(name, **built), tmp_path / "first.safetensors")
    network = load(tmp_path / "first.safetensors", **chosen)
    assert (type(network.reader).__name__, getattr(network.reader, "k", None)) == expected
    # What was chosen anew is kept in the next file.
    save(network, tmp_path / "second.safetensors")
    assert load(tmp_path / "second.safetensors").description == network.description


@pytest.mark.parametrize(
    "parts",
    [
        {"memory_policy": "given"},
        {"padding": "mean"},
        {"memorise_margin": True},
        {"aggregation": "none"},
        {"scale": None},
        {"similarity": "l2"},
        {"rectified_skip": True},
        {"training_objects": "one"},
        {"frozen_batch_norm": True},
    ],
    ids=str,
)
def test_how_a_network_is_used_can_be_chosen_anew_at_loading(stm_file, parts):
    back = load(stm_file, **parts)
    ((part, value),) = parts.items()
    assert getattr(back.parts, part) == value == back.description["parts"][part]


def test_unknown_parts_are_refused_at_loading(stm_file):
    with pytest.raises(UserError, match="unknown part 'raeder'"):
        load(stm_file, raeder="topk")
    with pytest.raises(UserError, match="top_k=7 has no effect with reader='dense'"):
        load(stm_file, top_k=7)


@pytest.mark.parametrize(
    ("parts", "trouble"),
    [
        ({"key_channels": 16}, "0 missing .*0 unexpected .*of another shape .*query_head"),
        ({"siamese": True}, "of another shape .*query_head.key.weight"),
        ({"memory_encoder": "value"}, r"missing \['fusion.*unexpected \['memory_head"),
        ({"memory_encoder": "product"}, r"1 missing \['foreground_background.*unexpected \['memory_encoder"),
        ({"pyramid": "fpn"}, r"missing \['paths.*0 unexpected"),
        ({"object_context": True}, r"missing .*object_context.*0 unexpected"),
        ({"fpa": True}, r"missing \['attention.*0 unexpected"),
        ({"decoder": "stcn"}, "unexpected .*decoder"),
        ({"aspp": "read"}, "missing .*context"),
        ({"prior": "union"}, r"missing \['enhancement"),
        ({"quality": "shared"}, r"missing \['quality_head"),
        ({"quality": "own"}, r"missing .*0 unexpected"),
        ({"memory_input": "mask"}, "0 missing .*0 unexpected .*1 of another shape .*memory_encoder"),
    ],
    ids=str,
)
def test_parts_whose_weights_do_not_fit_are_refused(stm_file, parts, trouble):
    with pytest.raises(UserError, match=rf"stm\.safetensors: weights do not fit.*{trouble}"):
        load(stm_file, **parts)


def test_pretrained_file_need_not_be_there_at_loading(tmp_path):
    save(build("stm", "nano"), tmp_path / "donor.safetensors")
    network = build("stm", "nano", pretrained=str(tmp_path / "donor.safetensors"))
    save(network, tmp_path / "stm.safetensors")
    (tmp_path / "donor.safetensors").unlink()
    back = load(tmp_path / "stm.safetensors")
    assert all((a == b).all() for a, b in zip(back.parameters(), network.parameters(), strict=True))


def test_missing_and_unexpected_weights_are_named(make, tmp_path):
    network = make("stm")
    state = network.state_dict()
    state["stranger"] = state.pop("query_head.key.bias")
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"1 missing \['query_head.key.bias'\], 1 unexpected \['stranger'\]"):
        load_weights(network, tmp_path / "other.safetensors")


def test_files_that_are_no_network_are_refused_by_name(stm_file, tmp_path):
    foreign, text = tmp_path / "foreign.safetensors", tmp_path / "text.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, foreign)
    text.write_text("no network")
    (tmp_path / "cut.safetensors").write_bytes(stm_file.read_bytes()[:-1000])
    for name, message in [
        ("foreign", "without vosforge's network description"),
        ("text", "expected a safetensors file"),
        ("cut", "expected a safetensors file"),
        ("gone", "no such network file"),
    ]:
        with pytest.raises(UserError, match=rf"{name}\.safetensors: .*{message}"):
            load(tmp_path / f"{name}.safetensors")
