"""Published checkpoints, and what published code answered with weights that follow from formulas."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from vosforge.errors import UserError
from vosforge.networks import (
    DenseReader,
    KernelReader,
    MemoryNetwork,
    Query,
    TopKReader,
    from_published,
    load,
    save,
    soft_aggregate,
)
from vosforge.networks.space_time import make_reader
from vosforge.propagation import Propagator

KEYS = {
    "stm": "stm_weights_published_keys.tsv",
    "mivos": "mivos_propagation_published_keys.tsv",
    "stcn": "stcn_keys.tsv",
    "qdmn": "qdmn_keys.tsv",
    "skn-baseline": "skn_baseline_resnest101_keys.tsv",
}
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-6)])


@pytest.fixture(scope="module")
def checkpoint(formulas: ModuleType, golden: Callable) -> Callable[..., dict[str, torch.Tensor]]:
    """The published names of a source with their values by formula."""

    def make(source: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        rule = formulas.sine_weight if source in ("qdmn", "skn-baseline") else formulas.weight
        shapes = golden(KEYS[source])
        return {
            name: torch.from_numpy(np.asarray(rule(name.removeprefix("module."), shape))).to(dtype)
            for name, shape in shapes.items()
        }

    return make


def propagated(network: torch.nn.Module, frames: np.ndarray, masks: np.ndarray, every: int = 5) -> np.ndarray:
    """Probabilities `(K + 1, T, H, W)` from the first mask alone."""
    propagator = Propagator(network, memory_every=every)
    steps = [propagator.step(torch.from_numpy(f), None if t else masks[0]) for t, f in enumerate(frames)]
    return torch.stack(steps, dim=1).numpy()


@PRECISIONS
@pytest.mark.parametrize(("source", "parts"), [("stm", {}), ("mivos", {"top_k": 20})])
def test_clips_are_segmented_as_by_the_published_code(source, parts, dtype, tolerance, checkpoint, formulas, golden):
    expected = golden(f"{source}_visible.npz")
    params = json.loads(str(expected["params"]))
    frames, masks = formulas.clip(*(params[key] for key in ("seed", "T", "H", "W", "N")))
    network = from_published(source, checkpoint(source, dtype), **parts)
    found = propagated(network, frames, masks, params["every"])
    assert np.abs(found - expected["prob"]).max() < tolerance
    differing = found.argmax(axis=0) != expected["labels"]
    top = np.sort(found, axis=0)[-2:]
    assert not differing.any() or (top[1] - top[0])[differing].max() < 2 * tolerance


def sine_clip(formulas: ModuleType, height: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Memory and query frame `(1, 3, H, W)`, and the memory's two objects `(1, 2, H, W)`, of the `sine_` files."""
    first, second = (torch.from_numpy(formulas.sine_image(height, width, seed)).to(dtype) for seed in (0.0, 0.6))
    ids = formulas.sine_masks(height, width)
    return first[None], second[None], torch.from_numpy(np.stack([ids == 1, ids == 2])).to(dtype)[None]


@PRECISIONS
def test_skn_baseline_answers_as_the_public_one(dtype, tolerance, checkpoint, formulas, golden):
    expected = golden("sine_skn_baseline_resnest101.npz")
    network = from_published("skn-baseline", checkpoint("skn-baseline", dtype))
    first, second, masks = sine_clip(formulas, 90, 124, dtype)
    with torch.inference_mode():
        key, value = network.encode_memory(first, masks)
        query = network.encode_query(second)
        logits = network.segment(query, key[:, :, :, None], value[:, :, :, None])[0]
    assert np.abs(key[0].numpy() - expected["key"]).max() < tolerance
    assert np.abs(value[0, :, :8].numpy() - expected["value_ch0_8"]).max() < tolerance
    assert (
        np.abs([value.mean() - expected["value_stats"][0], value.std() - expected["value_stats"][1]]).max() < tolerance
    )
    # Answers are stored in float32, whose spacing at the logits' size of 10 is 1e-6.
    assert np.abs(logits.numpy() - expected["logit"]).max() < max(tolerance, 3e-6)
    frames, ids = torch.cat([first, second]).numpy(), formulas.sine_masks(90, 124)
    found = propagated(network, frames, ids[None])[:, 1]
    assert np.abs(found - expected["prob"]).max() < tolerance


class Remembered(NamedTuple):
    """The public network of QPM's authors after two frames: itself, its weights, and what it knows of them."""

    tolerance: float
    network: MemoryNetwork
    weights: dict[str, torch.Tensor]
    aggregated: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query: Query


