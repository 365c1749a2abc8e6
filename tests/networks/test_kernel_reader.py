from __future__ import annotations

import itertools
import math

import pytest
import torch

from vosforge.networks import DenseReader, KernelReader

FORMS = pytest.mark.parametrize(
    ("argmax_on", "renormalise", "top_k", "similarity"),
    list(itertools.product(["affinity", "weights"], [True, False], [None, 4], ["dot", "l2"])),
)


def memory(batch: int, frames: int, height: int, width: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = [(batch, 8, frames, height, width), (batch, 6, frames, height, width), (batch, 8, height, width)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def affinities(keys: torch.Tensor, query: torch.Tensor, similarity: str) -> torch.Tensor:
    """`(M, N)` of one video, from `(C, N)` keys and `(C, M)` query."""
    if similarity == "dot":
        return query.T @ keys / math.sqrt(len(keys))
    return -(query.T[:, :, None] - keys[None]).square().sum(dim=1) / math.sqrt(len(keys))


def plain(keys, values, query, sigma, argmax_on, renormalise, top_k, similarity="dot") -> torch.Tensor:
    """KMN's section 3, one memory position and one query position after the other."""
    height, width = query.shape[-2:]
    read = torch.zeros(values.shape[0], values.shape[1], height * width, dtype=values.dtype)
    for b in range(len(query)):
        affinity = affinities(keys[b].flatten(1), query[b].flatten(1), similarity)
        weights = affinity.softmax(dim=1)
        sought = affinity if argmax_on == "affinity" else weights
        for q in range(height * width):
            product = torch.empty(affinity.shape[1], dtype=values.dtype)
            for n in range(affinity.shape[1]):
                best = int(sought[:, n].argmax())
                distance = (q // width - best // width) ** 2 + (q % width - best % width) ** 2
                product[n] = weights[q, n] * math.exp(-distance / (2 * sigma**2))
            if top_k is not None:
                product[product < product.topk(top_k).values[-1]] = 0
            if renormalise:
                product = product / product.sum()
            read[b, :, q] = values[b].flatten(1) @ product
    return read.unflatten(2, (height, width))


@FORMS
@pytest.mark.parametrize("sigma", [1.0, 7.0])
def test_kernelized_read_equals_the_paper_position_by_position(sigma, argmax_on, renormalise, top_k, similarity):
    tensors = memory(2, 3, 4, 5)
    read = KernelReader(sigma, top_k, argmax_on, renormalise, similarity=similarity)(*tensors)
    expected = plain(*tensors, sigma, argmax_on, renormalise, top_k, similarity)
    assert read.shape == (2, 6, 4, 5)
    assert (read - expected).abs().max() < 1e-6


@pytest.mark.parametrize("renormalise", [True, False])
def test_double_precision_is_kept_throughout(renormalise):
    tensors = memory(2, 3, 4, 5)
    read = KernelReader(7.0, renormalise=renormalise)(*tensors)
    assert (read - plain(*tensors, 7.0, "affinity", renormalise, None)).abs().max() < 1e-12


@FORMS
def test_single_precision_stays_near_the_paper(argmax_on, renormalise, top_k, similarity):
    tensors = memory(1, 2, 4, 5, torch.float32)
    read = KernelReader(3.0, top_k, argmax_on, renormalise, similarity=similarity)(*tensors)
    assert read.dtype == torch.float32
    assert (read - plain(*tensors, 3.0, argmax_on, renormalise, top_k, similarity)).abs().max() < 1e-5


def test_wide_kernel_reads_like_a_dense_reader():
    tensors = memory(2, 3, 4, 5)
    assert (KernelReader(1e6)(*tensors) - DenseReader()(*tensors)).abs().max() < 1e-6


def test_memory_positions_look_for_their_best_query_position():
    # Query position 5 is the only one that looks like the memory's only bright cell.
    query = torch.zeros(1, 2, 3, 4)
    query[0, 0, 1, 1] = 9
    keys = torch.zeros(1, 2, 1, 3, 4)
    keys[0, 0, 0, 2, 3] = 1
    reader = KernelReader(1.0)
    comparable = reader._comparable(keys.flatten(2), query.flatten(2).transpose(1, 2))
    assert reader.best_matches(*comparable)[0].tolist() == [0] * 11 + [5]


@pytest.mark.parametrize(("renormalise", "top_k"), list(itertools.product([True, False], [None, 20])))
@pytest.mark.parametrize("argmax_on", ["affinity", "weights"])
def test_far_kernels_give_finite_numbers_and_gradients(renormalise, top_k, argmax_on):
    tensors = [t.requires_grad_() for t in memory(1, 1, 40, 40, torch.float32)]
    reader = KernelReader(0.3, top_k, argmax_on, renormalise)
    read = reader(*tensors)
    read.sum().backward()
    assert read.isfinite().all()
    assert all(t.grad.isfinite().all() for t in tensors)


def test_renormalised_weights_sum_to_one_and_products_to_less():
    keys, _, query = memory(2, 2, 5, 5)
    ones = torch.ones(2, 3, 2, 5, 5, dtype=torch.float64)
    assert (KernelReader(0.3)(keys, ones, query) - 1).abs().max() < 1e-12
    assert KernelReader(0.3, renormalise=False)(keys, ones, query).max() < 1
