from __future__ import annotations

import pytest
import torch

from vosforge.networks import NETWORKS, build, preset

EVERY = pytest.mark.parametrize("name", NETWORKS)


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (17, 90), (5, 7), (1, 1)], ids=str)
@EVERY
def test_any_size_is_segmented_at_that_size(make, clips, name, size):
    frames, masks, valid = clips(size)
    with torch.no_grad():
        logits = make(name)(frames, masks, valid).logits
    assert logits.shape == (2, 2, 4, *size)
    assert logits.isfinite().all()
    assert (logits.softmax(dim=2).sum(dim=2) - 1).abs().max() < 1e-5


def test_per_frame_functions_have_the_documented_shapes(make, clips, space_time):
    network = make(space_time)
    frames, masks, _ = clips((33, 47))
    own_query = 3 if network.parts.siamese else 1
    own_key = 1 if network.parts.memory_encoder == "value" and not network.parts.siamese else 3
    with torch.no_grad():
        targets = network.encode_target(frames[:, 0], masks)
        query = network.encode_query(frames[:, 0], targets, masks)
        key, value = network.encode_memory(frames[:, 0], masks)
        read = network.read(query, torch.stack([key] * 2, dim=3), torch.stack([value] * 2, dim=3))
        logits = network.decode(query, read)
    channels = network.query_encoder.channels
    assert (None if targets is None else targets.shape) == ((2, 3, channels[-1], 2, 2) if own_query == 3 else None)
    assert (query.key.shape, query.value.shape) == ((2, own_query, 32, 5, 6), (2, own_query, 64, 5, 6))
    assert (query.features.shape, query.size) == ((2, channels[-1], 5, 6), (33, 47))
    assert [tuple(skip.shape) for skip in query.skips] == [(2, channels[0], 10, 12)]
    assert (key.shape, value.shape) == ((2, own_key, 32, 5, 6), (2, 3, 64, 5, 6))
    assert (read.shape, logits.shape) == ((2, 3, 128, 5, 6), (2, 3, 33, 47))
    assert network.aggregate(logits.sigmoid()).shape == (2, 4, 33, 47)


def test_read_is_followed_by_the_querys_own_value(make, clips, space_time):
    network = make(space_time)
    frames, masks, _ = clips((32, 32))
    with torch.no_grad():
        query = network.encode_query(frames[:, 0], network.encode_target(frames[:, 0], masks), masks)
        key, value = network.encode_memory(frames[:, 0], masks)
        read = network.read(query, key[:, :, :, None], value[:, :, :, None])
    assert (read[:, :, 64:] == query.value).all()


def test_query_of_some_objects_is_their_part_in_the_order_asked(make, clips, space_time):
    # A query that all objects' union enhances is that of no object alone.
    network = make(space_time, prior="none" if preset(space_time).prior == "none" else "object")
    frames, masks, _ = clips((24, 24))
    some = masks[:, [2, 0]]
    with torch.no_grad():
        query = network.encode_query(frames[:, 0], network.encode_target(frames[:, 0], masks), masks)
        alone = network.encode_query(frames[:, 0], network.encode_target(frames[:, 0], some), some)
    part = query.of([2, 0])
    assert (part.previous is None) == (alone.previous is None) == (space_time != "skn")
    assert part.previous is None or (part.previous == alone.previous).all()
    assert part.key.shape == alone.key.shape
    assert (part.key - alone.key).abs().max() < 1e-5
    assert (part.value - alone.value).abs().max() < 1e-5


@EVERY
def test_padding_slots_leave_the_others_unchanged(make, clips, name):
    network = make(name)
    frames, masks, valid = clips((33, 47), objects=2)
    padded = torch.cat([masks, torch.zeros(2, 2, 33, 47)], dim=1)
    with torch.no_grad():
        expected = network(frames, masks, valid).logits
        found = network(frames, padded, torch.cat([valid, torch.zeros(2, 2, dtype=torch.bool)], dim=1)).logits
    assert (found[:, :, :3] - expected).abs().max() < 1e-4
    assert (found.softmax(dim=2)[:, :, 3:] == 0).all()


@EVERY
def test_videos_of_a_batch_do_not_see_each_other(make, clips, name):
    network = make(name)
    frames, masks, valid = clips((33, 40), videos=3)
    with torch.no_grad():
        together = network(frames, masks, valid).logits
        alone = torch.cat([network(frames[b : b + 1], masks[b : b + 1], valid[b : b + 1]).logits for b in range(3)])
    assert (together - alone).abs().max() < 1e-4


@EVERY
def test_objects_are_told_apart_by_their_own_masks(make, clips, name):
    network = make(name)
    frames, masks, valid = clips((32, 40))
    order = [2, 0, 1]
    with torch.no_grad():
        straight, swapped = network(frames, masks, valid).logits, network(frames, masks[:, order], valid).logits
    assert (straight[:, :, [0, *(i + 1 for i in order)]] - swapped).abs().max() < 1e-4
    assert min((straight[:, :, i] - straight[:, :, j]).abs().max() for i, j in [(1, 2), (1, 3), (2, 3)]) > 1e-3


