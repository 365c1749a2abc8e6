from __future__ import annotations

import pytest
import torch

from vosforge.networks import preset
from vosforge.propagation import Propagator

VARIANTS = [
    {"reader": "dense"},
    {"reader": "dense", "scale": None, "similarity": "dot"},
    {"reader": "topk", "top_k": 7, "similarity": "l2"},
    {"reader": "kernel", "sigma": 2},
    {"reader": "kernel", "top_k": 9, "argmax_on": "weights", "renormalise": False},
    {"siamese": True, "correlation": "depthwise"},
    {"siamese": True, "correlation": "full", "reader": "kernel"},
    {"memory_encoder": "key-value", "memory_input": "mask+others"},
    {"memory_encoder": "value", "memory_input": "mask"},
    {"memory_encoder": "value", "memory_input": "mask+scribbles", "siamese": True},
    {"memory_backbone": "test_efficientnet", "planes_at": "input"},
    {"planes_at": "stem", "memory_input": "mask+scribbles"},
    {"aspp": "read", "aspp_channels": 12, "aspp_norm": "none", "aspp_pooling": False},
    {"aspp": "read", "aspp_norm": "batch", "decoder": "stcn"},
    {"aspp": "decoder", "aspp_norm": "group", "aspp_dilations": (2, 30), "siamese": True},
    {"decoder": "stm", "rectified_skip": True},
    {"decoder": "mivos", "strides": (4, 8, 16)},
    {"decoder": "stcn", "strides": (8,)},
    {"padding": "mean", "memorise_margin": True, "strides": (2, 4, 8)},
    {"padding": "black", "memorise_margin": False, "frozen_batch_norm": True},
    {"memory_policy": "given", "training_objects": "one"},
    {"memory_policy": "latest"},
    {"memory_policy": "every", "siamese": True, "memorise_margin": True},
    {"aspp": "read", "aspp_output": 20},
    {"prior": "union", "memory_encoder": "value"},
    {"prior": "object", "siamese": True, "memorise_margin": True},
    {"prior": "object", "memory_encoder": "value", "reader": "topk"},
    {"quality": "own", "prior": "union", "prior_threshold": 2},
    {"quality": "shared", "prior": "object", "memory_input": "mask"},
    {"quality": "own", "memory_backbone": "test_efficientnet", "planes_at": "input"},
    {"quality": "shared", "quality_cells": 5, "memory_policy": "every"},
    {"reader": "spatial"},
    {"reader": "spatial", "top_k": 9, "argmax_on": "weights", "renormalise": False, "memorise_margin": True},
    {"reader": "spatial", "similarity": "l2", "siamese": True, "quality": "shared", "prior": "object"},
    {"memory_encoder": "product"},
    {"memory_encoder": "product", "memory_keys": "separate", "reader": "topk", "top_k": 9},
    {"memory_encoder": "prior", "memory_keys": "shared", "similarity": "l2", "scale": None},
    {"memory_encoder": "prior", "memory_keys": "separate", "reader": "spatial", "memorise_margin": True},
    {"memory_encoder": "product", "siamese": True, "prior": "object"},
    {"memory_encoder": "prior", "quality": "own", "prior": "union"},
    {"pyramid": "fpn", "strides": (4, 8, 16)},
    {"pyramid": "pan", "strides": (8,), "object_context": True},
    {"object_context": True, "siamese": True, "aspp": "decoder"},
    {"fpa": True, "aspp": "read"},
]
# Each brings in several parts at once, for networks that do not meet every variant.
MIXED = [
    {"reader": "topk", "top_k": 7, "similarity": "l2", "aspp": "read", "aspp_channels": 12, "aspp_norm": "none"},
    {"reader": "kernel", "sigma": 2, "memory_encoder": "value", "siamese": True, "correlation": "depthwise"},
    {"reader": "spatial", "renormalise": True, "memory_encoder": "key-value", "prior": "object", "fpa": True},
    {"reader": "dense", "scale": None, "similarity": "dot", "memory_policy": "given", "decoder": "mivos"},
    {"memory_encoder": "key-value", "memory_backbone": "test_efficientnet", "planes_at": "input", "pyramid": "fpn"},
    {"memory_encoder": "value", "planes_at": "stem", "aspp": "decoder", "aspp_norm": "batch", "memorise_margin": True},
    {"memory_encoder": "product", "memory_keys": "shared", "memory_input": "mask", "memory_policy": "every"},
    {"memory_encoder": "product", "memory_keys": "separate", "memory_input": "mask", "siamese": True, "prior": "union"},
    {"memory_encoder": "prior", "memory_keys": "shared", "memory_input": "mask", "reader": "spatial", "pyramid": "pan"},
    {
        "memory_encoder": "prior",
        "memory_keys": "separate",
        "memory_input": "mask",
        "quality": "own",
        "object_context": True,
    },
    {"quality": "own", "prior": "union", "decoder": "stcn", "strides": (8,), "object_context": True},
    {"quality": "shared", "memory_encoder": "key-value", "strides": (4, 8, 16), "pyramid": "pan", "padding": "mean"},
    {"training_objects": "one", "frozen_batch_norm": True, "rectified_skip": True, "fpa": True, "aspp": "none"},
]
BACKBONES = [
    {"backbone": "resnet18", "planes_at": "stem"},
    {"backbone": "resnest14d", "planes_at": "stem"},
    {"backbone": "resnest14d", "planes_at": "stem", "strides": (4, 8, 16)},
    {"backbone": "efficientnet_b0"},
    {"backbone": "convnext_atto", "strides": (4, 8, 16)},
]