@pytest.fixture(scope="module", params=[(torch.float32, 1e-4), (torch.float64, 1e-6)], ids=["float32", "float64"])
def qdmn(request, checkpoint, formulas) -> Remembered:
    dtype, tolerance = request.param
    weights = checkpoint("qdmn", dtype)
    network = from_published("qdmn", weights)
    first, second, masks = sine_clip(formulas, 96, 128, dtype)
    with torch.inference_mode():
        aggregated = soft_aggregate(masks).softmax(dim=1)
        key, value = network.encode_memory(first, aggregated[:, 1:])
        query = network.encode_query(second, previous=aggregated[:, 1:])
    return Remembered(tolerance, network, weights, aggregated, key, value, query)


def test_qdmn_remembers_as_the_public_code_does(qdmn, golden):
    expected = golden("sine_qdmn.npz")
    found = {
        "agg0": qdmn.aggregated[0, :, ::8, ::8],
        "key": qdmn.key[0],
        "value_stats": torch.stack([qdmn.value.mean(), qdmn.value.std()]),
    }
    assert {k: v.shape for k, v in found.items()} == {k: expected[k].shape for k in found}
    assert max(np.abs(v.numpy() - expected[k]).max() for k, v in found.items()) < qdmn.tolerance


def test_qdmn_enhances_the_query_as_the_public_code_does(qdmn, golden):
    features, masks = qdmn.query.features, qdmn.aggregated[:, 1:].amax(dim=1, keepdim=True)
    with torch.inference_mode():
        cells = F.interpolate(masks, features.shape[-2:], mode="bilinear", align_corners=False)
        gate = qdmn.network.enhancement.gate(features, cells)
        key, value = qdmn.network.query_head(features * gate)
    assert np.abs(gate.numpy() - golden("sine_qdmn.npz")["prior_gate"]).max() < qdmn.tolerance
    assert (qdmn.query.key[:, 0] - key).abs().max() < 1e-6
    assert (qdmn.query.value[:, 0] - value).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("full", {"reader": "dense"}),
        ("top50", {"reader": "topk", "top_k": 50}),
        ("top20", {"reader": "topk", "top_k": 20}),
        ("km5.6_top50", {"reader": "kernel", "sigma": 5.6, "top_k": 50}),
        ("km7_full", {"reader": "kernel", "sigma": 7.0, "top_k": None}),
    ],
)
def test_qdmn_reads_and_segments_as_the_public_code_does(qdmn, golden, name, parts):
    expected, network = golden("sine_qdmn.npz"), qdmn.network
    network.reader = make_reader(replace(network.parts, **parts))
    # The memory holds the frame, and the frame moved by one column.
    memory = (torch.stack([x, x.roll(1, dims=-1)], dim=3) for x in (qdmn.key, qdmn.value))
    with torch.inference_mode():
        read = network.read(qdmn.query, *memory)
        own = network.decode(qdmn.query, read).sigmoid()
        found = {
            f"read_{name}": read[0, 0, :8],
            f"sig_{name}": own[0, :, ::4, ::4],
            f"agg_{name}": soft_aggregate(own).softmax(dim=1)[0, :, ::4, ::4],
        }
    assert {k: v.shape for k, v in found.items()} == {k: expected[k].shape for k in found}
    assert max(np.abs(v.numpy() - expected[k]).max() for k, v in found.items()) < qdmn.tolerance


def test_all_of_qdmn_is_taken(qdmn):
    own = {
        name: w for name, w in qdmn.network.state_dict().items() if not name.endswith(("encoder.mean", "encoder.std"))
    }
    # Biases of convolutions before a norm are folded into it.
    folded = [n for n in qdmn.weights if re.search(r"rgb_encoder.*(conv\d|downsample\.0)\.bias$", n)]
    assert len(qdmn.weights) == 690
    assert len(own) + len(folded) == 690
    assert sum(w.numel() for w in own.values()) == sum(w.numel() for n, w in qdmn.weights.items() if n not in folded)


# These answers were computed in float32, which is off by 2e-6.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 5e-6)])
@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("dense", DenseReader()),
        ("top8", TopKReader(8)),
        ("top50", TopKReader(50)),
        ("kernel3_top50", KernelReader(sigma=3, top_k=50)),
        ("kernel7_top20", KernelReader(sigma=7, top_k=20)),
    ],
)
def test_readers_read_as_mivos_does(name, reader, dtype, tolerance, formulas, golden):
    expected = golden("readers_visible.npz")
    inputs = formulas.reader_inputs(**json.loads(str(expected["params"])))
    found = reader(*(torch.from_numpy(array).to(dtype) for array in inputs))
    assert np.abs(found.numpy() - expected[name]).max() < tolerance


