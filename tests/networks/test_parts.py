from __future__ import annotations

import dataclasses
import re

import pytest

from vosforge.errors import UserError
from vosforge.networks import NETWORKS, SIZES, Parts, build, preset
from vosforge.networks.parts import choose, parse


@pytest.mark.parametrize(
    ("arguments", "parts", "message"),
    [
        (("sam",), {}, r"unknown network 'sam'; valid: stm, stm-interactive, emn, qpm, skn, camn, cfbi\+, .*stcn"),
        (("stm", "huge"), {}, r"unknown size 'huge' .*valid: nano, small, paper"),
        (("stm", "nano"), {"readr": "dense"}, r"unknown part 'readr'; valid: backbone, .*reader"),
        (("stm", "nano"), {"backbone": "resnet51"}, r"backbone 'resnet51'.*near names: .*resnet"),
        (("stm", "nano"), {"memory_backbone": "resnot50"}, r"backbone 'resnot50'"),
        (("stm", "nano"), {"strides": (3, 6)}, r"feature maps at strides \[2, 4, .*strides=\(3, 6\)"),
        (("stm", "nano"), {"backbone": "convnext_atto", "strides": (2, 4)}, r"'convnext_atto' .*strides=\(2, 4\)"),
        (
            ("stm", "nano"),
            {"backbone": "efficientnet_b0", "planes_at": "stem"},
            "ResNet family, found 'efficientnet_b0'",
        ),
        (("stm", "nano"), {"reader": "kernel", "sigma": float("nan")}, "sigma must be above 0, found nan"),
        (("emn", "nano"), {"backbone": "convnext_atto", "planes_at": "stem"}, "ResNet family.*use 'input'"),
    ],
)
def test_networks_that_cannot_be_built_are_refused_with_the_reason(arguments, parts, message):
    with pytest.raises(UserError, match=message):
        build(*arguments, **parts)


LITERALS = {
    "memory_encoder": "key-value, value, product, prior",
    "memory_keys": "shared, separate",
    "pyramid": "none, fpn, pan",
    "memory_input": "mask, mask+others, mask+scribbles",
    "planes_at": "input, stem",
    "prior": "none, union, object",
    "quality": "none, own, shared",
    "quality_activation": "linear, sigmoid, relu",
    "quality_hidden": "relu, sigmoid",
    "correlation": "depthwise, full",
    "reader": "dense, topk, kernel, spatial",
    "similarity": "dot, l2",
    "scale": "sqrt, None",
    "argmax_on": "affinity, weights",
    "aspp": "none, read, decoder",
    "aspp_norm": "none, batch, group",
    "decoder": "stm, mivos, stcn",
    "aggregation": "soft, winner-take-all, none",
    "memory_policy": "previous, every, given, ends, latest",
    "padding": "black, mean",
    "training_objects": "all, one",
}


