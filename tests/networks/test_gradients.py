from __future__ import annotations

import pytest
import torch

from vosforge.networks import NETWORKS
from vosforge.networks.context import ObjectContext
from vosforge.networks.ensembler import ChannelGate
from vosforge.networks.pyramid import PyramidBranch

PYRAMID = {"aspp_channels": 16, "aspp_dropout": 0.1}
VARIANTS = [
    *((name, {}) for name in NETWORKS),
    *((name, {"frozen_batch_norm": True}) for name in NETWORKS),
    ("stm", {"reader": "topk", "top_k": 5}),
    ("stm", {"reader": "kernel"}),
    ("stm", {"reader": "kernel", "top_k": 5, "argmax_on": "weights"}),
    ("kmn", {"renormalise": False}),
    ("kmn", {"renormalise": False, "top_k": 5}),
    ("stm", {"scale": None}),
    ("stm", {"similarity": "l2"}),
    ("kmn", {"similarity": "l2"}),
    ("stcn", {"similarity": "dot"}),
    *(("stm", {"aspp": "read", "aspp_norm": norm, **PYRAMID}) for norm in ("none", "batch", "group")),
    ("mivos", {"aspp": "decoder", "aspp_pooling": False, **PYRAMID}),
    ("stm", {"siamese": True}),
    ("stm", {"siamese": True, "correlation": "full"}),
    ("emn", {"correlation": "full"}),
    *(("stm", {"decoder": form, "rectified_skip": True}) for form in ("stm", "mivos", "stcn")),
    ("stm", {"memory_input": "mask"}),
    ("mivos", {"memory_input": "mask+scribbles"}),
    ("stm", {"planes_at": "stem"}),
    ("stm-interactive", {"planes_at": "stem"}),
    ("stm", {"memory_encoder": "value"}),
    ("stm-interactive", {"memory_encoder": "value", "siamese": True}),
    ("stcn", {"memory_encoder": "key-value"}),
    ("stcn", {"siamese": True, "memory_input": "mask"}),
    ("stm", {"memory_backbone": "test_efficientnet"}),
    ("stcn", {"backbone": "test_convnext"}),
    ("stm", {"strides": (8,)}),
    ("qpm", {"quality": "shared", "prior": "object"}),
    ("qpm", {"memory_encoder": "value", "siamese": True}),
    ("stm", {"quality": "own", "quality_cells": 3}),
    ("stcn", {"quality": "shared", "prior": "union"}),
    ("stm", {"reader": "spatial"}),
    ("stm", {"reader": "spatial", "top_k": 5, "argmax_on": "weights"}),
    ("skn", {"aspp_output": 20}),
    *(
        ("stm", {"memory_encoder": scheme, "memory_keys": keys, "similarity": similarity})
        for scheme in ("product", "prior")
        for keys in ("shared", "separate")
        for similarity in ("dot", "l2")
    ),
    ("emn", {"memory_encoder": "prior", "pyramid": "fpn"}),
    ("qpm", {"memory_encoder": "product", "object_context": True}),
    ("stcn", {"pyramid": "pan", "object_context": True, "strides": (4, 8, 16)}),
    ("mivos", {"fpa": True}),
    ("camn", {"memory_encoder": "prior", "memory_keys": "separate"}),
    ("camn", {"pyramid": "none", "reader": "topk", "top_k": 3}),
    ("camn", {"pyramid": "fpn", "reader": "spatial", "fpa": True}),
]


def named(variant: tuple[str, dict]) -> str:
    return "-".join([variant[0], *(f"{part}={value}" for part, value in variant[1].items())])


def cancelled(network: torch.nn.Module) -> set[str]:
    """Biases that move all affinities of a query position alike, which the softmax takes out again.

    A memory key's bias b adds q·b to each dot product with a query q. Where memory and query share their key, the
    distance of two keys does not depend on its bias.
    """
    parts = network.parts
    if network.joint:
        return set()
    if parts.memory_encoder == "key-value":
        return {"memory_head.key.bias"} if parts.similarity == "dot" else set()
    shared = parts.memory_encoder == "value" or parts.memory_keys == "shared"
    return {"query_head.key.bias"} if shared and parts.similarity == "l2" else set()


def opened(network: torch.nn.Module) -> torch.nn.Module:
    """The network with all branches open that start closed, and would let nothing through at first."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
        if isinstance(module, ChannelGate):
            torch.nn.init.ones_(module.gamma)
        if isinstance(module, ObjectContext):
            module.project.reset_parameters()
        if isinstance(module, PyramidBranch):
            for widen in module.widen:
                widen.reset_parameters()
        if hasattr(module, "context_gain"):
            torch.nn.init.ones_(module.context_gain)
    return network


@pytest.fixture
def trained(make, clips, scribble):
    """A network in float64 after the backward pass of one training forward, scribbles and all."""

    def trained(name: str, **parts: object) -> torch.nn.Module:
        torch.manual_seed(0)
        network = opened(make(name, **parts).double().train())
        alone = network.parts.training_objects == "one"
        frames, masks, valid = clips((32, 48), objects=1 if alone else 2, dtype=torch.float64)
        scribbles = scribble(masks) if network.parts.memory_input == "mask+scribbles" else None
        logits, scores = network(frames, masks, valid, scribbles)
        loss = logits.softmax(dim=2)[:, :, 1].square().mean()
        if scores is not None:
            loss = loss + scores.square().mean()
        loss.backward()
        return network

    return trained


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_gradients_reach_every_parameter_that_is_not_frozen(trained, variant):
    network = trained(variant[0], **variant[1])
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    still = {name for name, p in learning.items() if p.grad is None or p.grad.abs().max() < 1e-14}
    assert still == cancelled(network)
    assert all(p.grad is None or p.grad.isfinite().all() for p in learning.values())
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert bool(frozen) == network.parts.frozen_batch_norm


@pytest.mark.parametrize("planes_at", ["input", "stem"])
@pytest.mark.parametrize("memory_input", ["mask", "mask+others", "mask+scribbles"])
@pytest.mark.parametrize("memory_encoder", ["key-value", "value"])
def test_every_plane_of_the_memorys_input_is_learnt_from(trained, memory_input, planes_at, memory_encoder):
    network = trained("stm", memory_input=memory_input, planes_at=planes_at, memory_encoder=memory_encoder)
    stem = network.memory_encoder.body.conv1
    gradient = stem.planes.weight.grad if planes_at == "stem" else next(stem.parameters()).grad[:, 3:]
    assert gradient.shape[1] == {"mask": 1, "mask+others": 2, "mask+scribbles": 3}[memory_input]
    assert gradient.abs().amax(dim=(0, 2, 3)).min() > 1e-12


def test_first_masks_get_gradients_through_the_memory(make, clips):
    network = make("stm")
    frames, masks, _ = clips((32, 32), objects=2)
    masks.requires_grad_()
    network(frames, masks).logits[:, -1, 1].sum().backward()
    assert masks.grad.isfinite().all()
    assert masks.grad.abs().amax(dim=(2, 3)).min() > 0
