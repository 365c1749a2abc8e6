"""Collaborative networks: foreground and background matched alike, pixel by pixel and as a whole (CFBI+, CAMN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.errors import UserError
from vosforge.networks.base import MemoryNetwork, crop_to
from vosforge.networks.deeplab import DeepLab
from vosforge.networks.ensembler import CollaborativeEnsembler
from vosforge.networks.foreground_background import ForegroundBackground, split
from vosforge.networks.matching import background_distance, global_matching, local_matching, thinned
from vosforge.networks.parts import READ, Parts
from vosforge.networks.pyramid import FeaturePyramid
from vosforge.networks.readers import SpatialReader
from vosforge.networks.reading import make_reader, read_objects


@dataclass(frozen=True)
class CollaborativeParts(Parts):
    """What a collaborative network is made of, beside what all networks share. The defaults are CFBI+'s.

    Attributes:
        memory_encoder: "none", or how all past frames are remembered too, and read at 1/16 (CAMN 2.1): "product" splits
            their embeddings by each class's mask, "prior" by a learnt prior of embedding and mask.
        pyramid: paths between the three levels; "none" leaves CFBI+'s out.
        embedding_channels: of the embeddings at 1/4, 1/8 and 1/16.
        matching_channels: how many of them are matched at each.
        windows_4, windows_8, windows_16: greatest offsets of local matching at each, ascending.
        matching_rate: every how many rows and columns are matched at 1/4.
        matching_spared: classes of at most so many times `matching_rate**2` pixels there are matched whole.
        ensembler_channels, refine_channels: widths of the ensembler and of its shortcut.
        channel_order: of the frames that the weights expect; the published CFBI+ was trained on "bgr".
    """

    backbone: str = "resnet101"
    memory_policy: Literal["previous", "every", "given", "ends", "latest"] = "ends"
    padding: Literal["black", "mean"] = "mean"
    memory_encoder: Literal["none", "product", "prior"] = "none"
    pyramid: Literal["none", "fpn", "pan"] = "fpn"
    embedding_channels: int = 256
    matching_channels: tuple[int, ...] = (32, 64, 128)
    windows_4: tuple[int, ...] = (4, 8, 12, 16, 20, 24)
    windows_8: tuple[int, ...] = (2, 4, 6, 8, 10, 12)
    windows_16: tuple[int, ...] = (2, 4, 6, 8, 10)
    matching_rate: int = 2
    matching_spared: int = 0
    ensembler_channels: int = 256
    refine_channels: int = 64
    channel_order: Literal["rgb", "bgr"] = "rgb"

    unfit = "its objects share one memory and are decoded together, by matching"

    @classmethod
    def taken(cls) -> set[str]:
        """Its own, and those of all networks that do not belong to a space-time read."""
        own = {field.name for field in fields(cls)} - {field.name for field in fields(Parts)}
        shared = {"backbone", "pretrained", "frozen_batch_norm", "memory_policy", "padding", "training_objects"}
        context = {"object_context", "pyramid", "fpa", "aspp_dilations", "aspp_norm"}
        return own | shared | context | {"memory_encoder", *READ}


class CollaborativeQuery(NamedTuple):
    """A frame's embeddings `(B, C, h, w)` at 1/4, 1/8 and 1/16, the backbone's map at 1/4, and the frame's size."""

    levels: tuple[torch.Tensor, ...]
    low_level: torch.Tensor
    size: tuple[int, int]

    def of(self, objects: Sequence[int]) -> CollaborativeQuery:
        """The query itself: objects share it."""
        return self


class Matched(NamedTuple):
    """What the ensembler sees of each class: `(B, O, C_i, h_i, w_i)` at each level, and its head `(B, O, A)`."""

    levels: tuple[torch.Tensor, ...]
    head: torch.Tensor


