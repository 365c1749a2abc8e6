"""Published checkpoints: the weights of public code, under our names.

The layouts are those of `seoungwugoh/STM`, `hkchengrex/MiVOS` and `Mask-Propagation`, `hkchengrex/STCN`,
`yongliu20/QDMN`, `z-x-yang/CFBI` (CFBI+), and the re-training of STM with ResNeSt-101 that SKN starts from
(`haochenheheda/Training-Code-of-STM`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from vosforge.errors import UserError
from vosforge.networks import skn
from vosforge.networks.base import MemoryNetwork
from vosforge.networks.building import UNTRAINED, compose, preset
from vosforge.networks.parts import Parts, choose
from vosforge.networks.weight_files import read_weights, unwrapped

Rules = tuple[tuple[str, str], ...]

# How our names (left) are called in each source, rule after rule.
_STM: Rules = (
    (r"\.body\.layer1\.", ".res2."),
    (r"\.body\.layer2\.", ".res3."),
    (r"\.body\.layer3\.", ".res4."),
    (r"\.body\.(conv1\.rgb\b)", ".conv1"),
    (r"\.body\.", "."),
    (r"^memory_encoder\.", "Encoder_M."),
    (r"^query_encoder\.", "Encoder_Q."),
    (r"^memory_head\.key\.", "KV_M_r4.Key."),
    (r"^memory_head\.value\.", "KV_M_r4.Value."),
    (r"^query_head\.key\.", "KV_Q_r4.Key."),
    (r"^query_head\.value\.", "KV_Q_r4.Value."),
    (r"^decoder\.compress\.0\.", "Decoder.convFM."),
    (r"^decoder\.compress\.1\.", "Decoder.ResMM."),
    (r"^decoder\.refine\.0\.", "Decoder.RF2."),
    (r"^decoder\.refine\.1\.", "Decoder.RF3."),
    (r"\.skip_conv\.", ".convFS."),
    (r"\.skip_block\.", ".ResFS."),
    (r"\.merge_block\.", ".ResMM."),
    (r"^decoder\.predict\.", "Decoder.pred2."),
    (r"^context\.branches\.0\.0\.", "aspp.aspp1.atrous_conv."),
    (r"^context\.branches\.1\.0\.", "aspp.aspp2.atrous_conv."),
    (r"^context\.branches\.2\.0\.", "aspp.aspp3.atrous_conv."),
    (r"^context\.branches\.3\.0\.", "aspp.aspp4.atrous_conv."),
    (r"^context\.merge\.0\.", "aspp.conv1."),
)
_UPSAMPLING: Rules = (
    (r"^decoder\.refine\.0\.", "decoder.up_8_4."),
    (r"^decoder\.refine\.1\.", "decoder.up_16_8."),
    (r"\.skip\.", ".downsample."),
    (r"\.merge_block\.", ".out_conv."),
    (r"^decoder\.predict\.", "decoder.pred."),
)
_MIVOS: Rules = (
    (r"^query_encoder\.body\.", "rgb_encoder."),
    (r"^memory_encoder\.body\.", "mask_rgb_encoder."),
    (r"^(rgb_encoder)\.layer1\.", r"\1.res2."),
    (r"^memory_head\.key\.", "kv_m_f16.key_proj."),
    (r"^memory_head\.value\.", "kv_m_f16.val_proj."),
    (r"^query_head\.key\.", "kv_q_f16.key_proj."),
    (r"^query_head\.value\.", "kv_q_f16.val_proj."),
    (r"\.skip_conv\.", ".skip_conv1."),
    (r"\.skip_block\.", ".skip_conv2."),
    *_UPSAMPLING,
)
_QDMN: Rules = (
    *_MIVOS,
    (r"^enhancement\.conv\.", "concat_conv."),
    (r"^quality_head\.convs\.0\.", "score.conv1."),
    (r"^quality_head\.convs\.1\.", "score.conv2."),
    (r"^quality_head\.convs\.2\.", "score.conv3."),
    (r"^quality_head\.convs\.3\.", "score.conv4."),
    (r"^quality_head\.hidden\.", "score.fc1."),
    (r"^quality_head\.score\.", "score.fc2."),
    (r"^context\.pooled\.0\.", "aspp.global_avg_pool.1."),
    (r"^context\.pooled\.1\.", "aspp.global_avg_pool.2."),
    (r"^context\.merge\.0\.", "aspp.conv1."),
    (r"^context\.merge\.1\.", "aspp.bn1."),
    *((rf"^context\.branches\.{i}\.0\.", f"aspp.aspp{i + 1}.atrous_conv.") for i in range(4)),
    *((rf"^context\.branches\.{i}\.1\.", f"aspp.aspp{i + 1}.bn.") for i in range(4)),
)
_STCN: Rules = (
    (r"^query_encoder\.body\.", "key_encoder."),
    (r"^memory_encoder\.body\.", "value_encoder."),
    (r"^(key_encoder)\.layer1\.", r"\1.res2."),
    (r"^fusion\.channel_attention\.mlp\.0\.", "value_encoder.fuser.attention.ChannelGate.mlp.1."),
    (r"^fusion\.channel_attention\.mlp\.2\.", "value_encoder.fuser.attention.ChannelGate.mlp.3."),
    (r"^fusion\.spatial_attention\.", "value_encoder.fuser.attention.SpatialGate.spatial."),
    (r"^fusion\.", "value_encoder.fuser."),
    (r"^query_head\.key\.", "key_proj.key_proj."),
    (r"^query_head\.value\.", "key_comp."),
    *_UPSAMPLING,
)
_STAGES = ("S1_{}1", "S1_{}2", "S2_{}1", "S2_{}2", "S2_{}3", "S3_{}1", "S3_{}2", "S3_{}3")
_CFBI: Rules = (
    (r"^extractor\.encoder\.body\.", "feature_extracter.backbone."),
    *(
        (rf"^extractor\.pyramid\.branches\.{i}\.0\.", f"feature_extracter.aspp.aspp{i + 1}.atrous_conv.")
        for i in range(4)
    ),
    *((rf"^extractor\.pyramid\.branches\.{i}\.1\.", f"feature_extracter.aspp.aspp{i + 1}.bn.") for i in range(4)),
    (r"^extractor\.pyramid\.pooled\.0\.", "feature_extracter.aspp.global_avg_pool.1."),
    (r"^extractor\.pyramid\.pooled\.1\.", "feature_extracter.aspp.global_avg_pool.2."),
    (r"^extractor\.pyramid\.merge\.0\.", "feature_extracter.aspp.conv1."),
    (r"^extractor\.pyramid\.merge\.1\.", "feature_extracter.aspp.bn1."),
    (r"^extractor\.shortcut\.0\.", "feature_extracter.decoder.conv1."),
    (r"^extractor\.shortcut\.1\.", "feature_extracter.decoder.bn1."),
    (r"^extractor\.decoder\.([01])\.", r"feature_extracter.decoder.last_conv.\1."),
    (r"^extractor\.decoder\.3\.", "feature_extracter.decoder.last_conv.4."),
    (r"^extractor\.decoder\.4\.", "feature_extracter.decoder.last_conv.5."),
    (r"^neck\.lateral\.0\.", "fpn.latlayer2."),
    (r"^neck\.lateral\.1\.", "fpn.latlayer1."),
    (r"^neck\.lateral\.2\.", "fpn.toplayer."),
    (r"^neck\.smooth\.0\.", "fpn.smooth2."),
    (r"^neck\.smooth\.1\.", "fpn.smooth1."),
    (r"^background_bias$", "bg_bias"),
    (r"^foreground_bias$", "fg_bias"),
    (r"^ensembler\.", "dynamic_seghead."),
    *((rf"\.gates\.{i}\.linear\.", f".{stage.format('IA')}.IA.") for i, stage in enumerate(_STAGES)),
    *((rf"\.blocks\.{i}\.", f".{stage.format('layer')}.") for i, stage in enumerate(_STAGES)),
    (r"(layer\d)\.gate\.", r"\1.GCT1."),
    (r"(layer\d)\.norm(\d)\.", r"\1.bn\2."),
    (r"(layer\d)\.skip\.", r"\1.downsample."),
    (r"\.pyramid_gate\.linear\.", ".ASPP_IA.IA."),
    *((rf"\.pyramid\.branches\.{i}\.0\.", f".ASPP.aspp{i + 1}.GCT.") for i in range(4)),
    *((rf"\.pyramid\.branches\.{i}\.1\.", f".ASPP.aspp{i + 1}.atrous_conv.") for i in range(4)),
    *((rf"\.pyramid\.branches\.{i}\.2\.", f".ASPP.aspp{i + 1}.bn.") for i in range(4)),
    (r"\.pyramid\.pooled\.", ".ASPP.global_avg_pool.1."),
    (r"\.pyramid\.gate\.", ".ASPP.GCT."),
    (r"\.pyramid\.merge\.0\.", ".ASPP.conv1."),
    (r"\.pyramid\.merge\.1\.", ".ASPP.bn1."),
    (r"\.shortcut\.0\.", ".GCT_sc."),
    (r"\.shortcut\.1\.", ".conv_sc."),
    (r"\.shortcut\.2\.", ".bn_sc."),
    (r"\.decoder_gates\.0\.linear\.", ".IA10.IA."),
    (r"\.decoder_gates\.1\.linear\.", ".IA11.IA."),
    (r"^(dynamic_seghead)\.decoder\.0\.0\.", r"\1.conv1."),
    (r"^(dynamic_seghead)\.decoder\.0\.1\.", r"\1.bn1."),
    (r"^(dynamic_seghead)\.decoder\.1\.0\.", r"\1.conv2."),
    (r"^(dynamic_seghead)\.decoder\.1\.1\.", r"\1.bn2."),
    (r"^(dynamic_seghead)\.foreground\.", r"\1.IA_final_fg."),
    (r"^(dynamic_seghead)\.background\.", r"\1.IA_final_bg."),
)
# What the authors of QPM published later differs from the paper in these parts.
_QDMN_PARTS = {
    "quality": "shared",
    "quality_activation": "sigmoid",
    "quality_hidden": "sigmoid",
    "reader": "topk",
    "top_k": 50,
    "aspp": "read",
    "aspp_channels": 256,
    "aspp_output": 1024,
    "memory_threshold": 0.8,
}
_STM_PLANES = ("Encoder_M.conv1_m.weight", "Encoder_M.conv1_o.weight")
# Batch norm's counters may be missing, and the normalisation, which most sources keep outside the network.
_OPTIONAL = ("num_batches_tracked", "encoder.mean", "encoder.std")
# source: (our network, the parts in which the source differs from it, names).
SOURCES: dict[str, tuple[str, dict[str, Any], Rules]] = {
    "stm": ("stm", {}, _STM),
    "mivos": ("mivos", {}, _MIVOS),
    "stcn": ("stcn", {}, _STCN),
    "qdmn": ("qpm", _QDMN_PARTS, _QDMN),
    "cfbi+": ("cfbi+", {"channel_order": "bgr"}, _CFBI),
    "skn-baseline": ("stm", {f.name: getattr(skn.BASELINE, f.name) for f in fields(Parts)}, _STM),
}


def from_published(source: str, state_or_path: Mapping[str, Any] | str | Path, **parts: Any) -> MemoryNetwork:
    """A ready network with the weights of a published checkpoint.

    `module.` is stripped from names; biases of convolutions that are followed by batch norm are folded into it; the
    first convolutions of STM's memory encoder are joined.

    Args:
        source: "stm", "mivos", "stcn", "qdmn", "cfbi+" or "skn-baseline".
        state_or_path: names and values (tensors or arrays), or a file that holds them (.pth or .safetensors);
            nothing but tensors is ever unpickled.
        parts: parts of the result to choose, e.g. `top_k=20`; those with weights must fit the checkpoint.

    Returns:
        The network, in evaluation mode; in float64 if the weights are, else in float32.

    Raises:
        UserError: for an unknown source, a file that holds something else, or all missing, unexpected and misshapen
            names of the checkpoint at once.
    """
    if not isinstance(source, str) or source not in SOURCES:
        raise UserError(f"unknown source of weights {source!r}; valid: {', '.join(SOURCES)}")
    if isinstance(state_or_path, (str, Path)):
        label, state = str(state_or_path), read_weights(state_or_path)
    else:
        label = "the given weights"
        state = unwrapped(state_or_path, label)
    given = {key.removeprefix("module."): _tensor(key, value) for key, value in state.items()}
    name, own_parts, rules = SOURCES[source]
    base = choose(preset(name), **{**own_parts, **_planes(source, given)})
    network = compose(name, "paper", choose(base, **{**parts, **UNTRAINED}))
    if any(weight.dtype == torch.float64 for weight in given.values()):
        network = network.double()
    own = network.state_dict()
    weights = _taken(given, own, rules, f"{label}: no checkpoint of {source} with these parts")
    network.load_state_dict({**own, **weights})
    return network.eval()


def _taken(
    given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], rules: Rules, trouble: str
) -> dict[str, torch.Tensor]:
    """The published values under our names, or one error of all that does not fit."""
    weights, used, missing, misshapen = {}, set(), [], []
    for name, weight in own.items():
        sources = _published_names(name, weight, rules)
        used.update(sources)
        absent = [source for source in sources if source not in given]
        if absent:
            missing += [] if name.endswith(_OPTIONAL) else absent
            continue
        value = given[sources[0]] if len(sources) == 1 else torch.cat([given[source] for source in sources], dim=1)
        bias = _bias_before_norm(name, rules)
        if bias in given and bias.removesuffix("bias") + "weight" in used:
            used.add(bias)
            value = value - given[bias]
        if value.shape != weight.shape:
            misshapen.append(f"{' + '.join(sources)} {tuple(value.shape)} for {tuple(weight.shape)}")
        weights[name] = value
    unexpected = [source for source in given if source not in used]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(found.values()):
        listing = "; ".join(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in found.items() if names)
        raise UserError(f"{trouble}: {listing}")
    return weights


def _published_names(name: str, weight: torch.Tensor, rules: Rules) -> list[str]:
    """What one of our weights is called there; several that are joined along the input planes."""
    first = "memory_encoder.body.conv1."
    if rules is _STM and name == f"{first}weight":
        return ["Encoder_M.conv1.weight", *_STM_PLANES[: weight.shape[1] - 3]]
    if rules is _STM and name == f"{first}planes.weight":
        return list(_STM_PLANES[: weight.shape[1]])
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return [name]


def _bias_before_norm(name: str, rules: Rules) -> str:
    """The published bias of the convolution before the norm whose `running_mean` this is.

    Our convolutions there have none: `norm(x + b)` is the norm of x with `running_mean - b`.
    """
    conv = re.sub(r"downsample\.1\.running_mean$", "downsample.0.bias", name)
    conv = re.sub(r"bn(\d)\.running_mean$", r"conv\1.bias", conv)
    for pattern, replacement in rules if conv != name else ():
        conv = re.sub(pattern, replacement, conv)
    return conv if conv.endswith(".bias") and name.endswith("running_mean") else ""


def _tensor(name: str, value: Any) -> torch.Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise UserError(f"{name}: expected finite weights, found NaN or infinity")
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _planes(source: str, given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """MiVOS and STCN publish networks for one object too, whose memory sees no others."""
    first = given.get({"mivos": "mask_rgb_encoder.conv1.weight", "stcn": "value_encoder.conv1.weight"}.get(source, ""))
    return {"memory_input": "mask"} if first is not None and first.ndim == 4 and first.shape[1] == 4 else {}
