from __future__ import annotations

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation import score
from vosforge.networks import build, describe, load, load_weights, save
from vosforge.propagation import Propagator, segment_clip


@pytest.fixture
def nano():
    torch.manual_seed(0)
    return build("stm", "nano").eval()


def batch(size: tuple[int, int], videos: int = 2, frames: int = 3, objects: int = 3):
    """Random frames and disjoint first masks."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(videos, frames, 3, *size, generator=generator)
    owner = torch.randint(0, objects + 1, (videos, 1, *size), generator=generator)
    masks = (owner == torch.arange(1, objects + 1)[None, :, None, None]).float()
    return clip, masks, torch.ones(videos, objects, dtype=torch.bool)


def two_objects(length: int = 4) -> Clip:
    """A red square and a blue disc that cross a textured ground on different ways."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    frames = np.repeat(cv2.GaussianBlur(noise, (0, 0), 2)[None], length, axis=0)
    masks = np.zeros((length, 64, 64), np.uint8)
    for t in range(length):
        masks[t, 10 + 3 * t : 28 + 3 * t, 8 + 4 * t : 26 + 4 * t] = 1
        cv2.circle(masks[t], (46 - 4 * t, 44 - 2 * t), 10, 2, -1)
    frames[masks == 1], frames[masks == 2] = (220, 40, 40), (40, 60, 230)
    return Clip("crossing", frames, masks)


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (17, 90)])
def test_any_size_is_segmented_at_that_size(nano, size):
    frames, masks, valid = batch(size)
    with torch.no_grad():
        logits = nano(frames, masks, valid)
    assert logits.shape == (2, 2, 4, *size)
    assert logits.isfinite().all()
    assert (logits.softmax(dim=2).sum(dim=2) - 1).abs().max() < 1e-5


def test_per_frame_functions_have_the_documented_shapes(nano):
    frames, masks, _ = batch((33, 47))
    with torch.no_grad():
        query = nano.encode_query(frames[:, 0])
        key, value = nano.encode_memory(frames[:, 0], masks)
        read = nano.read(query, torch.stack([key] * 2, dim=3), torch.stack([value] * 2, dim=3))
        logits = nano.decode(query, read)
    assert query.key.shape == (2, 32, 5, 6)
    assert [tuple(skip.shape[-2:]) for skip in query.skips] == [(10, 12)]
    assert (key.shape, value.shape) == ((2, 3, 32, 5, 6), (2, 3, 64, 5, 6))
    assert read.shape == (2, 3, 128, 5, 6)
    assert logits.shape == (2, 3, 33, 47)


def test_read_is_followed_by_the_querys_own_value(nano):
    frames, masks, _ = batch((32, 32))
    with torch.no_grad():
        query = nano.encode_query(frames[:, 0])
        key, value = nano.encode_memory(frames[:, 0], masks)
        read = nano.read(query, key[:, :, :, None], value[:, :, :, None])
    assert (read[:, :, 64:] == query.value[:, None]).all()


def test_padding_slots_leave_the_others_unchanged(nano):
    frames, masks, valid = batch((40, 48), objects=2)
    padded = torch.cat([masks, torch.zeros(2, 2, 40, 48)], dim=1)
    with torch.no_grad():
        expected = nano(frames, masks, valid)
        found = nano(frames, padded, torch.cat([valid, torch.zeros(2, 2, dtype=torch.bool)], dim=1))
    assert (found[:, :, :3] - expected).abs().max() < 1e-4
    assert (found.softmax(dim=2)[:, :, 3:] == 0).all()


def test_videos_of_a_batch_do_not_see_each_other(nano):
    frames, masks, valid = batch((32, 40))
    with torch.no_grad():
        together = nano(frames, masks, valid)
        alone = torch.cat([nano(frames[b : b + 1], masks[b : b + 1], valid[b : b + 1]) for b in range(2)])
    assert (together - alone).abs().max() < 1e-4


