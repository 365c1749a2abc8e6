from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vosforge.errors import UserError
from vosforge.networks import DenseReader, KernelReader, SpatialReader, TopKReader, readers

SHAPES = pytest.mark.parametrize(("batch", "frames", "height", "width"), [(1, 1, 3, 4), (2, 4, 5, 7)])
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
SIMILARITIES = pytest.mark.parametrize("similarity", ["dot", "l2"])
MAKERS = {
    "dense": DenseReader,
    "topk": lambda **affinity: TopKReader(5, **affinity),
    "kernel": lambda **affinity: KernelReader(2.0, **affinity),
    "kernel-topk": lambda **affinity: KernelReader(2.0, top_k=5, **affinity),
    "kernel-weights": lambda **affinity: KernelReader(2.0, argmax_on="weights", **affinity),
    "kernel-products": lambda **affinity: KernelReader(2.0, renormalise=False, **affinity),
    "spatial": lambda **affinity: SpatialReader(2.0, **affinity),
    "kernel-products-topk": lambda **affinity: KernelReader(2.0, top_k=5, renormalise=False, **affinity),
}
EVERY = pytest.mark.parametrize("reader", MAKERS)


def memory(batch: int, frames: int, height: int, width: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 8, frames, height, width), (batch, 6, frames, height, width), (batch, 8, height, width)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def affinity_of(keys: torch.Tensor, query: torch.Tensor, similarity: str, scale: str | None = "sqrt") -> torch.Tensor:
    """`(T, h, w)` affinity of one query vector with one video's keys, as the papers' equations read."""
    if similarity == "dot":
        affinity = torch.einsum("cthw,c->thw", keys, query)
    else:
        affinity = -(keys - query[:, None, None, None]).square().sum(dim=0)
    return affinity / math.sqrt(len(query)) if scale else affinity


def plain(keys, values, query, similarity: str = "dot", scale: str | None = "sqrt") -> torch.Tensor:
    """A dense read, one query position after the other."""
    read = torch.empty(values.shape[0], values.shape[1], *query.shape[-2:], dtype=values.dtype)
    for b in range(query.shape[0]):
        for y in range(query.shape[2]):
            for x in range(query.shape[3]):
                weights = affinity_of(keys[b], query[b, :, y, x], similarity, scale).exp()
                read[b, :, y, x] = torch.einsum("cthw,thw->c", values[b], weights / weights.sum())
    return read


@SHAPES
@PRECISIONS
@SIMILARITIES
def test_dense_read_equals_the_paper_position_by_position(batch, frames, height, width, dtype, tolerance, similarity):
    keys, values, query = memory(batch, frames, height, width, dtype)
    read = DenseReader(similarity=similarity)(keys, values, query)
    assert (read.shape, read.dtype) == ((batch, 6, height, width), dtype)
    assert (read - plain(keys, values, query, similarity)).abs().max() < tolerance


@SIMILARITIES
@pytest.mark.parametrize("make", [DenseReader, lambda **affinity: TopKReader(10**6, **affinity)])
def test_read_without_scale_is_the_papers_literal_form(make, similarity):
    keys, values, query = memory(1, 2, 3, 4, torch.float64)
    read = make(scale=None, similarity=similarity)(keys, values, query)
    assert (read - plain(keys, values, query, similarity, scale=None)).abs().max() < 1e-12


@SHAPES
@PRECISIONS
@SIMILARITIES
def test_top_k_with_all_positions_equals_dense(batch, frames, height, width, dtype, tolerance, similarity):
    tensors = memory(batch, frames, height, width, dtype)
    dense = DenseReader(similarity=similarity)(*tensors)
    for k in (frames * height * width, 10**6):
        assert (TopKReader(k, similarity=similarity)(*tensors) - dense).abs().max() < tolerance


def test_top_1_reads_the_best_position_alone():
    keys, values, query = memory(2, 3, 4, 5)
    best = torch.einsum("bcn,bcm->bnm", keys.flatten(2), query.flatten(2)).argmax(dim=1)
    expected = values.flatten(2).gather(2, best[:, None].expand(-1, 6, -1)).unflatten(2, (4, 5))
    assert (TopKReader(1)(keys, values, query) - expected).abs().max() < 1e-6


def test_top_1_of_distances_reads_the_nearest_position():
    keys, values, query = memory(2, 3, 4, 5)
    nearest = torch.cdist(query.flatten(2).transpose(1, 2), keys.flatten(2).transpose(1, 2)).argmin(dim=2)
    expected = values.flatten(2).gather(2, nearest[:, None].expand(-1, 6, -1)).unflatten(2, (4, 5))
    assert (TopKReader(1, similarity="l2")(keys, values, query) - expected).abs().max() < 1e-6


@SIMILARITIES
def test_top_k_leaves_out_what_is_not_among_the_best(similarity):
    keys, values, query = memory(1, 2, 3, 3, torch.float64)
    rows = [affinity_of(keys[0], q, similarity).flatten() for q in query[0].flatten(1).T]
    affinity = torch.stack(rows, dim=1)
    weights = affinity.exp() * (affinity >= affinity.topk(4, dim=0).values[-1])
    expected = values.flatten(2)[0] @ (weights / weights.sum(dim=0))
    read = TopKReader(4, similarity=similarity)(keys, values, query)
    assert (read[0].flatten(1) - expected).abs().max() < 1e-12


