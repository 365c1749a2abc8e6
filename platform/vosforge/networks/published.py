"""Published checkpoints: the weights of public code, under our names.

The layouts are those of `seoungwugoh/STM`, `hkchengrex/MiVOS` and `Mask-Propagation`, `hkchengrex/STCN`, and the
re-training of STM with ResNeSt-101 that SKN starts from (`haochenheheda/Training-Code-of-STM`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vosforge.errors import UserError
from vosforge.networks.base import MemoryNetwork
from vosforge.networks.building import build
from vosforge.networks.encoders import read_weights

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
_SKN_BASELINE = {
    "backbone": "resnest101e",
    "planes_at": "stem",
    "aspp": "read",
    "aspp_channels": 256,
    "aspp_dilations": (1, 2, 4, 8),
    "aspp_norm": "none",
    "aspp_pooling": False,
    "aspp_dropout": 0.5,
    "rectified_skip": True,
}
_STM_PLANES = ("Encoder_M.conv1_m.weight", "Encoder_M.conv1_o.weight")
# Batch norm's counters may be missing, and the normalisation, which most sources keep outside the network.
_OPTIONAL = ("num_batches_tracked", "encoder.mean", "encoder.std")
# source: (our network, the parts in which the source differs from it, names).
SOURCES: dict[str, tuple[str, dict[str, Any], Rules]] = {
    "stm": ("stm", {}, _STM),
    "mivos": ("mivos", {}, _MIVOS),
    "stcn": ("stcn", {}, _STCN),
    "skn-baseline": ("stm", _SKN_BASELINE, _STM),
}


def from_published(source: str, state_or_path: Mapping[str, Any] | str | Path, **parts: Any) -> MemoryNetwork:
    """A ready network with the weights of a published checkpoint.

    `module.` is stripped from names; biases of convolutions that are followed by batch norm are folded into it; the
    first convolutions of STM's memory encoder are joined.

    Args:
        source: "stm", "mivos", "stcn" or "skn-baseline".
        state_or_path: names and values (tensors or arrays), or a file that holds them (.pth or .safetensors);
            nothing but tensors is ever unpickled.
        parts: parts of the result to choose, e.g. `top_k=20`; those with weights must fit the checkpoint.

    Returns:
        The network, in evaluation mode; in float64 if the weights are, else in float32.

    Raises:
        UserError: for an unknown source, a file that holds something else, or all missing, unexpected and misshapen
            names of the checkpoint at once.
    """
    if source not in SOURCES:
        raise UserError(f"unknown source of weights {source!r}; valid: {', '.join(SOURCES)}")
    label = "the given weights" if isinstance(state_or_path, Mapping) else str(state_or_path)
    state = state_or_path if isinstance(state_or_path, Mapping) else read_weights(state_or_path)
    given = {key.removeprefix("module."): _tensor(key, value) for key, value in state.items()}
    name, own_parts, rules = SOURCES[source]
    network = build(name, "paper", **{**own_parts, **_planes(source, given), **parts, "pretrained": False})
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
    if not isinstance(value, (torch.Tensor, np.ndarray)):
        raise UserError(f"{name}: expected a tensor or an array, found {type(value).__name__}")
    tensor = torch.as_tensor(value).detach().cpu()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _planes(source: str, given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """MiVOS and STCN publish networks for one object too, whose memory sees no others."""
    first = given.get({"mivos": "mask_rgb_encoder.conv1.weight", "stcn": "value_encoder.conv1.weight"}.get(source, ""))
    return {"memory_input": "mask"} if first is not None and first.ndim == 4 and first.shape[1] == 4 else {}
