"""STM: space-time memory networks.

S. W. Oh, J.-Y. Lee, N. Xu, S. J. Kim: "A Unified Model for Semi-supervised and Interactive Video Object
Segmentation using Space-time Memory Networks", DAVIS Challenge 2019; section numbers are that paper's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vosforge.errors import UserError
from vosforge.networks.base import MemoryNetwork, Query, check_frames, crop_to, pad_to_stride
from vosforge.networks.decoders import RefineDecoder
from vosforge.networks.encoders import Encoder, KeyValue
from vosforge.networks.readers import DenseReader, TopKReader


@dataclass(frozen=True)
class STMParts:
    """The parts of an STM; the defaults are the paper's.

    Attributes:
        backbone: timm name, for both encoders.
        strides: of the feature levels, each twice the one before; the memory is read at the last one.
        key_channels, value_channels: CK and CV.
        decoder_channels: width of the decoder.
        reader: "dense" (the paper's) or "topk".
        top_k: positions that the top-k reader keeps.
        frozen_batch_norm: train with batch norm's statistics fixed, as all public re-trainings do.
        pretrained: start the backbones from timm's ImageNet weights.
        key_gain: factor on the keys' initial weights. Above 1 a network without pretrained weights starts with
            a read that is not flat, and learns to match several times faster.
    """

    backbone: str = "resnet50"
    strides: tuple[int, ...] = (4, 8, 16)
    key_channels: int = 128
    value_channels: int = 512
    decoder_channels: int = 256
    reader: Literal["dense", "topk"] = "dense"
    top_k: int = 50
    frozen_batch_norm: bool = True
    pretrained: bool = False
    key_gain: float = 1.0


SIZES = {
    "nano": STMParts(
        backbone="test_resnet",
        strides=(4, 8),
        key_channels=32,
        value_channels=64,
        decoder_channels=32,
        top_k=16,
        frozen_batch_norm=False,
        key_gain=4.0,
    ),
    "small": STMParts(
        backbone="resnet18",
        key_channels=64,
        value_channels=256,
        decoder_channels=128,
        frozen_batch_norm=False,
        key_gain=4.0,
    ),
    "paper": STMParts(),
}


class STM(MemoryNetwork):
    """Two encoders with keys and values (2.1), a space-time memory read (2.2) and a refining decoder (2.3)."""

    def __init__(self, parts: STMParts):
        super().__init__()
        self.stride = parts.strides[-1]
        self.frozen_batch_norm = parts.frozen_batch_norm
        self.query_encoder = Encoder(parts.backbone, parts.strides, pretrained=parts.pretrained)
        self.memory_encoder = Encoder(parts.backbone, parts.strides, planes=2, pretrained=parts.pretrained)
        *skips, coarse = self.query_encoder.channels
        self.query_head = KeyValue(coarse, parts.key_channels, parts.value_channels)
        self.memory_head = KeyValue(coarse, parts.key_channels, parts.value_channels)
        self.reader = make_reader(parts.reader, parts.top_k)
        self.decoder = RefineDecoder(2 * parts.value_channels, skips, parts.decoder_channels, parts.strides[0])
        self._start_equal(parts.key_gain)

    @torch.no_grad()
    def _start_equal(self, key_gain: float) -> None:
        """Start the memory's encoder and key from the query's weights, so that equal pictures have equal keys.

        In the paper both encoders start from the same ImageNet weights; without those this matters even more.
        """
        self.query_head.key.weight.mul_(key_gain)
        self.memory_head.key.load_state_dict(self.query_head.key.state_dict())
        own = self.memory_encoder.body.state_dict()
        for name, weight in self.query_encoder.body.state_dict().items():
            if own[name].shape == weight.shape:
                own[name].copy_(weight)
            else:
                own[name][:, :3].copy_(weight)

    def encode_query(self, frames: torch.Tensor) -> Query:
        """Key, value and finer features of `(B, 3, H, W)` frames (2.1)."""
        check_frames(frames)
        *skips, coarse = self.query_encoder(pad_to_stride(frames, self.stride))
        key, value = self.query_head(coarse)
        return Query(key, value, tuple(skips), (frames.shape[-2], frames.shape[-1]))

    def encode_memory(self, frames: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key `(B, K, CK, h, w)` and value `(B, K, CV, h, w)` of each object (2.1).

        Each object sees the frame, its own mask, and the sum of the other objects' masks clamped to [0, 1]
        (the published code's second mask plane).
        """
        check_frames(frames, masks)
        objects = masks.shape[1]
        others = (masks.sum(dim=1, keepdim=True) - masks).clamp(0, 1)
        frames, masks, others = (pad_to_stride(x, self.stride) for x in (frames, masks, others))
        features = self.memory_encoder(
            frames.repeat_interleave(objects, dim=0), masks.flatten(0, 1)[:, None], others.flatten(0, 1)[:, None]
        )
        key, value = self.memory_head(features[-1])
        return key.unflatten(0, (-1, objects)), value.unflatten(0, (-1, objects))

    def read(self, query: Query, memory_key: torch.Tensor, memory_value: torch.Tensor) -> torch.Tensor:
        """`(B, K, 2 CV, h, w)`: the read of each object, then the query's value.

        Equation 1 writes the query's value first; published weights expect this order.
        """
        objects = memory_key.shape[1]
        read = self.reader(
            memory_key.flatten(0, 1), memory_value.flatten(0, 1), query.key.repeat_interleave(objects, dim=0)
        )
        value = query.value[:, None].expand(-1, objects, -1, -1, -1)
        return torch.cat([read.unflatten(0, (-1, objects)), value], dim=2)

    def decode(self, query: Query, read: torch.Tensor) -> torch.Tensor:
        """Foreground logits `(B, K, H, W)`, cropped to the frame's size (2.3)."""
        return crop_to(self.decoder(read, query.skips), query.size)


def make_reader(name: str, top_k: int) -> nn.Module:
    """The reader of that name.

    Raises:
        UserError: listing the valid names, or for a `top_k` below 1.
    """
    if top_k < 1:
        raise UserError(f"top_k must be at least 1, found {top_k}")
    readers = {"dense": DenseReader, "topk": lambda: TopKReader(top_k)}
    if name not in readers:
        raise UserError(f"unknown reader {name!r}; valid: {', '.join(readers)}")
    return readers[name]()