@EVERY
def test_all_slots_hold_an_object_unless_it_is_said_otherwise(make, clips, name):
    network = make(name)
    frames, masks, valid = clips((24, 32))
    with torch.no_grad():
        assert (network(frames, masks).logits == network(frames, masks, valid).logits).all()


@EVERY
def test_nano_has_under_two_million_parameters(name):
    assert 0.1e6 < parameters(build(name, "nano")) < 2e6


@pytest.mark.parametrize(("name", "millions"), [("stm", 38.93), ("mivos", 53.67), ("stcn", 54.43)])
def test_paper_size_has_the_published_number_of_parameters(name, millions):
    assert round(parameters(build(name, "paper")) / 1e6, 2) == millions


def test_interactive_network_remembers_its_first_frame_alone(make, clips):
    network = make("stm-interactive")
    frames, masks, _ = clips((24, 32))
    with torch.no_grad():
        long, short = network(frames, masks).logits, network(frames[:, [0, 2]], masks).logits
    assert (long[:, 1] - short[:, 0]).abs().max() < 1e-5
    other = make("stm-interactive", memory_policy="previous")
    with torch.no_grad():
        assert (other(frames, masks).logits[:, 1] - long[:, 1]).abs().max() > 1e-4


@pytest.mark.parametrize("planes_at", ["input", "stem"])
def test_memory_starts_with_the_querys_key_for_equal_pictures(make, clips, space_time, planes_at):
    network = make(space_time, planes_at=planes_at, prior="none", siamese=False)
    frames, masks, _ = clips((24, 32))
    with torch.no_grad():
        query = network.encode_query(frames[:, 0])
        key, _ = network.encode_memory(frames[:, 0], torch.zeros_like(masks))
        masked, value = network.encode_memory(frames[:, 0], masks)
        _, empty = network.encode_memory(frames[:, 0], torch.zeros_like(masks))
    assert (key - query.key).abs().max() < 1e-5
    assert (value - empty).abs().max() > 1e-3
    assert ((masked - query.key).abs().max() > 1e-3) == (network.parts.memory_encoder == "key-value")


@EVERY
def test_frozen_batch_norm_stays_as_it_is_in_training(make, clips, name):
    network = make(name, frozen_batch_norm=True).train()
    before = {key: buffer.clone() for key, buffer in network.named_buffers()}
    frames, masks, valid = clips((32, 32))
    network(frames, masks, valid)
    assert network.training
    assert all((buffer == before[key]).all() for key, buffer in network.named_buffers())
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


def test_targets_leave_batch_norm_as_it_is_and_training_goes_on(make, clips):
    network = make("emn").train()
    before = {key: buffer.clone() for key, buffer in network.named_buffers()}
    frames, masks, _ = clips((32, 32))
    network.encode_target(frames[:, 0], masks)
    assert all((buffer == before[key]).all() for key, buffer in network.named_buffers())
    assert all(module.training for module in network.modules())
    network.encode_query(frames[:, 0], network.encode_target(frames[:, 0], masks))
    assert any(
        (buffer != before[key]).any() for key, buffer in network.query_encoder.named_buffers(prefix="query_encoder")
    )


def test_one_object_in_training_is_answered_with_two_classes(make, clips):
    network = make("emn").train()
    frames, masks, _ = clips((32, 32), objects=1)
    # Dropout and batch statistics aside, training differs from the test by the aggregation alone.
    for module in network.modules():
        if not list(module.children()):
            module.eval()
    with torch.no_grad():
        trained = network(frames[:, :2], masks).logits
        tested = network.eval()(frames[:, :2], masks).logits
    assert (trained[:, :, 0] == 0).all()
    assert trained[:, :, 1].abs().max() > 1e-3
    assert (trained.softmax(dim=2)[:, :, 1] > 0.5).eq(tested.argmax(dim=2) == 1).all()
    # Soft aggregation of one object doubles its logit.
    assert (tested[:, :, 1] - tested[:, :, 0] - 2 * trained[:, :, 1]).abs().max() < 1e-3


@pytest.mark.parametrize(
    "parts",
    [{"pyramid": "pan"}, {"object_context": True}, {"memory_encoder": "product"}, {"memory_encoder": "prior"}],
    ids=str,
)
def test_keys_of_equal_pictures_start_equal_whatever_enriches_the_query(make, clips, parts):
    network = make("stm", **parts)
    frames, masks, _ = clips((24, 32))
    with torch.no_grad():
        key, _ = network.encode_memory(frames[:, 0], torch.zeros_like(masks))
        assert (key - network.encode_query(frames[:, 0]).key).abs().max() < 1e-5