@PRECISIONS
@pytest.mark.parametrize(
    ("name", "reader"), [("plain", DenseReader()), *((f"sigma{s}", KernelReader(sigma=s)) for s in (7, 3, 1))]
)
def test_kernel_reader_reads_as_kmns_author_does(name, reader, dtype, tolerance, golden):
    arrays = {key: torch.from_numpy(array).to(dtype) for key, array in golden("sine_kmn_reader.npz").items()}
    found = torch.cat([reader(arrays["mi"], arrays["mo"], arrays["q"]), arrays["qo"]], dim=1)
    assert (found - arrays[f"{name}_read"]).abs().max() < tolerance


class PlainSTCN:
    """STCN's evaluation written down by its published names, biases and all, one operation after the other."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.w = weights

    def conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, scale, shift = (self.w[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, scale, shift)

    def resnet(self, name: str, layers: list[str], depth: int, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, 2)).relu(), 3, 2, 1)
        levels = []
        for layer in layers:
            block = 0
            while f"{name}.{layer}.{block}.conv1.weight" in self.w:
                at, short = f"{name}.{layer}.{block}", x
                stride = 2 if block == 0 and layer != layers[0] else 1
                if f"{at}.downsample.0.weight" in self.w:
                    short = self.norm(f"{at}.downsample.1", self.conv(f"{at}.downsample.0", x, stride))
                for i in range(1, depth + 1):
                    # Strides sit on the first 3x3 convolution.
                    here = stride if i == depth - 1 else 1
                    x = self.norm(f"{at}.bn{i}", self.conv(f"{at}.conv{i}", x, here))
                    x = x.relu() if i < depth else (x + short).relu()
                block += 1
            levels.append(x)
        return levels

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        short = self.conv(f"{name}.downsample", x) if f"{name}.downsample.weight" in self.w else x
        return short + self.conv(f"{name}.conv2", self.conv(f"{name}.conv1", x.relu()).relu())

    def value(self, frame: torch.Tensor, f16: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        objects = len(masks)
        others = torch.stack([masks[[j for j in range(objects) if j != i]].sum(dim=0) for i in range(objects)])
        x = torch.cat([frame.repeat(objects, 1, 1, 1), masks[:, None], others[:, None]], dim=1)
        x = self.resnet("value_encoder", ["layer1", "layer2", "layer3"], 2, x)[-1]
        fuser, gates = "value_encoder.fuser", "value_encoder.fuser.attention"
        x = self.block(f"{fuser}.block1", torch.cat([x, f16.repeat(objects, 1, 1, 1)], dim=1))
        mlp = [self.w[f"{gates}.ChannelGate.mlp.{i}.{p}"] for i in (1, 3) for p in ("weight", "bias")]
        pooled = [F.linear(F.linear(p, *mlp[:2]).relu(), *mlp[2:]) for p in (x.mean((2, 3)), x.amax((2, 3)))]
        gated = x * (pooled[0] + pooled[1]).sigmoid()[:, :, None, None]
        summary = torch.stack([gated.amax(dim=1), gated.mean(dim=1)], dim=1)
        gated = gated * self.conv(f"{gates}.SpatialGate.spatial.conv", summary).sigmoid()
        return self.block(f"{fuser}.block2", x + gated)

    def decode(self, x: torch.Tensor, f8: torch.Tensor, f4: torch.Tensor) -> torch.Tensor:
        x = self.block("decoder.compress", x)
        for name, skip in (("decoder.up_16_8", f8), ("decoder.up_8_4", f4)):
            enlarged = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.block(f"{name}.out_conv", self.conv(f"{name}.skip_conv", skip) + enlarged)
        return F.interpolate(self.conv("decoder.pred", x.relu()), scale_factor=4, mode="bilinear", align_corners=False)

    def clip(self, frames: torch.Tensor, masks: torch.Tensor, every: int, top_k: int) -> torch.Tensor:
        """Normalised and padded frames `(T, 3, H, W)`, first masks `(K, H, W)` -> probabilities `(K + 1, T, H, W)`."""
        keys, values = [], []
        answers = [torch.cat([1 - masks.sum(dim=0, keepdim=True), masks])]
        for t, frame in enumerate(frames[:, None]):
            f4, f8, f16 = self.resnet("key_encoder", ["res2", "layer2", "layer3"], 3, frame)
            key = self.conv("key_proj.key_proj", f16)
            if t:
                memory, query = torch.cat(keys, dim=1), key.flatten(2)[0]
                affinity = (2 * memory.T @ query - memory.square().sum(dim=0)[:, None]) / len(query) ** 0.5
                best, where = affinity.topk(top_k, dim=0)
                weights = torch.zeros_like(affinity).scatter(0, where, best.softmax(dim=0))
                read = (torch.cat(values, dim=2) @ weights).unflatten(2, key.shape[-2:])
                content = self.conv("key_comp", f16).expand(len(read), -1, -1, -1)
                p = self.decode(torch.cat([read, content], dim=1), f8, f4)[:, 0].sigmoid()
                p = torch.cat([(1 - p).prod(dim=0, keepdim=True), p]).clamp(1e-7, 1 - 1e-7)
                answers.append((p / (1 - p)).log().softmax(dim=0))
            if t % every == 0:
                keys.append(key.flatten(2)[0])
                values.append(self.value(frame, f16, answers[-1][1:]).flatten(2))
        return torch.stack(answers, dim=1)


@PRECISIONS
def test_stcn_segments_as_its_published_definition(dtype, tolerance, checkpoint, formulas):
    weights = checkpoint("stcn", dtype)
    frames, ids = formulas.clip(3, 4, 60, 90, 2)
    masks = torch.from_numpy(np.stack([ids[0] == 1, ids[0] == 2])).to(dtype)
    mean, std = (torch.tensor(formulas.IMAGENET[key], dtype=dtype)[:, None, None] for key in ("mean", "std"))
    margin = (3, 3, 2, 2)
    with torch.inference_mode():
        plain = PlainSTCN(weights)
        normalised = F.pad((torch.from_numpy(frames).to(dtype) - mean) / std, margin)
        expected = plain.clip(normalised, F.pad(masks, margin), every=2, top_k=20)[:, :, 2:-2, 3:-3].numpy()
    found = propagated(from_published("stcn", weights), frames, ids, every=2)
    assert np.abs(found - expected).max() < tolerance


def test_reader_of_the_result_can_be_chosen(checkpoint):
    network = from_published("mivos", checkpoint("mivos"), reader="kernel", sigma=5.6, top_k=20)
    assert (network.reader.sigma, network.reader.top_k) == (5.6, 20)
    assert not network.training


def test_result_is_saved_and_loaded_as_any_network(checkpoint, tmp_path):
    network = from_published("stm", checkpoint("stm"))
    save(network, tmp_path / "stm.safetensors")
    back = load(tmp_path / "stm.safetensors").state_dict()
    assert all((back[name] == weight).all() for name, weight in network.state_dict().items())


@pytest.fixture(scope="module")
def stm(checkpoint) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """STM's weights under their published names, and under ours when taken from names without prefix."""
    weights = checkpoint("stm")
    bare = from_published("stm", {name.removeprefix("module."): weight for name, weight in weights.items()})
    return weights, bare.state_dict()