def test_objects_are_told_apart_by_their_own_masks(nano):
    frames, masks, valid = batch((32, 40))
    order = [2, 0, 1]
    with torch.no_grad():
        straight, swapped = nano(frames, masks, valid), nano(frames, masks[:, order], valid)
    assert (straight[:, :, [0, *(i + 1 for i in order)]] - swapped).abs().max() < 1e-4


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    network = build("stm", "nano").train()
    # Residual branches start closed (their last norm's weight is 0) and would let nothing through on the first step.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    frames, masks, valid = batch((32, 48))
    network(frames, masks, valid).softmax(dim=2)[:, :, 1].square().mean().backward()
    # A bias of the memory's key shifts all affinities of a query position alike, and the softmax takes it out again.
    still = {name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert still <= {"memory_head.key.bias"}


def test_nano_learns_one_clip_of_two_objects():
    torch.manual_seed(0)
    clip, network = two_objects(), build("stm", "nano").train()
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)[None].float() / 255
    truth = torch.from_numpy(clip.masks).long()[None]
    first = torch.stack([truth[:, 0] == 1, truth[:, 0] == 2], dim=1).float()
    optimiser = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=100)
    for _ in range(100):
        logits = network(frames, first, torch.ones(1, 2, dtype=torch.bool))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), truth[:, 1:].flatten(0, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    report = score(clip.masks, segment_clip(Propagator(network), clip), protocol="all-frames")
    assert min(report[k]["J"]["mean"] for k in (1, 2)) > 0.95


@pytest.mark.parametrize(("size", "least", "most"), [("nano", 0.1e6, 2e6), ("paper", 38.85e6, 38.95e6)])
def test_sizes_have_the_parameters_they_promise(size, least, most):
    assert least < sum(p.numel() for p in build("stm", size).parameters()) < most


def test_frozen_batch_norm_stays_as_it_is_in_training():
    network = build("stm", "nano", frozen_batch_norm=True).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    frames, masks, valid = batch((32, 32))
    network(frames, masks, valid)
    assert all((buffer == before[name]).all() for name, buffer in network.named_buffers())
    assert network.training


def test_memory_starts_with_the_querys_key_for_equal_pictures(nano):
    assert (nano.memory_head.key.weight == nano.query_head.key.weight).all()
    query, memory = nano.query_encoder.body.state_dict(), nano.memory_encoder.body.state_dict()
    equal = [name for name in query if query[name].shape == memory[name].shape and (query[name] == memory[name]).all()]
    assert len(equal) == len(query) - 1


@pytest.mark.parametrize(
    ("arguments", "parts", "message"),
    [
        (("sam",), {}, r"unknown network 'sam'; valid: stm"),
        (("stm", "huge"), {}, r"unknown size 'huge' .*valid: nano, small, paper"),
        (("stm", "nano"), {"readr": "dense"}, r"unknown part 'readr' .*valid: backbone, .*reader"),
        (("stm", "nano"), {"reader": "sparse"}, r"unknown reader 'sparse'; valid: dense, topk"),
        (("stm", "nano"), {"top_k": 0}, r"top_k must be at least 1, found 0"),
        (("stm", "nano"), {"backbone": "resnot50"}, r"backbone 'resnot50'"),
        (("stm", "nano"), {"strides": (3, 6)}, r"feature maps at strides .*strides=\(3, 6\)"),
    ],
)
def test_wrong_names_are_refused_with_the_valid_ones(arguments, parts, message):
    with pytest.raises(UserError, match=message):
        build(*arguments, **parts)


@pytest.mark.parametrize(
    ("frames", "masks", "message"),
    [
        (torch.zeros(1, 4, 16, 16), torch.zeros(1, 1, 16, 16), r"frames must be \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 1, 16, 16), "float"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 8), r"masks must be \(B, K, H, W\)"),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 0, 16, 16), r"no object \(K = 0\)"),
    ],
)
def test_tensors_of_another_form_are_refused(nano, frames, masks, message):
    with pytest.raises(UserError, match=message):
        nano.encode_memory(frames, masks)


def test_saved_network_comes_back_the_same(nano, tmp_path):
    nano.train()(*batch((32, 32)))  # So that batch norm's statistics are not the fresh ones.
    save(nano.eval(), tmp_path / "stm.safetensors")
    back = load(tmp_path / "stm.safetensors")
    tensors = batch((32, 40))
    with torch.no_grad():
        assert (back(*tensors) == nano(*tensors)).all()
    assert not back.training
    assert describe(tmp_path / "stm.safetensors") == back.description == nano.description


def test_parts_without_weights_can_be_chosen_anew_at_loading(nano, tmp_path):
    save(nano, tmp_path / "stm.safetensors")
    assert load(tmp_path / "stm.safetensors", reader="topk", top_k=7).reader.k == 7
    with pytest.raises(UserError, match="unknown part 'raeder'"):
        load(tmp_path / "stm.safetensors", raeder="topk")


def test_parts_whose_weights_do_not_fit_are_refused(nano, tmp_path):
    save(nano, tmp_path / "stm.safetensors")
    with pytest.raises(UserError, match=r"stm\.safetensors: weights do not fit.*of another shape"):
        load(tmp_path / "stm.safetensors", key_channels=16)


def test_missing_and_unexpected_weights_are_named(nano, tmp_path):
    state = nano.state_dict()
    state["stranger"] = state.pop("query_head.key.bias")
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"1 missing \['query_head.key.bias'\], 1 unexpected \['stranger'\]"):
        load_weights(nano, tmp_path / "other.safetensors")


def test_files_that_are_no_network_are_refused_by_name(nano, tmp_path):
    foreign, text = tmp_path / "foreign.safetensors", tmp_path / "text.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, foreign)
    text.write_text("no network")
    save(nano, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-1000])
    for name, message in [
        ("foreign", "without vosforge's network description"),
        ("text", "expected a safetensors file"),
        ("cut", "expected a safetensors file"),
        ("gone", "no such network file"),
    ]:
        with pytest.raises(UserError, match=rf"{name}\.safetensors: .*{message}"):
            load(tmp_path / f"{name}.safetensors")
