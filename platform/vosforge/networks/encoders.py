"""Encoders: frames, and frames with masks, to feature maps, keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import timm
import torch
from timm.models import FeatureListNet
from torch import nn

from vosforge.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """A timm backbone cut to a few feature levels, fed with RGB and any number of further planes.

    RGB is normalised inside with ImageNet's mean and standard deviation; further planes (masks, scribbles)
    are not (as in the published STM).

    Args:
        backbone: any timm name that offers `features_only`.
        strides: the levels' strides, fine to coarse: (4, 8, 16) in the papers.
        planes: input planes beside RGB.
        planes_at: "input" widens the first convolution; "stem" adds a 7x7 convolution of the planes to the stem's
            output, before its norm (the public ResNeSt form of STM).
        pretrained: take timm's weights from its hub, or weights from a file.
        frozen: keep batch norm's statistics and affine parameters as they are, also in training mode.
        dilated: reach stride 16 by dilating the last stage, in ResNets by 2, 4 and 8 (DeepLab's multi-grid).

    Raises:
        UserError: for an unknown backbone, one that has no level at one of the strides or no stem to add planes
            to, or a file of weights that does not fit.
    """

    def __init__(
        self,
        backbone: str,
        strides: tuple[int, ...],
        planes: int = 0,
        planes_at: Literal["input", "stem"] = "input",
        pretrained: bool | str = False,
        frozen: bool = False,
        dilated: bool = False,
    ):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.frozen = frozen
        widened = planes if planes_at == "input" else 0
        self.body = _features(backbone, strides, 3 + widened, pretrained is True and not planes, dilated)
        self.channels: list[int] = self.body.feature_info.channels()
        if isinstance(pretrained, str) and not planes:
            load_backbone(self.body, pretrained)
        elif frozen and not pretrained:
            _open_branches(self.body)
        if planes and planes_at == "stem":
            self.body.conv1 = _StemWithPlanes(_stem(self.body, backbone), planes)
        if planes and pretrained:
            # Published weights see RGB alone.
            self.start_from(Encoder(backbone, strides, pretrained=pretrained, dilated=dilated))
        self.train()

    def forward(self, frames: torch.Tensor, planes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Feature maps, fine to coarse.

        Args:
            frames: `(B, 3, H, W)` in [0, 1], H and W multiples of the last stride.
            planes: `(B, P, H, W)` in [0, 1].

        Returns:
            A map `(B, C_i, H / stride_i, W / stride_i)` a level.
        """
        normalised = (frames - self.mean) / self.std
        maps = self.body(normalised if planes is None else torch.cat([normalised, planes], dim=1))
        # Some transformers put channels last.
        levels = zip(maps, self.channels, strict=True)
        return [x if x.shape[1] == channels else x.permute(0, 3, 1, 2) for x, channels in levels]

    def train(self, mode: bool = True) -> Encoder:
        """Training mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            keep_frozen(self)
        return self

    @contextlib.contextmanager
    def fixed_statistics(self) -> Iterator[None]:
        """Normalise with the statistics gathered so far, as at test, and gather none."""
        gathering = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        for norm in gathering:
            norm.eval()
        try:
            yield
        finally:
            for norm in gathering:
                norm.train()

    @torch.no_grad()
    def start_from(self, other: Encoder) -> None:
        """Take the weights of an encoder of the same backbone that sees RGB alone; those of the planes stay."""
        own = self.body.state_dict()
        for name, weight in other.body.state_dict().items():
            wrapped = name.startswith("conv1.") and name not in own
            target = own[name.replace("conv1.", "conv1.rgb.", 1) if wrapped else name]
            (target if target.shape == weight.shape else target[:, : weight.shape[1]]).copy_(weight)


def keep_frozen(module: nn.Module) -> None:
    """Put all batch norm of a module into evaluation mode, without gradients."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval().requires_grad_(False)


class KeyValue(nn.Module):
    """Two parallel 3x3 convolutions: the key for addressing, the value for content (STM unified, 2.1)."""

    def __init__(self, channels: int, key_channels: int, value_channels: int):
        super().__init__()
        self.key = nn.Conv2d(channels, key_channels, 3, padding=1)
        self.value = nn.Conv2d(channels, value_channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, C, h, w)` -> key `(B, CK, h, w)`, value `(B, CV, h, w)`."""
        return self.key(features), self.value(features)


class _StemWithPlanes(nn.Module):
    """A backbone's stem whose output also carries a convolution of further input planes."""

    def __init__(self, rgb: nn.Module, planes: int):
        super().__init__()
        self.rgb = rgb
        width = [m for m in rgb.modules() if isinstance(m, nn.Conv2d)][-1].out_channels
        self.planes = nn.Conv2d(planes, width, 7, stride=2, padding=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rgb(x[:, :3]) + self.planes(x[:, 3:])


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file by name; nothing but tensors is ever unpickled.

    A file that holds `{"state_dict": ...}` (or "network", "model", "model_state") gives what lies under it.

    Raises:
        UserError: when the file is missing or holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of weights")
    try:
        if str(path).endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: expected weights, .safetensors or a .pth that holds tensors alone") from error
    return unwrapped(content, str(path))


def unwrapped(content: Any, label: str) -> dict[str, Any]:
    """Names and tensors (or arrays) that may lie under "state_dict", "network", "model" or "model_state".

    Raises:
        UserError: naming `label`, for anything else.
    """
    while isinstance(content, Mapping):
        if content and all(isinstance(v, (torch.Tensor, np.ndarray)) for v in content.values()):
            if all(isinstance(name, str) for name in content):
                return dict(content)
            break
        inner = [content[k] for k in ("state_dict", "network", "model", "model_state") if k in content]
        content = inner[0] if inner else None
    raise UserError(f"{label}: expected names and tensors, or these under 'state_dict', found something else")


def load_backbone(body: nn.Module, path: str) -> None:
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


def _open_branches(body: nn.Module) -> None:
    """Fresh residual branches end in a norm of weight 0, which, were it frozen, would shut them for good."""
    for norm in body.modules():
        if isinstance(norm, nn.BatchNorm2d) and not norm.weight.any():
            nn.init.ones_(norm.weight)


def _stem(body: nn.Module, backbone: str) -> nn.Module:
    if not isinstance(getattr(body, "conv1", None), nn.Module) or not hasattr(body, "bn1"):
        raise UserError(f"planes_at='stem' needs a backbone of the ResNet family, found {backbone!r}; use 'input'")
    return body.conv1


def _features(
    backbone: str, strides: tuple[int, ...], channels: int, pretrained: bool, dilated: bool = False
) -> nn.Module:
    """The backbone cut at the strides, from timm."""
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