@pytest.mark.parametrize("kind", ["pth", "wrapped", "safetensors", "arrays"])
def test_checkpoints_come_as_files_or_names_and_values(kind, stm, tmp_path):
    weights, expected = stm
    path = tmp_path / ("stm.safetensors" if kind == "safetensors" else "stm.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3} if kind == "wrapped" else weights, path)
    given: Any = {name: weight.numpy() for name, weight in weights.items()} if kind == "arrays" else path
    network = from_published("stm", given)
    assert all((expected[name] == weight).all() for name, weight in network.state_dict().items())


def test_all_that_does_not_fit_is_one_error(checkpoint):
    weights = checkpoint("mivos")
    del weights["kv_q_f16.key_proj.bias"], weights["mask_rgb_encoder.layer1.0.conv1.weight"]
    weights["stranger.weight"] = torch.zeros(2)
    weights["decoder.pred.weight"] = torch.zeros(2, 256, 3, 3)
    with pytest.raises(UserError) as error:
        from_published("mivos", weights)
    message = str(error.value)
    assert "2 missing: " in message
    assert "kv_q_f16.key_proj.bias" in message
    assert "mask_rgb_encoder.layer1.0.conv1.weight" in message
    assert "unexpected: " in message
    assert "stranger.weight" in message
    assert "1 of another shape: decoder.pred.weight (2, 256, 3, 3) for (1, 256, 3, 3)" in message


def test_batch_norms_counters_may_be_missing(checkpoint):
    weights = {name: w for name, w in checkpoint("stm").items() if "num_batches_tracked" not in name}
    assert not from_published("stm", weights).training


def test_unknown_sources_and_parts_are_refused(checkpoint):
    with pytest.raises(UserError, match=r"unknown source of weights 'sam'; valid: stm, mivos, stcn, qdmn, cfbi"):
        from_published("sam", {})
    with pytest.raises(UserError, match="unknown part 'topk'"):
        from_published("mivos", checkpoint("mivos"), topk=20)
    with pytest.raises(UserError, match=r"no checkpoint of stm with these parts: .*of another shape"):
        from_published("stm", checkpoint("stm"), key_channels=64)


def test_nothing_but_tensors_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"weight": Trap()}))
    torch.save({"weight": Trap()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(UserError, match=rf"{name}: expected weights"):
            from_published("stm", tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(UserError, match="no such file of weights"):
        from_published("stm", tmp_path / "gone.pth")
