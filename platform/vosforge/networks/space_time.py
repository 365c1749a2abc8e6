"""The space-time memory network: the skeleton that all papers share, with its parts chosen by `Parts`."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.errors import UserError
from vosforge.networks import readers
from vosforge.networks.base import MemoryNetwork, Query, check_values, crop_to, pad_to_stride
from vosforge.networks.context import ASPP
from vosforge.networks.decoders import RefineDecoder
from vosforge.networks.encoders import Encoder, KeyValue
from vosforge.networks.fusion import Fusion
from vosforge.networks.parts import Parts
from vosforge.networks.quality import PriorEnhancement, QualityHead
from vosforge.networks.siamese import correlate, correlation_channels, crop_targets, target_size


class SpaceTimeNetwork(MemoryNetwork):
    """Two encoders with keys and values, a space-time memory read, and a refining decoder (STM unified, figure 1).

    Args:
        parts: which ones; a paper's file names its own.

    Raises:
        UserError: when the parts' backbones do not offer what the others need.
    """

    def __init__(self, parts: Parts):
        super().__init__(parts)
        frozen = parts.frozen_batch_norm
        planes = {"mask": 1, "mask+others": 2, "mask+scribbles": 3}[parts.memory_input]
        own = parts.memory_backbone or parts.backbone
        self.query_encoder = Encoder(parts.backbone, parts.strides, pretrained=parts.pretrained, frozen=frozen)
        # Weights of the same backbone are copied from the query's.
        start = own != parts.backbone and (parts.memory_pretrained or parts.pretrained is True)
        self.memory_encoder = Encoder(own, parts.strides, planes, parts.planes_at, start, frozen)
        *skips, coarse = self.query_encoder.channels
        widened = coarse + correlation_channels(parts, coarse)
        if parts.prior != "none":
            self.enhancement = PriorEnhancement(coarse)
        self.query_head = KeyValue(widened, parts.key_channels, parts.value_channels)
        masked = self.memory_encoder.channels[-1]
        if parts.memory_encoder == "key-value":
            self.memory_head = KeyValue(masked, parts.key_channels, parts.value_channels)
        else:
            self.fusion = Fusion(masked + coarse, parts.value_channels)
        if parts.quality == "own":
            self.score_encoder = Encoder(own, parts.strides, planes, parts.planes_at, start, frozen)
        if parts.quality != "none":
            size = parts.quality_channels, parts.quality_cells, parts.quality_activation
            self.quality_head = QualityHead(masked, *size)
        self.reader = make_reader(parts)
        self.context, read_channels, context = nn.Identity(), 2 * parts.value_channels, None
        if parts.aspp == "read":
            width = parts.aspp_output or parts.aspp_channels
            self.context, read_channels = _aspp(parts)(read_channels, width), width
        elif parts.aspp == "decoder":
            context = _aspp(parts)
        self.decoder = RefineDecoder(
            read_channels,
            skips,
            parts.decoder_channels,
            parts.strides[0],
            parts.decoder,
            parts.rectified_skip,
            context,
        )
        self._start_equal(own == parts.backbone)

    @torch.no_grad()
    def _start_equal(self, same_backbone: bool) -> None:
        """Start the memory's encoder and key from the query's weights, so that equal pictures have equal keys.

        In the papers both encoders start from the same ImageNet weights; without those this matters even more.
        """
        self.query_head.key.weight.mul_(self.parts.key_gain)
        if same_backbone:
            self.memory_encoder.start_from(self.query_encoder)
            if self.parts.quality == "own":
                self.score_encoder.start_from(self.query_encoder)
            if self.parts.memory_encoder == "key-value":
                memory, query = self.memory_head.key, self.query_head.key
                memory.weight.copy_(query.weight[:, : memory.weight.shape[1]])
                memory.bias.copy_(query.bias)

    def encode_target(self, frames: torch.Tensor, masks: torch.Tensor) -> torch.Tensor | None:
        """Features `(B, K, C, h', w')` of each object's patch, through the query's own extractor (EMN, equation 7).

        None without `siamese`.
        """
        if not self.parts.siamese:
            return None
        self.check(frames, masks)
        patches = crop_targets(frames, masks, target_size((frames.shape[-2], frames.shape[-1]), self.stride))
        # Patches are enlarged; mixed with those of frames, their statistics would be nobody's at test.
        with self.query_encoder.fixed_statistics():
            features = self.query_encoder(patches.flatten(0, 1))[-1]
        return features.unflatten(0, patches.shape[:2])

    def encode_query(
        self,
        frames: torch.Tensor,
        targets: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        prior: torch.Tensor | None = None,
    ) -> Query:
        """Key, value and features of `(B, 3, H, W)` frames (STM unified, 2.1).

        With `prior` masks enhance the features (QPM, equation 4), with `siamese` the targets' correlation follows
        them (EMN, equation 8).
        """
        self.check(frames)
        for masks in (previous, prior):
            if masks is not None:
                self._check_before(frames, masks)
        *skips, coarse = self.query_encoder(self.pad_frames(frames))
        features = self._enhanced(coarse, previous if prior is None else prior)
        if self.parts.siamese:
            if targets is None:
                raise UserError("a siamese query needs its targets: targets=network.encode_target(frames, masks)")
            if targets.ndim != 5 or targets.shape[0] != len(frames) or targets.shape[2] != coarse.shape[1]:
                expected = f"(B, K, C, h, w) with B = {len(frames)} and C = {coarse.shape[1]}"
                raise UserError(f"targets must be {expected}, as encode_target gives, found {tuple(targets.shape)}")
            related = correlate(coarse, targets, self.parts.correlation)
            features = torch.cat([features.expand(-1, related.shape[1], -1, -1, -1), related], dim=2)
        key, value = (x.unflatten(0, features.shape[:2]) for x in self.query_head(features.flatten(0, 1)))
        size = (frames.shape[-2], frames.shape[-1])
        return Query(key, value, coarse, tuple(skips), size, self._where(previous))

    def _check_before(self, frames: torch.Tensor, masks: torch.Tensor) -> None:
        """Refuse masks of the frame before that are not like these frames."""
        if masks.ndim != 4 or len(masks) != len(frames) or masks.shape[2:] != frames.shape[2:]:
            expected = f"(B, K, H, W) like the frames {tuple(frames.shape)}"
            raise UserError(f"masks of the frame before must be {expected}, found {tuple(masks.shape)}")
        self.check(frames, masks)

    def _enhanced(self, coarse: torch.Tensor, prior: torch.Tensor | None) -> torch.Tensor:
        """The query's features `(B, 1, C, h, w)`, or one for each object whose own mask enhances them."""
        if self.parts.prior == "none":
            return coarse[:, None]
        if prior is None:
            raise UserError("this network's query asks for a mask: previous=masks of the frame before")
        masks = prior if self.parts.prior == "object" else prior.amax(dim=1, keepdim=True)
        cells = F.interpolate(
            pad_to_stride(masks, self.stride), size=coarse.shape[-2:], mode="bilinear", align_corners=False
        )
        repeated = coarse[:, None].expand(-1, masks.shape[1], -1, -1, -1)
        return self.enhancement(repeated.flatten(0, 1), cells.flatten(0, 1)[:, None]).unflatten(0, masks.shape[:2])

    def _where(self, previous: torch.Tensor | None) -> torch.Tensor | None:
        """Each object's share of every cell in the frame before, `(B, K, h, w)`, for readers that ask for it."""
        if previous is None or not isinstance(self.reader, readers.SpatialReader):
            return None
        return F.avg_pool2d(pad_to_stride(previous, self.stride), self.stride)

    def encode_memory(
        self,
        frames: torch.Tensor,
        masks: torch.Tensor,
        scribbles: torch.Tensor | None = None,
        query: Query | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of each object (STM unified, 2.1), or the value alone beside the query's key (STCN, 3.2).

        With "mask+others" each object sees the frame, its own mask, and the sum of the other objects' masks
        clamped to [0, 1] (the published code's second mask plane); with "mask+scribbles" scribbles that are left
        out count as none.
        """
        self.check(frames, masks)
        objects = masks.shape[1]
        features = self._encode_masked(self.memory_encoder, frames, masks, scribbles)
        if self.parts.memory_encoder == "key-value":
            key, value = self.memory_head(features)
            return key.unflatten(0, (-1, objects)), value.unflatten(0, (-1, objects))
        if query is None:
            query = self.encode_query(frames, self.encode_target(frames, masks), masks)
        value = self.fusion(features, query.features.repeat_interleave(objects, dim=0))
        return query.key, value.unflatten(0, (-1, objects))

    def assess(self, frames: torch.Tensor, masks: torch.Tensor) -> torch.Tensor | None:
        """Quality `(B, K)` of each object's mask (QPM, 2.2); None without `quality`."""
        if self.parts.quality == "none":
            return None
        self.check(frames, masks)
        encoder = self.score_encoder if self.parts.quality == "own" else self.memory_encoder
        return self.quality_head(self._encode_masked(encoder, frames, masks, None)).unflatten(0, masks.shape[:2])

    def _encode_masked(
        self, encoder: Encoder, frames: torch.Tensor, masks: torch.Tensor, scribbles: torch.Tensor | None
    ) -> torch.Tensor:
        """Features `(B·K, C, h, w)` of frames with each object's mask."""
        planes = pad_to_stride(self._planes(masks, scribbles), self.stride)
        return encoder(self.pad_frames(frames).repeat_interleave(masks.shape[1], dim=0), planes.flatten(0, 1))[-1]

    def _planes(self, masks: torch.Tensor, scribbles: torch.Tensor | None) -> torch.Tensor:
        """What the memory encoder sees beside RGB, `(B, K, P, H, W)`."""
        own = masks[:, :, None]
        if scribbles is not None and self.parts.memory_input != "mask+scribbles":
            raise UserError("this network takes no scribbles; build one with memory_input='mask+scribbles'")
        if self.parts.memory_input == "mask":
            return own
        if self.parts.memory_input == "mask+others":
            return torch.cat([own, (masks.sum(dim=1, keepdim=True) - masks).clamp(0, 1)[:, :, None]], dim=2)
        expected = (*masks.shape[:2], 2, *masks.shape[2:])
        if scribbles is None:
            scribbles = masks.new_zeros(expected)
        if tuple(scribbles.shape) != expected:
            raise UserError(f"scribbles must be (B, K, 2, H, W) = {expected}, found {tuple(scribbles.shape)}")
        check_values("scribbles", scribbles)
        return torch.cat([own, scribbles.to(masks.dtype)], dim=2)

    def read(self, query: Query, memory_key: torch.Tensor, memory_value: torch.Tensor) -> torch.Tensor:
        """`(B, K, 2 CV, h, w)`: the read of each object, then the query's value.

        The papers' equation 1 writes the query's value first; published weights expect this order.
        """
        objects = memory_value.shape[1]
        if memory_key.shape[1] == query.key.shape[1] == 1 and query.previous is None:
            # One affinity serves all objects: their values are read as channels of one.
            merged = self.reader(memory_key[:, 0], memory_value.flatten(1, 2), query.key[:, 0])
            read = merged.unflatten(1, (objects, -1))
        else:
            each = [memory_key, memory_value, query.key]
            if query.previous is not None:
                each.append(query.previous)
            read = self.reader(*(x.expand(-1, objects, *x.shape[2:]).flatten(0, 1) for x in each))
            read = read.unflatten(0, (-1, objects))
        return torch.cat([read, query.value.expand(-1, objects, -1, -1, -1)], dim=2)

    def decode(self, query: Query, read: torch.Tensor) -> torch.Tensor:
        """Foreground logits `(B, K, H, W)`, cropped to the frame's size (STM unified, 2.3)."""
        context = self.context(read.flatten(0, 1)).unflatten(0, read.shape[:2])
        return crop_to(self.decoder(context, query.skips), query.size)


def make_reader(parts: Parts) -> readers.Reader:
    """The reader that the parts name."""
    affinity = {"scale": parts.scale, "similarity": parts.similarity}
    if parts.reader == "dense":
        return readers.DenseReader(**affinity)
    if parts.reader == "topk":
        return readers.TopKReader(50 if parts.top_k is None else parts.top_k, **affinity)
    kernel = readers.KernelReader if parts.reader == "kernel" else readers.SpatialReader
    return kernel(parts.sigma, parts.top_k, parts.argmax_on, parts.renormalise, **affinity)


def _aspp(parts: Parts) -> partial[ASPP]:
    return partial(
        ASPP,
        dilations=parts.aspp_dilations,
        norm=parts.aspp_norm,
        pooling=parts.aspp_pooling,
        dropout=parts.aspp_dropout,
        width=parts.aspp_channels,
    )
