"""timm's backbones, cut to feature levels, and their weights."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import FeatureListNet
from torch import nn

from vosforge.errors import UserError
from vosforge.networks.weight_files import read_weights


def features(
    backbone: str, strides: tuple[int, ...], channels: int, pretrained: bool, dilated: bool = False
) -> nn.Module:
    """A backbone cut to the feature maps at some strides.

    Args:
        backbone: timm name.
        strides: of the maps, fine to coarse.
        channels: planes that it is fed with.
        pretrained: take the weights from timm's hub.
        dilated: reach stride 16 by dilating the last stage.

    Raises:
        UserError: for an unknown backbone, one without a map at a stride, or weights that cannot be fetched.
    """
    reductions, options = _offered(backbone, {"output_stride": 16} if dilated else {})
    missing = [stride for stride in strides if stride not in reductions]
    if missing:
        raise UserError(f"backbone {backbone!r} has feature maps at strides {reductions}, but strides={strides} asked")
    options |= {"out_indices": tuple(_last(reductions, stride) for stride in strides), "in_chans": channels}
    try:
        body = timm.create_model(backbone, features_only=True, pretrained=pretrained, **options)
        if dilated:
            _spread(body)
        return body
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"backbone {backbone!r}: its weights could not be fetched from timm's hub ({reason}); "
            "give them as a file, pretrained=PATH, or train without"
        ) from error


class StemWithPlanes(nn.Module):
    """A backbone's stem whose output also carries a convolution of further input planes."""

    def __init__(self, rgb: nn.Module, planes: int):
        super().__init__()
        self.rgb = rgb
        width = [m for m in rgb.modules() if isinstance(m, nn.Conv2d)][-1].out_channels
        self.planes = nn.Conv2d(planes, width, 7, stride=2, padding=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rgb(x[:, :3]) + self.planes(x[:, 3:])


def load(body: nn.Module, path: str) -> None:
    """Put a file's weights into a backbone: those of the backbone itself, or of a network that contains it.

    What the backbone lacks (a classifier, later stages) is left out; what the file lacks is an error.

    Raises:
        UserError: when the file has not all of the backbone's weights, naming the first that are missing.
    """
    # timm joins names of modules that it takes apart with underscores, and puts others under "model".
    state = {name.replace(".", "_"): weight for name, weight in read_weights(path).items()}
    own = body.state_dict()
    plain = {name: name.removeprefix("model.").replace(".", "_") for name in own}
    anchor = plain[next(iter(own))]
    prefixes = [name.removesuffix(anchor) for name in state if name.endswith(anchor)] or [""]
    found: dict[str, torch.Tensor] = {}
    for prefix in prefixes:
        under = {name: state.get(prefix + plain[name]) for name in own}
        fitting = {name: w for name, w in under.items() if w is not None and w.shape == own[name].shape}
        found = fitting if len(fitting) > len(found) else found
    wrong = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    if wrong:
        found_wrong = f"{len(wrong)} of {len(own)} are missing or misshapen: {', '.join(wrong[:3])}"
        raise UserError(f"{path}: expected all weights of the backbone, {found_wrong}")
    body.load_state_dict({**own, **found})


def open_branches(body: nn.Module) -> None:
    """Fresh residual branches end in a norm of weight 0, which, were it frozen, would shut them for good."""
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d) and not norm.weight.any():
            nn.init.ones_(norm.weight)


def stem(body: nn.Module, backbone: str) -> nn.Module:
    """The first layers of a ResNet, before their norm.

    Raises:
        UserError: for a backbone that has none.
    """
    if not isinstance(getattr(body, "conv1", None), nn.Module) or not hasattr(body, "bn1"):
        raise UserError(f"planes_at='stem' needs a backbone of the ResNet family, found {backbone!r}; use 'input'")
    return body.conv1


def _spread(body: nn.Module) -> None:
    """Dilate the bottlenecks of a ResNet's last stage by 2, 4 and 8."""
    blocks = [block for block in getattr(body, "layer4", []) if hasattr(block, "conv3")]
    for i, block in enumerate(blocks):
        if isinstance(block.conv2, nn.Conv2d):
            block.conv2.dilation = block.conv2.padding = (2 << i, 2 << i)


def _offered(backbone: str, dilation: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    """The strides of a backbone's feature maps, and the options with which it takes frames of any size."""
    if not timm.is_model(backbone):
        near = ", ".join(timm.list_models(f"*{backbone.split('_')[0][:6]}*")[:8]) or "see timm.list_models()"
        raise UserError(f"backbone {backbone!r} is no timm model; near names: {near}")
    reason: Exception | None = None
    # What timm's window transformers and plain vision transformers ask for.
    for kind in ({}, {"strict_img_size": False}, {"dynamic_img_size": True}):
        options = kind | dilation
        try:
            probe = _probe(backbone, options)
            if not isinstance(probe, FeatureListNet):
                # Other kinds keep stages that are not asked for.
                options |= {"feature_cls": "getter"}
                probe = _probe(backbone, options)
            return probe.feature_info.reduction(), options
        except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError) as error:
            reason = reason or error
    raise UserError(f"backbone {backbone!r} gives no feature maps for frames of any size: {reason}")


def _probe(backbone: str, options: dict[str, Any]) -> nn.Module:
    """The backbone without weights, after it gave maps of the sizes that it promises."""
    height, width = 128, 192
    with torch.device("meta"):
        body = timm.create_model(backbone, features_only=True, **options).eval()
        maps = body(torch.empty(1, 3, height, width))
    for level, stride, channels in zip(maps, body.feature_info.reduction(), body.feature_info.channels(), strict=True):
        size = (height // stride, width // stride)
        if tuple(level.shape[1:]) not in ((channels, *size), (*size, channels)):
            raise ValueError(f"a map at stride {stride} is {tuple(level.shape[1:])}, expected {(channels, *size)}")
    return body


def _last(reductions: list[int], stride: int) -> int:
    """Index of the deepest map at a stride."""
    return len(reductions) - 1 - reductions[::-1].index(stride)