class CollaborativeNetwork(MemoryNetwork):
    """CFBI+: global and local matching at three scales, instance-level attention, and a collaborative ensembler.

    All objects of a frame, and its background, are segmented together. What is remembered of a frame are its
    embeddings at three levels and each object's label there, so that reads are matches, not values. CAMN adds keys and
    values at 1/16, whose read joins the matching.

    Frames whose masks were given, and the previous one, are matched; all are read.

    Source: Yang, Wei, Yang: "Collaborative Video Object Segmentation by Multi-Scale Foreground-Background
    Integration"; numbers follow the published code.
    """

    joint = True

    def __init__(self, parts: CollaborativeParts):
        super().__init__(parts)
        self.parts: CollaborativeParts = parts
        _check_matching(parts)
        channels = parts.embedding_channels
        self.extractor = DeepLab(
            parts.backbone,
            channels,
            parts.aspp_dilations,
            parts.pretrained,
            parts.frozen_batch_norm,
            parts.object_context,
            parts.aspp_norm,
        )
        middle, low = self.extractor.middle_channels, self.extractor.low_level_channels
        self.neck = FeaturePyramid((channels, middle, channels), channels, parts.pyramid)
        self.windows = (parts.windows_4, parts.windows_8, parts.windows_16)
        self.background_bias = nn.Parameter(torch.zeros(3, 1, 1, 1))
        self.foreground_bias = nn.Parameter(torch.zeros(3, 1, 1, 1))
        inputs = [3 * channels + 3 + 2 * len(windows) for windows in self.windows]
        if parts.memory_encoder != "none":
            sizes = channels, parts.key_channels, parts.value_channels
            self.foreground_background = ForegroundBackground(*sizes, parts.memory_encoder, parts.memory_keys)
            self.query_key = nn.Conv2d(channels, parts.key_channels, 1, bias=False)
            self.reader = make_reader(parts)
            inputs[2] += parts.value_channels
            with torch.no_grad():
                self.query_key.weight.mul_(parts.key_gain)
                if self.foreground_background.key is not None:
                    self.foreground_background.key.weight.copy_(self.query_key.weight.repeat(2, 1, 1, 1))
        self.ensembler = CollaborativeEnsembler(
            inputs, 4 * channels, parts.ensembler_channels, parts.refine_channels, low, parts.fpa
        )

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Pad `(..., H, W)` to sides of the form 16k + 1, whose corners stay aligned at every level."""
        wanted = [-(-(side - 1) // self.stride) * self.stride + 1 for side in x.shape[-2:]]
        bottom, right = (max(size, self.stride + 1) - side for size, side in zip(wanted, x.shape[-2:], strict=True))
        return F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))

    def encode_query(
        self,
        frames: torch.Tensor,
        targets: torch.Tensor | None = None,
        previous: torch.Tensor | None = None,
        prior: torch.Tensor | None = None,
    ) -> CollaborativeQuery:
        """Embeddings of `(B, 3, H, W)` frames at three levels."""
        self.check(frames)
        padded = self.pad_frames(frames)
        fine, low, middle, coarse = self.extractor(padded.flip(1) if self.parts.channel_order == "bgr" else padded)
        return CollaborativeQuery(self.neck(fine, middle, coarse), low, (frames.shape[-2], frames.shape[-1]))

    def encode_memory(
        self,
        frames: torch.Tensor,
        masks: torch.Tensor,
        scribbles: torch.Tensor | None = None,
        query: CollaborativeQuery | None = None,
        given: bool = True,
    ) -> tuple[torch.Tensor, ...]:
        """What is remembered of a frame.

        Returns:
            Three embeddings `(B, 1, C, h_i, w_i)`; each object's labels `(B, K, 1, h_i, w_i)` in {0, 1} at each;
            whether they were given, `(B, 1, 1, 1, 1)`; and with a space-time memory, its keys and values
            `(B, 1, C', h, w)` at 1/16 before they are split by the labels.
        """
        self.check(frames, masks)
        query = query or self.encode_query(frames)
        background = 1 - masks.sum(dim=1, keepdim=True)
        winner = torch.cat([background, masks], dim=1).max(dim=1, keepdim=True).indices
        ids = torch.arange(1, masks.shape[1] + 1, device=masks.device)[None, :, None, None]
        labels = self.pad((winner == ids).to(masks.dtype))
        levels = [_nearest(labels, level.shape[-2:]) for level in query.levels]
        remembered = [level[:, None] for level in query.levels] + [level[:, :, None] for level in levels]
        remembered.append(masks.new_full((len(masks), 1, 1, 1, 1), given))
        if self.parts.memory_encoder != "none":
            key, memory = self.foreground_background.key or self.query_key, self.foreground_background
            remembered += [key(query.levels[2])[:, None], memory.value(query.levels[2])[:, None]]
        return tuple(remembered)

    def admit(self, memory: tuple[torch.Tensor, ...], positions: Sequence[int], total: int) -> tuple[torch.Tensor, ...]:
        """A remembered frame's tensors after more objects entered: those were not in it.

        Args:
            memory: as `encode_memory` gave them, without the batch.
            positions: where the objects of the memory now stand.
            total: objects now.
        """
        embeddings, labels, others = memory[:3], memory[3:6], memory[6:]
        widened = [label.new_zeros(total, *label.shape[1:]) for label in labels]
        for wide, label in zip(widened, labels, strict=True):
            wide[list(positions)] = label
        return (*embeddings, *widened, *others)

    def read(self, query: CollaborativeQuery, *memory: torch.Tensor) -> Matched:
        """Match the query with frames whose masks were given and with the last one, and read all T."""
        embeddings = [embedding[:, 0] for embedding in memory[:3]]
        labels = [_with_background(label[:, :, 0]) for label in memory[3:6]]
        given = _given(memory[6][:, 0, 0, :, 0, 0])
        matched = _frames_of(given)
        referred = [labels[0][:, :, matched], *(label[:, :, matched] for label in labels[1:])]
        # Frames that only some of a batch's videos were given refer to nothing in the others.
        weight = given[:, None, matched, None, None]
        thin = thinned(referred[0], self.parts.matching_rate, self.parts.matching_spared)
        levels = [
            self._match(i, current, embedding[:, :, matched], embedding[:, :, -1], reference * weight, label[:, :, -1])
            for i, (current, embedding, reference, label) in enumerate(
                zip(query.levels, embeddings, (thin, *referred[1:]), labels, strict=True)
            )
        ]
        if self.parts.memory_encoder != "none":
            levels[2] = torch.cat([levels[2], self._read_memory(query, embeddings[2], labels[2], *memory[7:])], dim=2)
        fine, label = embeddings[0], labels[0]
        head = _instances(fine[:, :, matched], referred[0], weight), _instances(fine[:, :, -1:], label[:, :, -1:])
        return Matched(tuple(levels), torch.cat(head, dim=2))

    def _read_memory(
        self,
        query: CollaborativeQuery,
        embedding: torch.Tensor,
        labels: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        """The space-time read of each class, `(B, O, CV, h, w)` at 1/16 (CAMN, 2.1).

        embedding `(B, C, T, h, w)`, labels `(B, O, T, h, w)`, key and value `(B, 1, C', T, h, w)`.
        """
        shares = self.foreground_background.shares(embedding, labels)
        if self.foreground_background.key is not None:
            key = split(key[:, 0], shares)
        before = labels[:, :, -1] if isinstance(self.reader, SpatialReader) else None
        query_key = self.query_key(query.levels[2])[:, None]
        return read_objects(self.reader, key, split(value[:, 0], shares), query_key, before)

    def _match(
        self,
        level: int,
        current: torch.Tensor,
        references: torch.Tensor,
        previous: torch.Tensor,
        reference: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """What the ensembler sees at a level: matches, label, matches of the others, embeddings.

        Embeddings of the query and the previous frame `(B, C, h, w)`, of the references `(B, C, R, h, w)`; labels of
        the latter `(B, O, R, h, w)` and of the previous frame `(B, O, h, w)`.
        """
        classes, matched = label.shape[1], self.parts.matching_channels[level]
        rate = self.parts.matching_rate if level == 0 else 1
        foreground = self.foreground_bias[level].flatten().expand(classes - 1)
        bias = torch.cat([self.background_bias[level].flatten(), foreground])
        query = current[:, :matched]
        far = global_matching(query, references[:, :matched], reference, bias)
        near = local_matching(query, previous[:, :matched], label, bias, self.windows[level], rate)
        own, mask = current[:, None].expand(-1, classes, -1, -1, -1), label[:, :, None]
        before = previous[:, None]
        others = background_distance(near), background_distance(far)
        return torch.cat([far, near, mask, *others, own, before * mask, before * (1 - mask)], dim=2)

    def decode(self, query: CollaborativeQuery, read: Matched, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `(B, K + 1, H, W)` of background and objects; `valid` `(B, K)` says which slots hold an object."""
        logits, against = self.ensembler(read.levels, read.head, query.low_level)
        objects = against[:, 1:]
        if valid is not None:
            objects = objects.masked_fill(~valid[:, :, None, None], float("inf"))
        # The background is also where every object says that it is not.
        background = logits[:, :1] + objects.amin(dim=1, keepdim=True)
        logits = torch.cat([background, logits[:, 1:]], dim=1)
        size = self.pad(logits.new_zeros(1, 1, *query.size)).shape[-2:]
        logits = crop_to(F.interpolate(logits, size=size, mode="bilinear", align_corners=True), query.size)
        if valid is None:
            return logits
        return torch.cat([logits[:, :1], logits[:, 1:].masked_fill(~valid[:, :, None, None], float("-inf"))], dim=1)

    def segment(
        self, query: CollaborativeQuery, *memory: torch.Tensor, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits `(B, K + 1, H, W)`: match and decode all objects together."""
        return self.decode(query, self.read(query, *memory), valid)


def _check_matching(parts: CollaborativeParts) -> None:
    """Refuse sizes that matching and ensembler cannot have."""
    for part in ("embedding_channels", "ensembler_channels", "refine_channels"):
        # Bottlenecks and norms take a quarter.
        if getattr(parts, part) < 4:
            raise UserError(f"{part} must be at least 4, found {getattr(parts, part)}")
    matched = parts.matching_channels
    if len(matched) != 3 or not all(0 < n <= parts.embedding_channels for n in matched):
        expected = f"three numbers from 1 to embedding_channels={parts.embedding_channels}"
        raise UserError(f"matching_channels must be {expected}, found {matched}")
    for part in ("windows_4", "windows_8", "windows_16"):
        windows = getattr(parts, part)
        if not windows or windows[0] < 1 or list(windows) != sorted(set(windows)):
            raise UserError(f"{part} must be greatest offsets in ascending order, as (2, 4, 8), found {windows}")
    if parts.matching_rate < 1:
        raise UserError(f"matching_rate must be at least 1, found {parts.matching_rate}")


def _with_background(labels: torch.Tensor) -> torch.Tensor:
    """Objects `(B, K, T, h, w)` in {0, 1} -> `(B, K + 1, T, h, w)` with what they leave first."""
    return torch.cat([1 - labels.sum(dim=1, keepdim=True), labels], dim=1)


def _given(given: torch.Tensor) -> torch.Tensor:
    """Which of T frames were given, `(B, T)` in {0, 1}; where none was, the first stands for it."""
    none = 1 - given.amax(dim=1, keepdim=True)
    return torch.cat([given[:, :1] + none, given[:, 1:]], dim=1)


def _frames_of(given: torch.Tensor) -> slice | list[int]:
    """Which of T frames were given in any of the batch's videos, `(B, T)` in {0, 1}; all of them while exporting."""
    if given.shape[1] == 1 or torch.compiler.is_compiling():
        return slice(None)
    return given.any(dim=0).nonzero()[:, 0].tolist()


def _instances(embedding: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Mean embeddings inside and outside each class, `(B, O, 2C)`: instance-level attention's head (CFBI+, 3.4).

    embedding `(B, C, T, h, w)`, labels `(B, O, T, h, w)` in {0, 1}, weight `(B, 1, T, 1, 1)` of the frames.
    """
    outside = 1 - labels
    if weight is not None:
        labels, outside = labels * weight, outside * weight
    return torch.cat([_mean(embedding, labels), _mean(embedding, outside)], dim=2)


def _nearest(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(..., H, W)` -> `(..., h, w)`, as `F.interpolate` picks them, but whole: ONNX rounds its positions otherwise."""
    rows, columns = (torch.arange(n, device=x.device) * side // n for n, side in zip(size, x.shape[-2:], strict=True))
    return x.index_select(-2, rows).index_select(-1, columns)


def _mean(embedding: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """embedding `(B, C, T, h, w)`, weights `(B, O, T, h, w)` -> `(B, O, C)`."""
    return torch.einsum("bcthw,bothw->boc", embedding, weights) / (weights.sum(dim=(2, 3, 4))[..., None] + 1e-5)
