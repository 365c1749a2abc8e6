"""CAMN's foreground-background memory against a plain transcription of its section 2.1."""

from __future__ import annotations

import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks.foreground_background import ForegroundBackground, split

SCHEMES = pytest.mark.parametrize("scheme", ["product", "prior"])
KEYS = pytest.mark.parametrize("keys", ["shared", "separate"])


def of_half(conv: torch.nn.Conv2d, half: int, maps: torch.Tensor) -> torch.Tensor:
    """The first or second half of a 1x1 convolution's outputs, of maps `(C, T, h, w)`."""
    return torch.einsum("oc,cthw->othw", conv.weight.chunk(2)[half][:, :, 0, 0], maps)


def plain_read(
    memory: ForegroundBackground,
    embedding: torch.Tensor,
    shared_key: torch.Tensor,
    masks: torch.Tensor,
    query_key: torch.Tensor,
) -> torch.Tensor:
    """One video's read, class by class and map by map.

    Embedding `(C, T, h, w)`, its shared key `(CK, T, h, w)`, masks `(O, T, h, w)`, query `(CK, h, w)` ->
    `(O, CV, h, w)`.
    """
    read = []
    for mask in masks:
        for half, part in enumerate((mask, 1 - mask)):
            if memory.prior is not None:
                weight, bias = memory.prior.weight[half, :, 0, 0], memory.prior.bias[half]
                part = (torch.einsum("c,cthw->thw", weight, torch.cat([embedding, part[None]])) + bias).sigmoid()
            maps = embedding * part
            key = shared_key if memory.key is None else of_half(memory.key, half, maps)
            affinity = torch.einsum("cthw,cyx->thwyx", key, query_key) / query_key.shape[0] ** 0.5
            weights = affinity.flatten(0, 2).softmax(dim=0).view_as(affinity)
            read.append(torch.einsum("othw,thwyx->oyx", of_half(memory.value, half, maps), weights))
    return torch.stack(read).unflatten(0, (-1, 2)).flatten(1, 2)


def scene(clips, frames: int = 4):
    """Three frames to remember `(2, 3, 3, H, W)` with masks of two objects that change, and a frame to segment."""
    clip, masks, _ = clips((40, 56), frames=frames, objects=2, dtype=torch.float64)
    return clip[:, :-1], [masks.roll(5 * t, dims=3) for t in range(frames - 1)], clip[:, -1]


@KEYS
@SCHEMES
def test_collaborative_network_reads_as_the_paper_says(make, clips, scheme, keys):
    network = make("camn", memory_encoder=scheme, memory_keys=keys).double()
    frames, masks, current = scene(clips)
    with torch.no_grad():
        remembered = [network.encode_memory(frames[:, t], masks[t], given=t == 0) for t in range(3)]
        memory = [torch.stack(kind, dim=3) for kind in zip(*remembered, strict=True)]
        query = network.encode_query(current)
        read = network.read(query, *memory).levels[2][:, :, -network.parts.value_channels :]
        for b in range(2):
            embedding, objects = memory[2][b, 0], memory[5][b, :, 0]
            labels = torch.cat([1 - objects.sum(dim=0, keepdim=True), objects])
            projection = network.query_key.weight[:, :, 0, 0]
            shared_key = torch.einsum("oc,cthw->othw", projection, embedding)
            query_key = torch.einsum("oc,chw->ohw", projection, query.levels[2][b])
            expected = plain_read(network.foreground_background, embedding, shared_key, labels, query_key)
            assert (read[b] - expected).abs().max() < 1e-9
    assert read.std(dim=(3, 4)).max() > 1e-3


@KEYS
@SCHEMES
def test_space_time_network_reads_as_the_paper_says(make, clips, scheme, keys):
    network = make("stm", memory_encoder=scheme, memory_keys=keys).double()
    frames, masks, current = scene(clips)
    with torch.no_grad():
        remembered = [network.encode_memory(frames[:, t], masks[t]) for t in range(3)]
        query = network.encode_query(current)
        read = network.read(query, *(torch.stack(kind, dim=3) for kind in zip(*remembered, strict=True)))
        past = [network.encode_query(frames[:, t]) for t in range(3)]
        for b in range(2):
            embedding = torch.stack([q.features[b] for q in past], dim=1)
            shared_key = torch.stack([q.key[b, 0] for q in past], dim=1)
            shares = torch.stack([mask[b].unflatten(2, (-1, 8)).unflatten(1, (-1, 8)) for mask in masks], dim=1)
            shares = shares.mean(dim=(3, 5))
            expected = plain_read(network.foreground_background, embedding, shared_key, shares, query.key[b, 0])
            assert (read[b, :, : network.parts.value_channels] - expected).abs().max() < 1e-9
    assert read.std(dim=(3, 4)).max() > 1e-3


def test_product_shares_are_the_mask_and_what_it_leaves():
    memory, masks = ForegroundBackground(6, 4, 8, "product", "shared"), torch.rand(2, 3, 2, 4, 5)
    shares = memory.shares(torch.randn(2, 6, 2, 4, 5), masks)
    assert (shares == torch.stack([masks, 1 - masks], dim=2)).all()


def test_prior_shares_follow_both_mask_and_embedding():
    torch.manual_seed(0)
    memory = ForegroundBackground(6, 4, 8, "prior", "shared")
    embedding, masks = torch.randn(2, 6, 2, 4, 5), torch.rand(2, 3, 2, 4, 5)
    shares = memory.shares(embedding, masks)
    assert shares.shape == (2, 3, 2, 2, 4, 5)
    assert 0 < shares.min() < shares.max() < 1
    for other in (memory.shares(embedding, 1 - masks), memory.shares(-embedding, masks)):
        assert (shares - other).abs().max() > 1e-2


def test_shared_keys_have_no_weights_of_their_own():
    for keys, shapes in [("shared", {(8, 6, 1, 1)}), ("separate", {(8, 6, 1, 1), (10, 6, 1, 1)})]:
        memory = ForegroundBackground(6, 5, 8, "product", keys)
        assert {tuple(p.shape) for p in memory.parameters()} == shapes


def test_separate_keys_of_a_whole_frames_object_start_as_its_keys_as_a_query(make, clips):
    network = make("camn", memory_keys="separate").double()
    frames, masks, _ = clips((32, 32), objects=1, dtype=torch.float64)
    whole = torch.ones_like(masks)
    with torch.no_grad():
        query = network.encode_query(frames[:, 0])
        foreground = network.encode_memory(frames[:, 0], whole, query=query)[7][:, 0, :32]
        assert (foreground - network.query_key(query.levels[2])).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_halves_keep_the_precision_of_what_is_split(dtype):
    projected, shares = torch.randn(1, 6, 2, 3, 4).to(dtype), torch.rand(1, 2, 2, 2, 3, 4)
    halves = split(projected, shares)
    assert (halves.dtype, halves.shape) == (dtype, (1, 2, 6, 2, 3, 4))
    assert (halves[:, 1, 3:] - projected[:, 3:] * shares[:, 1, 1, None].to(dtype)).abs().max() < 1e-6


def test_odd_number_of_values_is_refused():
    with pytest.raises(UserError, match="value_channels must be even, half of them the background's, found 7"):
        ForegroundBackground(6, 4, 7, "product", "shared")
