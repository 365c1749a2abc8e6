"""The space-time memory network: the skeleton that all papers share, with its parts chosen by `Parts`."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.errors import UserError
from vosforge.networks import readers
from vosforge.networks.base import MemoryNetwork, Query, check_values, crop_to, pad_to_stride
from vosforge.networks.context import ASPP, FeaturePyramidAttention, ObjectContext
from vosforge.networks.decoders import RefineDecoder
from vosforge.networks.encoders import Encoder, KeyValue
from vosforge.networks.foreground_background import ForegroundBackground, split
from vosforge.networks.fusion import Fusion
from vosforge.networks.parts import SPLIT, Parts
from vosforge.networks.pyramid import PyramidBranch
from vosforge.networks.quality import PriorEnhancement, QualityHead
from vosforge.networks.reading import make_reader, read_objects
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
        self.query_encoder = Encoder(
            parts.backbone, parts.strides, pretrained=parts.pretrained, frozen=parts.frozen_batch_norm
        )
        if parts.memory_encoder not in SPLIT:
            self.memory_encoder = self._masked_encoder()
        *skips, coarse = self.query_encoder.channels
        if parts.pyramid != "none":
            self.paths = PyramidBranch(self.query_encoder.channels, parts.decoder_channels, parts.pyramid)
        if parts.object_context:
            self.object_context = ObjectContext(coarse)
            # At 0 the query's features start as the memory's, and so their keys.
            self.context_gain = nn.Parameter(torch.zeros(coarse, 1, 1))
        if parts.prior != "none":
            self.enhancement = PriorEnhancement(coarse)
        widened = coarse + correlation_channels(parts, coarse)
        self.query_head = KeyValue(widened, parts.key_channels, parts.value_channels)
        if parts.memory_encoder in SPLIT:
            sizes = coarse, parts.key_channels, parts.value_channels
            self.foreground_background = ForegroundBackground(*sizes, parts.memory_encoder, parts.memory_keys)
        else:
            masked = self.memory_encoder.channels[-1]
            if parts.memory_encoder == "key-value":
                self.memory_head = KeyValue(masked, parts.key_channels, parts.value_channels)
            else:
                self.fusion = Fusion(masked + coarse, parts.value_channels)
        if parts.quality == "own":
            self.score_encoder = self._masked_encoder()
        if parts.quality != "none":
            encoder = self.score_encoder if parts.quality == "own" else self.memory_encoder
            size = parts.quality_channels, parts.quality_cells
            kinds = parts.quality_activation, parts.quality_hidden
            self.quality_head = QualityHead(encoder.channels[-1], *size, *kinds)
        self.reader = make_reader(parts)
        self.context, read_channels, context = nn.Identity(), 2 * parts.value_channels, None
        if parts.aspp == "read":
            width = parts.aspp_output or parts.aspp_channels
            self.context, read_channels = _aspp(parts)(read_channels, width), width
        elif parts.aspp == "decoder":
            context = _aspp(parts)
        self.attention = FeaturePyramidAttention(read_channels) if parts.fpa else nn.Identity()
        self.decoder = RefineDecoder(
            read_channels,
            skips,
            parts.decoder_channels,
            parts.strides[0],
            parts.decoder,
            parts.rectified_skip,
            context,
        )
        self._start_equal(parts.memory_backbone in (None, parts.backbone))

    def _masked_encoder(self) -> Encoder:
        """An encoder of frames with masks."""
        parts = self.parts
        planes = {"mask": 1, "mask+others": 2, "mask+scribbles": 3}[parts.memory_input]
        own = parts.memory_backbone or parts.backbone
        # Weights of the same backbone are copied from the query's.
        start = own != parts.backbone and (parts.memory_pretrained or parts.pretrained is True)
        return Encoder(own, parts.strides, planes, parts.planes_at, start, parts.frozen_batch_norm)

    @torch.no_grad()
    def _start_equal(self, same_backbone: bool) -> None:
        """Start the memory's encoder and key from the query's weights, so that equal pictures have equal keys.

        In the papers both encoders start from the same ImageNet weights; without those this matters even more.
        """
        query = self.query_head.key
        query.weight.mul_(self.parts.key_gain)
        if same_backbone:
            for encoder in ("memory_encoder", "score_encoder"):
                if hasattr(self, encoder):
                    getattr(self, encoder).start_from(self.query_encoder)
            if self.parts.memory_encoder == "key-value":
                memory = self.memory_head.key
                memory.weight.copy_(query.weight[:, : memory.weight.shape[1]])
                memory.bias.copy_(query.bias)
        if self.parts.memory_encoder in SPLIT and self.foreground_background.key is not None:
            # Where neighbours are alike the 1x1 keys are the query's.
            key = self.foreground_background.key.weight
            key.copy_(query.weight[:, : key.shape[1]].sum(dim=(2, 3), keepdim=True).repeat(2, 1, 1, 1))

    def _levels(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The query's feature maps `(B, C_i, h_i, w_i)` of padded frames, fine to coarse."""
        levels = tuple(self.query_encoder(frames))
        if self.parts.pyramid != "none":
            levels = self.paths(*levels)
        if self.parts.object_context:
            levels = (*levels[:-1], levels[-1] + self.context_gain * self.object_context(levels[-1]))
        return levels

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
            features = self._levels(patches.flatten(0, 1))[-1]
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
        if previous is not None and prior is not None:
            check_objects("prior masks", prior.shape[1], "masks of the frame before", previous.shape[1])
        *skips, coarse = self._levels(self.pad_frames(frames))
        features = self._enhanced(coarse, previous if prior is None else prior)
        if self.parts.siamese:
            if targets is None:
                raise UserError("a siamese query needs its targets: targets=network.encode_target(frames, masks)")
            if targets.ndim != 5 or targets.shape[0] != len(frames) or targets.shape[2] != coarse.shape[1]:
                expected = f"(B, K, C, h, w) with B = {len(frames)} and C = {coarse.shape[1]}"
                raise UserError(f"targets must be {expected}, as encode_target gives, found {tuple(targets.shape)}")
            if self.parts.prior == "object":
                check_objects("targets", targets.shape[1], "the masks that enhance the query", features.shape[1])
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
        given: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of each object (STM unified, 2.1), or the value alone beside the query's key (STCN, 3.2).

        With "product" and "prior" both come from the query's features, split by each object's mask (CAMN, 2.1).

        With "mask+others" each object sees the frame, its own mask, and the sum of the other objects' masks
        clamped to [0, 1] (the published code's second mask plane); with "mask+scribbles" scribbles that are left
        out count as none.
        """
        self.check(frames, masks)
        objects = masks.shape[1]
        if self.parts.memory_encoder == "key-value":
            key, value = self.memory_head(self._encode_masked(self.memory_encoder, frames, masks, scribbles))
            return key.unflatten(0, (-1, objects)), value.unflatten(0, (-1, objects))
        if query is None:
            query = self.encode_query(frames, self.encode_target(frames, masks), masks)
        if self.parts.memory_encoder == "value":
            features = self._encode_masked(self.memory_encoder, frames, masks, scribbles)
            value = self.fusion(features, query.features.repeat_interleave(objects, dim=0))
            return query.key, value.unflatten(0, (-1, objects))
        if scribbles is not None:
            raise UserError("this network takes no scribbles; build one with memory_input='mask+scribbles'")
        return self._split_memory(query, masks)

    def _split_memory(self, query: Query, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Key and value of the query's own features, split by each object's mask (CAMN, 2.1)."""
        memory = self.foreground_background
        cells = F.avg_pool2d(pad_to_stride(masks, self.stride), self.stride)[:, :, None]
        shares = memory.shares(query.features[:, :, None], cells)
        value = split(memory.value(query.features)[:, :, None], shares)[:, :, :, 0]
        if memory.key is None:
            return query.key, value
        return split(memory.key(query.features)[:, :, None], shares)[:, :, :, 0], value

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
        self._check_read(query, memory_key.shape[1], objects)
        read = read_objects(self.reader, memory_key, memory_value, query.key, query.previous)
        return torch.cat([read, query.value.expand(-1, objects, -1, -1, -1)], dim=2)

    def _check_read(self, query: Query, keys: int, objects: int) -> None:
        """Refuse keys and queries of other objects than the memory's values; those of none in particular have K = 1."""
        of_each = self.parts.siamese or self.parts.prior == "object"
        counts = {
            "memory keys": objects if keys == 1 else keys,
            "the query": objects if query.key.shape[1] == 1 and not of_each else query.key.shape[1],
            "the query's previous masks": objects if query.previous is None else query.previous.shape[1],
        }
        for name, count in counts.items():
            check_objects(name, count, "the memory's values", objects)

    def decode(self, query: Query, read: torch.Tensor) -> torch.Tensor:
        """Foreground logits `(B, K, H, W)`, cropped to the frame's size (STM unified, 2.3)."""
        context = self.attention(self.context(read.flatten(0, 1))).unflatten(0, read.shape[:2])
        return crop_to(self.decoder(context, query.skips), query.size)


def check_objects(name: str, found: int, like: str, expected: int) -> None:
    """Refuse what is of another number of objects than what it goes with.

    Raises:
        UserError: naming both.
    """
    if not torch.compiler.is_compiling() and found != expected:
        raise UserError(f"{name} must be of K = {expected} objects, like {like}, found {found}")


def _aspp(parts: Parts) -> partial[ASPP]:
    return partial(
        ASPP,
        dilations=parts.aspp_dilations,
        norm=parts.aspp_norm,
        pooling=parts.aspp_pooling,
        dropout=parts.aspp_dropout,
        width=parts.aspp_channels,
    )