@pytest.mark.parametrize("wrong", ["other", "", 3, True])
@pytest.mark.parametrize(("part", "valid"), LITERALS.items())
def test_unknown_values_are_refused_with_the_valid_ones(part, valid, wrong):
    with pytest.raises(UserError, match=re.escape(f"unknown {part} {wrong!r}; valid: {valid}") + "$"):
        choose(Parts(), **{part: wrong})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"key_channels": "32"}, "key_channels must be int, found '32'"),
        ({"key_channels": 32.0}, "key_channels must be int, found 32.0"),
        ({"key_channels": True}, "key_channels must be int, found True"),
        ({"value_channels": None}, "value_channels must be int, found None"),
        ({"backbone": None}, "backbone must be str, found None"),
        ({"siamese": 1}, "siamese must be bool, found 1"),
        ({"siamese": "yes"}, "siamese must be bool, found 'yes'"),
        ({"strides": 8}, r"strides must be tuple\[int, \.\.\.\], found 8"),
        ({"strides": (4.0, 8.0)}, r"strides must be tuple\[int, \.\.\.\], found \(4.0, 8.0\)"),
        ({"top_k": 2.5, "reader": "topk"}, r"top_k must be int \| None, found 2.5"),
        ({"pretrained": 1}, "pretrained must be bool | str, found 1"),
        ({"sigma": "7", "reader": "kernel"}, "sigma must be float, found '7'"),
        ({"top_k": 0}, "top_k must be at least 1, found 0"),
        ({"key_channels": 0}, "key_channels must be at least 1, found 0"),
        ({"decoder_channels": -4}, "decoder_channels must be at least 1, found -4"),
        ({"sigma": 0, "reader": "kernel"}, "sigma must be above 0, found 0"),
        ({"key_gain": -1}, "key_gain must be above 0, found -1"),
        ({"key_gain": float("nan")}, "key_gain must be above 0, found nan"),
        ({"aspp": "read", "aspp_dropout": -0.1}, "aspp_dropout must be at least 0, found -0.1"),
        ({"aspp": "read", "aspp_dropout": 1}, r"dropout below 1, found .* and 1\.0"),
        ({"aspp": "read", "aspp_dropout": float("nan")}, "dropout"),
        ({"aspp": "read", "aspp_dilations": ()}, r"dilations of at least 1 .*found \(\)"),
        ({"aspp": "read", "aspp_dilations": (0, 2)}, r"dilations of at least 1 .*found \(0, 2\)"),
        ({"quality": "own", "quality_channels": 0}, "quality_channels must be at least 1, found 0"),
        ({"quality": "own", "quality_cells": 0}, "quality_cells must be at least 1, found 0"),
        ({"quality": "own", "memory_threshold": "0.7"}, "memory_threshold must be float, found '0.7'"),
        ({"aspp": "read", "aspp_output": 0}, "aspp_output must be at least 1, found 0"),
        ({"aspp": "read", "aspp_output": 2.5}, r"aspp_output must be int \| None, found 2.5"),
        ({"reader": "spatial", "sigma": 0}, "sigma must be above 0, found 0"),
        ({"strides": (4, 16)}, r"strides: expected each twice the one before, .*found \(4, 16\)"),
        ({"strides": (8, 4)}, r"strides: expected each twice the one before, .*found \(8, 4\)"),
        ({"strides": ()}, r"strides: expected .*found \(\)"),
    ],
    ids=str,
)
def test_wrong_types_and_impossible_numbers_are_refused(parts, message):
    with pytest.raises(UserError, match=message):
        choose(Parts(), **parts)


@pytest.mark.parametrize(
    ("parts", "way_out"),
    [
        ({"top_k": 20}, "reader='topk' or reader='kernel' or reader='spatial'"),
        ({"sigma": 3, "reader": "topk"}, "reader='kernel' or reader='spatial'"),
        ({"argmax_on": "weights"}, "reader='kernel' or reader='spatial'"),
        ({"renormalise": False}, "reader='kernel' or reader='spatial'"),
        ({"correlation": "full"}, "siamese=True"),
        ({"aspp_norm": "none"}, "aspp='read' or aspp='decoder'"),
        ({"aspp_dilations": (1, 2)}, "aspp='read' or aspp='decoder'"),
        ({"aspp_pooling": False}, "aspp='read' or aspp='decoder'"),
        ({"aspp_dropout": 0.5}, "aspp='read' or aspp='decoder'"),
        ({"aspp_output": 64, "aspp": "decoder"}, "aspp='read'"),
        ({"prior_threshold": 0.5, "quality": "own"}, "prior='union' or prior='object'"),
        ({"quality_channels": 8}, "quality='own' or quality='shared'"),
        ({"quality_cells": 4}, "quality='own' or quality='shared'"),
        ({"quality_activation": "relu"}, "quality='own' or quality='shared'"),
        ({"quality_hidden": "sigmoid"}, "quality='own' or quality='shared'"),
        ({"memory_threshold": 0.5}, "quality='own' or quality='shared'"),
        ({"prior_threshold": 0.5, "prior": "union"}, "quality='own' or quality='shared'"),
        ({"memory_keys": "separate"}, "memory_encoder='product' or memory_encoder='prior'"),
        ({"planes_at": "stem", "memory_encoder": "prior"}, "memory_encoder='key-value' or memory_encoder='value'"),
        (
            {"memory_backbone": "test_efficientnet", "memory_encoder": "product"},
            "memory_encoder='key-value' or memory_encoder='value'",
        ),
    ],
    ids=str,
)
def test_parts_without_effect_are_refused_with_the_way_out(parts, way_out):
    part = next(iter(parts))
    with pytest.raises(UserError, match=rf"{part}=.* has no effect with .*; choose {way_out}, or leave it out"):
        build("stm", "nano", **parts)


