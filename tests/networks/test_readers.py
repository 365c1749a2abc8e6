from __future__ import annotations

import math

import pytest
import torch

from vosforge.networks import DenseReader, TopKReader

SHAPES = pytest.mark.parametrize(("batch", "frames", "height", "width"), [(1, 1, 3, 4), (2, 4, 5, 7)])
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])


def memory(batch: int, frames: int, height: int, width: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, 8, frames, height, width), (batch, 6, frames, height, width), (batch, 8, height, width)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def plain(keys: torch.Tensor, values: torch.Tensor, query: torch.Tensor, factor: float) -> torch.Tensor:
    """One query position after the other, as the paper's equations read."""
    read = torch.empty(values.shape[0], values.shape[1], *query.shape[-2:], dtype=values.dtype)
    for b in range(query.shape[0]):
        for y in range(query.shape[2]):
            for x in range(query.shape[3]):
                affinity = torch.einsum("cthw,c->thw", keys[b], query[b, :, y, x]) * factor
                weights = affinity.exp() / affinity.exp().sum()
                read[b, :, y, x] = torch.einsum("cthw,thw->c", values[b], weights)
    return read


@SHAPES
@PRECISIONS
def test_dense_read_equals_the_paper_position_by_position(batch, frames, height, width, dtype, tolerance):
    keys, values, query = memory(batch, frames, height, width, dtype)
    read = DenseReader()(keys, values, query)
    assert read.shape == (batch, 6, height, width)
    assert (read - plain(keys, values, query, 1 / math.sqrt(8))).abs().max() < tolerance


@pytest.mark.parametrize("reader", [DenseReader(scale=None), TopKReader(10**6, scale=None)])
def test_read_without_scale_is_the_papers_literal_form(reader):
    keys, values, query = memory(1, 2, 3, 4, torch.float64)
    assert (reader(keys, values, query) - plain(keys, values, query, 1.0)).abs().max() < 1e-12


@SHAPES
@PRECISIONS
def test_top_k_with_all_positions_equals_dense(batch, frames, height, width, dtype, tolerance):
    tensors = memory(batch, frames, height, width, dtype)
    for k in (frames * height * width, 10**6):
        assert (TopKReader(k)(*tensors) - DenseReader()(*tensors)).abs().max() < tolerance


def test_top_1_reads_the_best_position_alone():
    keys, values, query = memory(2, 3, 4, 5)
    best = torch.einsum("bcn,bcm->bnm", keys.flatten(2), query.flatten(2)).argmax(dim=1)
    expected = values.flatten(2).gather(2, best[:, None].expand(-1, 6, -1)).unflatten(2, (4, 5))
    assert (TopKReader(1)(keys, values, query) - expected).abs().max() < 1e-6


def test_top_k_leaves_out_what_is_not_among_the_best():
    keys, values, query = memory(1, 2, 3, 3, torch.float64)
    affinity = (keys.flatten(2)[0].T @ query.flatten(2)[0]) / math.sqrt(8)
    kept = affinity >= affinity.topk(4, dim=0).values[-1]
    weights = affinity.exp() * kept
    expected = values.flatten(2)[0] @ (weights / weights.sum(dim=0))
    assert (TopKReader(4)(keys, values, query)[0].flatten(1) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("reader", [DenseReader(), TopKReader(5)])
def test_samples_of_a_batch_do_not_see_each_other(reader):
    tensors = memory(3, 2, 4, 4)
    alone = torch.cat([reader(*(t[b : b + 1] for t in tensors)) for b in range(3)])
    assert (reader(*tensors) - alone).abs().max() < 1e-6