def named(parts: dict[str, object]) -> str:
    return "-".join(f"{part}={value}" for part, value in parts.items())


def forward_and_propagation(network, frames, masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `(T - 1, K + 1, H, W)` by the training forward, and step by step."""
    owner = (masks[0] * torch.arange(1, masks.shape[1] + 1)[:, None, None]).sum(dim=0).long()
    with torch.no_grad():
        together = network(frames, masks).logits[0].softmax(dim=1)
    propagator = Propagator(network, memory_every=1)
    steps = [propagator.step(frame, owner if t == 0 else None) for t, frame in enumerate(frames[0])]
    return together, torch.stack(steps[1:])


# A memory of keys and values, of values alone, and one object at a time beside its target.
@pytest.mark.parametrize("parts", VARIANTS, ids=named)
@pytest.mark.parametrize("name", ["stm", "emn", "stcn"])
def test_any_part_fits_each_form_of_network(make, clips, name, parts):
    network = make(name, **parts).double()
    frames, masks, _ = clips((33, 47), videos=1, objects=2, dtype=torch.float64)
    together, stepwise = forward_and_propagation(network, frames, masks)
    assert together.shape == stepwise.shape == (2, 3, 33, 47)
    assert together.isfinite().all()
    assert (together - stepwise).abs().max() < 1e-6


@pytest.mark.parametrize("parts", MIXED, ids=named)
def test_parts_fit_together_in_every_network(make, clips, space_time, parts):
    network = make(space_time, **parts).double()
    frames, masks, _ = clips((33, 47), videos=1, objects=2, dtype=torch.float64)
    together, stepwise = forward_and_propagation(network, frames, masks)
    assert together.shape == stepwise.shape == (2, 3, 33, 47)
    assert together.isfinite().all()
    assert (together - stepwise).abs().max() < 1e-6


@pytest.mark.parametrize("parts", BACKBONES, ids=named)
@pytest.mark.parametrize("name", ["stm", "emn", "stcn"])
def test_any_backbone_fits_any_network(make, clips, name, parts):
    network = make(name, **parts).double()
    frames, masks, _ = clips((33, 47), videos=1, objects=2, dtype=torch.float64)
    together, stepwise = forward_and_propagation(network, frames, masks)
    assert together.isfinite().all()
    assert (together - stepwise).abs().max() < 1e-6


@pytest.mark.parametrize("aggregation", ["winner-take-all", "none"])
def test_objects_are_merged_at_test_as_chosen(make, clips, space_time, aggregation):
    frames, masks, _ = clips((24, 32), videos=1, objects=2, dtype=torch.float64)
    network = make(space_time, aggregation=aggregation).double()
    _, stepwise = forward_and_propagation(network, frames, masks)
    background, objects = stepwise[:, 0], stepwise[:, 1:]
    assert (background - (1 - objects.amax(dim=1))).abs().max() < 1e-12
    alone = (objects > 0).sum(dim=1)
    assert (alone.max(), alone.min()) == ((1, 1) if aggregation == "winner-take-all" else (2, 2))


@pytest.mark.parametrize(
    "parts",
    [
        {"reader": "topk", "top_k": 3},
        {"reader": "kernel"},
        {"reader": "spatial"},
        {"similarity": "l2"},
        {"scale": None},
        {"rectified_skip": True},
        {"padding": "mean"},
        {"memorise_margin": True},
        {"memory_policy": "given"},
    ],
    ids=named,
)
def test_parts_without_weights_change_what_the_same_weights_answer(make, clips, parts):
    plain, other = make("stm"), make("stm", **parts)
    other.load_state_dict(plain.state_dict())
    frames, masks, _ = clips((33, 47))
    with torch.no_grad():
        assert (plain(frames, masks).logits - other(frames, masks).logits).abs().max() > 1e-4


@pytest.mark.parametrize("margin", [False, True])
def test_scribbles_fit_frames_of_any_size(make, clips, scribble, margin):
    network = make("stm-interactive", memorise_margin=margin)
    frames, masks, valid = clips((33, 47))
    with torch.no_grad():
        with_scribbles = network(frames, masks, valid, scribble(masks)).logits
        without = network(frames, masks, valid).logits
    assert with_scribbles.shape == (2, 2, 4, 33, 47)
    assert (with_scribbles - without).abs().max() > 1e-3


def test_scribbles_left_out_count_as_none(make, clips, scribble):
    network = make("stm-interactive")
    frames, masks, valid = clips((24, 32))
    nothing = torch.zeros_like(scribble(masks))
    with torch.no_grad():
        assert (network(frames, masks, valid, nothing).logits == network(frames, masks, valid).logits).all()
        drawn = [scribble(masks).to(dtype) for dtype in (torch.float32, torch.uint8, torch.bool)]
        answers = [network(frames, masks, valid, scribbles).logits for scribbles in drawn]
    assert (answers[0] == answers[1]).all()
    assert (answers[0] == answers[2]).all()


def test_networks_differ_in_their_memorys_planes(make, space_time):
    stem = make(space_time).memory_encoder.body.conv1
    planes = stem[0].in_channels - 3 if preset(space_time).planes_at == "input" else stem.planes.in_channels
    assert planes == {"stm-interactive": 3, "emn": 1}.get(space_time, 2)