def test_parts_of_the_preset_may_be_named_again():
    for name in NETWORKS:
        own = dataclasses.asdict(preset(name, "nano"))
        assert build(name, "nano", **own).parts == preset(name, "nano")


def test_whole_numbers_and_lists_take_their_parts_type():
    parts = choose(Parts(), reader="kernel", sigma=3, strides=[4, 8])
    assert (type(parts.sigma), parts.sigma, parts.strides) == (float, 3.0, (4, 8))


@pytest.mark.parametrize(
    ("word", "chosen"),
    [
        ("reader=kernel", {"reader": "kernel"}),
        ("sigma=5", {"sigma": 5.0}),
        ("sigma=0.5", {"sigma": 0.5}),
        ("top_k=20", {"top_k": 20}),
        ("top_k=none", {"top_k": None}),
        ("scale=None", {"scale": None}),
        ("scale=sqrt", {"scale": "sqrt"}),
        ("aspp=none", {"aspp": "none"}),
        ("siamese=true", {"siamese": True}),
        ("siamese=False", {"siamese": False}),
        ("pretrained=true", {"pretrained": True}),
        ("pretrained=folder/a=b.pth", {"pretrained": "folder/a=b.pth"}),
        ("memory_backbone=none", {"memory_backbone": None}),
        ("backbone=resnet18", {"backbone": "resnet18"}),
        ("strides=4,8", {"strides": (4, 8)}),
        ("strides=8", {"strides": (8,)}),
        ("reader=spatial", {"reader": "spatial"}),
        ("quality=none", {"quality": "none"}),
        ("prior=object", {"prior": "object"}),
        ("memory_threshold=1", {"memory_threshold": 1.0}),
        ("aspp_output=none", {"aspp_output": None}),
        ("aspp_dilations=1,2,4,8", {"aspp_dilations": (1, 2, 4, 8)}),
    ],
)
def test_words_are_read_as_parts_in_their_type(word, chosen):
    (part,) = chosen
    found = parse([word])
    assert found == chosen
    assert type(found[part]) is type(chosen[part])


def test_words_build_what_they_say():
    network = build("stm", "nano", **parse(["reader=kernel", "sigma=5", "siamese=true", "strides=4,8,16"]))
    assert (network.reader.sigma, network.parts.siamese, network.stride) == (5.0, True, 16)
    assert parse([]) == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("reader", "expected PART=VALUE, e.g. reader=kernel, found 'reader'"),
        ("readr=dense", "unknown part 'readr'; valid: backbone, "),
        ("=3", "unknown part ''; valid: backbone, "),
        ("reader=sparse", "unknown reader 'sparse'; valid: dense, topk, kernel, spatial"),
        ("reader=", "unknown reader ''; valid: dense, topk, kernel, spatial"),
        ("reader=none", "unknown reader 'none'; valid: dense, topk, kernel, spatial"),
        ("siamese=1", "siamese must be bool, found '1'"),
        ("top_k=1.5", r"top_k must be int \| None, found '1.5'"),
        ("strides=4;8", r"strides must be tuple\[int, \.\.\.\], found '4;8'"),
        ("sigma=0", "sigma must be above 0, found 0"),
    ],
)
def test_words_that_name_no_part_or_value_are_refused(word, message):
    with pytest.raises(UserError, match=message):
        parse([word])


def test_every_network_comes_in_every_size():
    assert all(tuple(sizes) == SIZES for sizes in NETWORKS.values())
    assert all(preset(name, "nano").backbone == "test_resnet" for name in NETWORKS)


def test_papers_read_at_stride_16_and_nanos_at_8(space_time):
    nano, paper = preset(space_time, "nano"), preset(space_time, "paper")
    backbone = "resnest101e" if space_time == "skn" else "resnet50"
    assert (nano.strides, paper.strides, paper.backbone) == ((4, 8), (4, 8, 16), backbone)
