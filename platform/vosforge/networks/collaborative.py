"""Collaborative networks: foreground and background matched alike, pixel by pixel and as a whole (CFBI+)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from vosforge.networks.base import MemoryNetwork, crop_to
from vosforge.networks.deeplab import DeepLab, FeaturePyramid
from vosforge.networks.ensembler import CollaborativeEnsembler
from vosforge.networks.matching import background_distance, global_matching, local_matching, thinned
from vosforge.networks.parts import Parts


@dataclass(frozen=True)
class CollaborativeParts(Parts):
    """What a collaborative network is made of, beside what all networks share. The defaults are CFBI+'s.

    Attributes:
        embedding_channels: of the embeddings at 1/4, 1/8 and 1/16.
        matching_channels: how many of them are matched at each.
        windows_4, windows_8, windows_16: greatest offsets of local matching at each, ascending.
        matching_rate: every how many rows and columns are matched at 1/4.
        matching_spared: classes of at most so many times `matching_rate**2` pixels there are matched whole.
        ensembler_channels, refine_channels: widths of the ensembler and of its shortcut.
        channel_order: of the frames that the weights expect; the published CFBI+ was trained on "bgr".
    """

    backbone: str = "resnet101"
    memory_policy: Literal["previous", "every", "given", "ends"] = "ends"
    padding: Literal["black", "mean"] = "mean"
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

    @classmethod
    def taken(cls) -> set[str]:
        """Its own, and those of all networks that do not belong to a space-time read."""
        own = {field.name for field in fields(cls)} - {field.name for field in fields(Parts)}
        shared = {"backbone", "pretrained", "frozen_batch_norm", "memory_policy", "padding", "training_objects"}
        return own | shared | {"aspp_dilations"}


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
    embeddings at three levels and each object's label there, so that reads are matches, not values.

    Source: Yang, Wei, Yang: "Collaborative Video Object Segmentation by Multi-Scale Foreground-Background
    Integration"; numbers follow the published code.
    """

    joint = True

    def __init__(self, parts: CollaborativeParts):
        super().__init__(parts)
        self.parts: CollaborativeParts = parts
        channels = parts.embedding_channels
        self.extractor = DeepLab(
            parts.backbone, channels, parts.aspp_dilations, parts.pretrained, parts.frozen_batch_norm
        )
        middle, low = self.extractor.middle_channels, self.extractor.low_level_channels
        self.neck = FeaturePyramid((channels, middle, channels), channels)
        self.windows = (parts.windows_4, parts.windows_8, parts.windows_16)
        self.background_bias = nn.Parameter(torch.zeros(3, 1, 1, 1))
        self.foreground_bias = nn.Parameter(torch.zeros(3, 1, 1, 1))
        inputs = [3 * channels + 3 + 2 * len(windows) for windows in self.windows]
        self.ensembler = CollaborativeEnsembler(
            inputs, 4 * channels, parts.ensembler_channels, parts.refine_channels, low
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
    ) -> tuple[torch.Tensor, ...]:
        """Three embeddings `(B, 1, C, h_i, w_i)`, then each object's labels `(B, K, 1, h_i, w_i)` in {0, 1} at each."""
        self.check(frames, masks)
        query = query or self.encode_query(frames)
        background = 1 - masks.sum(dim=1, keepdim=True)
        winner = torch.cat([background, masks], dim=1).argmax(dim=1, keepdim=True)
        ids = torch.arange(1, masks.shape[1] + 1, device=masks.device)[None, :, None, None]
        labels = self.pad((winner == ids).to(masks.dtype))
        levels = [F.interpolate(labels, size=level.shape[-2:], mode="nearest") for level in query.levels]
        return (*(level[:, None] for level in query.levels), *(level[:, :, None] for level in levels))

    def admit(self, memory: tuple[torch.Tensor, ...], positions: Sequence[int], total: int) -> tuple[torch.Tensor, ...]:
        """A remembered frame's tensors after more objects entered: those were not in it.

        Args:
            memory: as `encode_memory` gave them, without the batch.
            positions: where the objects of the memory now stand.
            total: objects now.
        """
        embeddings, labels = memory[:3], memory[3:]
        widened = [label.new_zeros(total, *label.shape[1:]) for label in labels]
        for wide, label in zip(widened, labels, strict=True):
            wide[list(positions)] = label
        return (*embeddings, *widened)

    def read(self, query: CollaborativeQuery, *memory: torch.Tensor) -> Matched:
        """Match the query with T remembered frames: the last is the previous one, the others are references.

        A class that no other frame shows is referred to in the last one.
        """
        embeddings = [embedding[:, 0] for embedding in memory[:3]]
        labels = [_with_background(label[:, :, 0]) for label in memory[3:]]
        seen = labels[0][:, :, :-1].flatten(2).any(dim=2)
        references = [thinned(labels[0], self.parts.matching_rate, self.parts.matching_spared), *labels[1:]]
        # Frames that are references: all but the last, and that one for classes that no other shows.
        refer = torch.ones_like(labels[0][:, :, :, 0, 0])
        refer[:, :, -1] = (~seen).to(refer.dtype)
        levels = [
            self._match(i, current, embedding, reference * refer[..., None, None], label[:, :, -1])
            for i, (current, embedding, reference, label) in enumerate(
                zip(query.levels, embeddings, references, labels, strict=True)
            )
        ]
        return Matched(tuple(levels), _attention_head(embeddings[0], labels[0], refer))

    def _match(
        self, level: int, current: torch.Tensor, embedding: torch.Tensor, reference: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """What the ensembler sees at a level: matches, label, matches of the others, embeddings."""
        classes, matched = label.shape[1], self.parts.matching_channels[level]
        rate = self.parts.matching_rate if level == 0 else 1
        foreground = self.foreground_bias[level].flatten().expand(classes - 1)
        bias = torch.cat([self.background_bias[level].flatten(), foreground])
        previous = embedding[:, :, -1]
        query, keys = current[:, :matched], embedding[:, :matched]
        far = global_matching(query, keys, reference, bias)
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


def _with_background(labels: torch.Tensor) -> torch.Tensor:
    """Objects `(B, K, T, h, w)` in {0, 1} -> `(B, K + 1, T, h, w)` with what they leave first."""
    return torch.cat([1 - labels.sum(dim=1, keepdim=True), labels], dim=1)


def _attention_head(embedding: torch.Tensor, labels: torch.Tensor, refer: torch.Tensor) -> torch.Tensor:
    """Mean embeddings inside and outside each class, in the references and in the previous frame: `(B, O, 4C)`."""
    weight, last = refer[..., None, None], labels[:, :, -1:]
    means = [_mean(embedding, labels * weight), _mean(embedding, (1 - labels) * weight)]
    means += [_mean(embedding[:, :, -1:], last), _mean(embedding[:, :, -1:], 1 - last)]
    return torch.cat(means, dim=2)


def _mean(embedding: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """embedding `(B, C, T, h, w)`, weights `(B, O, T, h, w)` -> `(B, O, C)`."""
    return torch.einsum("bcthw,bothw->boc", embedding, weights) / (weights.sum(dim=(2, 3, 4))[..., None] + 1e-5)