@EVERY
@SIMILARITIES
def test_samples_of_a_batch_do_not_see_each_other(reader, similarity):
    tensors = memory(3, 2, 4, 4)
    read = MAKERS[reader](similarity=similarity)
    alone = torch.cat([read(*(t[b : b + 1] for t in tensors)) for b in range(3)])
    assert (read(*tensors) - alone).abs().max() < 1e-6


@EVERY
def test_order_of_remembered_frames_does_not_matter(reader):
    keys, values, query = memory(2, 4, 4, 5)
    order = [2, 0, 3, 1]
    read = MAKERS[reader]()
    assert (read(keys[:, :, order], values[:, :, order], query) - read(keys, values, query)).abs().max() < 1e-5


@EVERY
def test_large_keys_are_read_without_overflow(reader):
    keys, values, query = memory(1, 2, 4, 4)
    read = MAKERS[reader](scale=None)(keys * 1e3, values, query * 1e3)
    assert read.isfinite().all()


@EVERY
@SIMILARITIES
@pytest.mark.parametrize("chunk", [1, 100, 37 * 40])
def test_reading_in_chunks_changes_neither_read_nor_gradients(monkeypatch, reader, similarity, chunk):
    read = MAKERS[reader](similarity=similarity)
    answers = []
    for size in (readers._CHUNK, chunk):
        monkeypatch.setattr(readers, "_CHUNK", size)
        tensors = [tensor.requires_grad_() for tensor in memory(2, 2, 4, 5, torch.float64)]
        answer = read(*tensors)
        answers.append([answer, *torch.autograd.grad(answer.square().sum(), tensors)])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*answers, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in answers[1][1:])


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        self.bytes = max(self.bytes, *sizes, 0)
        return made


@EVERY
def test_matrix_of_affinities_is_never_held_whole(monkeypatch, reader):
    monkeypatch.setattr(readers, "_CHUNK", 2**16)
    tensors = memory(1, 20, 20, 20)
    with torch.no_grad(), Largest() as largest:
        MAKERS[reader]()(*tensors)
    whole, held = 20 * 400 * 400 * 4, 2**16 * 4
    assert largest.bytes <= max(2 * held, *(t.nbytes for t in tensors)) < whole / 10


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_half_precision(reader, dtype):
    tensors = memory(2, 2, 4, 5)
    read = MAKERS[reader]()
    half = read(*(t.to(dtype) for t in tensors))
    assert half.dtype == dtype
    assert (half.float() - read(*tensors)).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopKReader(0), "k must be a whole number of at least 1, found 0"),
        (lambda: TopKReader(-3), "k must be a whole number of at least 1, found -3"),
        (lambda: KernelReader(0.0), "sigma must be a number above 0, found 0.0"),
        (lambda: KernelReader(-1.0), "sigma must be a number above 0, found -1.0"),
        (lambda: KernelReader(float("nan")), "sigma must be a number above 0, found nan"),
        (lambda: KernelReader(7.0, top_k=0), "top_k must be a whole number of at least 1 or None, found 0"),
        (lambda: SpatialReader(0.0), "sigma must be a number above 0, found 0.0"),
        (lambda: SpatialReader(top_k=0), "top_k must be a whole number of at least 1 or None, found 0"),
        (lambda: SpatialReader(argmax_on="keys"), "unknown argmax_on 'keys'; valid: affinity, weights"),
        (lambda: KernelReader(7.0, argmax_on="keys"), "unknown argmax_on 'keys'; valid: affinity, weights"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@EVERY
@pytest.mark.parametrize(
    ("key", "value", "query"),
    [
        ((1, 8, 2, 4, 5), (1, 6, 2, 4, 5), (1, 7, 4, 5)),
        ((1, 8, 2, 4, 5), (1, 6, 2, 4, 5), (2, 8, 4, 5)),
        ((1, 8, 2, 4, 5), (1, 6, 2, 4, 5), (1, 8, 5, 4)),
        ((1, 8, 2, 4, 5), (1, 6, 3, 4, 5), (1, 8, 4, 5)),
        ((1, 8, 2, 4, 5), (2, 6, 2, 4, 5), (1, 8, 4, 5)),
        ((1, 8, 2, 4, 5), (1, 6, 2, 4, 5), (1, 8, 1, 4, 5)),
        ((1, 8, 4, 5), (1, 6, 4, 5), (1, 8, 4, 5)),
        ((1, 8, 0, 4, 5), (1, 6, 0, 4, 5), (1, 8, 4, 5)),
        ((0, 8, 2, 4, 5), (0, 6, 2, 4, 5), (0, 8, 4, 5)),
    ],
    ids=str,
)
def test_tensors_that_do_not_belong_together_are_refused(reader, key, value, query):
    with pytest.raises(UserError, match=r"a reader expects memory_key \(B, CK, T, H, W\), .*at least one frame, found"):
        MAKERS[reader]()(torch.zeros(key), torch.zeros(value), torch.zeros(query))
