from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks import KernelReader, SpatialReader, readers
from vosforge.networks.readers import spatial_kernel

FORMS = pytest.mark.parametrize(
    ("argmax_on", "renormalise", "top_k"),
    list(itertools.product(["affinity", "weights"], [True, False], [None, 4])),
)
LITERAL = ("weights", False, None)


def memory(batch: int, frames: int, height: int, width: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(2)
    shapes = [(batch, 8, frames, height, width), (batch, 6, frames, height, width), (batch, 8, height, width)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def mask_of(height: int, width: int, cells: list[tuple[int, int]]) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.float64)
    for row, column in cells:
        mask[row, column] = 1
    return mask


def paper_kernel(mask: np.ndarray, floor: float = 0.5) -> np.ndarray:
    """SKN's equations 4 to 6, one cell after the other."""
    points = [(i, j) for i in range(mask.shape[0]) for j in range(mask.shape[1]) if mask[i, j] > 0.5]
    if not points:
        return np.ones(mask.shape)
    r_x, r_y = (np.median([point[axis] for point in points]) for axis in (0, 1))
    sigma_s = np.sqrt(sum((x - r_x) ** 2 + (y - r_y) ** 2 for x, y in points) / len(points))
    sigma_s = max(sigma_s, floor)
    i, j = np.indices(mask.shape)
    return np.exp(-((i - r_x) ** 2 + (j - r_y) ** 2) / (2 * sigma_s**2))


def paper_read(keys, values, query, masks, sigma, argmax_on, renormalise, top_k, similarity="dot") -> np.ndarray:
    """SKN's equations 7 to 11, one memory cell and one query cell after the other, `(B, CV, H, W)`."""
    keys, values, query, masks = (t.numpy() for t in (keys, values, query, masks))
    height, width = query.shape[-2:]
    read = np.zeros((len(query), values.shape[1], height, width))
    for b in range(len(query)):
        k, v = keys[b].reshape(len(keys[b]), -1), values[b].reshape(len(values[b]), -1)
        q = query[b].reshape(len(query[b]), -1)
        affinity = q.T @ k if similarity == "dot" else -((q[:, :, None] - k[:, None]) ** 2).sum(axis=0)
        affinity = affinity / np.sqrt(len(k))
        weights = np.exp(affinity) / np.exp(affinity).sum(axis=1, keepdims=True)
        sought = weights if argmax_on == "weights" else np.exp(affinity)
        w1 = sought * paper_kernel(masks[b]).reshape(-1, 1)
        for i, j in np.ndindex(height, width):
            w2 = np.empty(k.shape[1])
            for n in range(k.shape[1]):
                m_x, m_y = divmod(int(w1[:, n].argmax()), width)
                w2[n] = weights[i * width + j, n] * np.exp(-((i - m_x) ** 2 + (j - m_y) ** 2) / (2 * sigma**2))
            if top_k is not None:
                w2[np.argsort(w2)[:-top_k]] = 0
            read[b, :, i, j] = v @ (w2 / w2.sum() if renormalise else w2)
    return read


def two_masks(height: int, width: int) -> torch.Tensor:
    """A block at the top left, and an angle at the bottom right whose median is none of its cells."""
    block = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]
    angle = [(i, width - 1) for i in range(1, height)] + [(height - 1, j) for j in range(width - 3, width - 1)]
    return torch.stack([mask_of(height, width, block), mask_of(height, width, angle)])


@FORMS
@pytest.mark.parametrize("similarity", ["dot", "l2"])
@pytest.mark.parametrize("sigma", [1.0, 7.0])
def test_read_equals_the_paper_position_by_position(argmax_on, renormalise, top_k, similarity, sigma):
    tensors, masks = memory(2, 3, 4, 5), two_masks(4, 5)
    read = SpatialReader(sigma, top_k, argmax_on, renormalise, similarity=similarity)(*tensors, masks)
    expected = paper_read(*tensors, masks, sigma, argmax_on, renormalise, top_k, similarity)
    assert (read.shape, read.dtype) == ((2, 6, 4, 5), torch.float64)
    assert np.abs(read.numpy() - expected).max() < 1e-12


def test_defaults_are_the_paper_to_the_letter():
    tensors, masks = memory(2, 2, 4, 5), two_masks(4, 5)
    expected = paper_read(*tensors, masks, 7.0, *LITERAL)
    assert np.abs(SpatialReader()(*tensors, masks).numpy() - expected).max() < 1e-12


@FORMS
def test_single_precision_stays_near_the_paper(argmax_on, renormalise, top_k):
    tensors, masks = memory(2, 2, 4, 5, torch.float32), two_masks(4, 5).float()
    read = SpatialReader(3.0, top_k, argmax_on, renormalise)(*tensors, masks)
    assert read.dtype == torch.float32
    assert np.abs(read.numpy() - paper_read(*tensors, masks, 3.0, argmax_on, renormalise, top_k)).max() < 1e-5


@FORMS
@pytest.mark.parametrize("value", [None, 0.0, 0.5])
def test_mask_that_is_empty_or_left_out_constrains_nothing(argmax_on, renormalise, top_k, value):
    tensors = memory(2, 2, 4, 5)
    previous = None if value is None else torch.full((2, 4, 5), value, dtype=torch.float64)
    free = KernelReader(2.0, top_k, argmax_on, renormalise)(*tensors)
    assert (SpatialReader(2.0, top_k, argmax_on, renormalise)(*tensors, previous) == free).all()


@FORMS
def test_objects_of_a_batch_are_sought_where_their_own_masks_are(argmax_on, renormalise, top_k):
    tensors = [t.repeat(2, *[1] * (t.ndim - 1)) for t in memory(1, 2, 6, 7)]
    masks = two_masks(6, 7)
    reader = SpatialReader(1.0, top_k, argmax_on, renormalise)
    together = reader(*tensors, masks)
    alone = torch.cat([reader(*(t[:1] for t in tensors), mask[None]) for mask in masks])
    assert (together - alone).abs().max() < 1e-12
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_match_is_sought_among_lookalikes_where_the_object_was():
    # Two query cells look exactly like the memory's only bright cell: one in the first row, one in the last.
    query, keys = torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 1, 6, 6)
    query[0, 0, 0, 1] = query[0, 0, 5, 4] = 9
    keys[0, 0, 0, 3, 3] = 9
    for argmax_on in ("affinity", "weights"):
        reader = SpatialReader(1.0, argmax_on=argmax_on)
        comparable = reader._comparable(keys.flatten(2), query.flatten(2).transpose(1, 2))
        for row, expected in ((0, 0 * 6 + 1), (5, 5 * 6 + 4)):
            prior = spatial_kernel(mask_of(6, 6, [(row, column) for column in range(1, 5)])[None].float())
            assert reader.best_matches(*comparable, prior.flatten(1))[0, 3 * 6 + 3] == expected


@pytest.mark.parametrize(
    "cells",
    [
        [(2, 3)],
        [(0, 0)],
        [(1, 1), (1, 4)],
        [(0, 0), (4, 6)],
        [(0, 2), (1, 2), (4, 2), (4, 5)],
        [(0, 0), (0, 1), (0, 2), (3, 6)],
        [(i, j) for i in range(5) for j in range(7)],
        [(i, 0) for i in range(5)] + [(4, j) for j in range(1, 7)],
    ],
    ids=str,
)
def test_kernel_is_the_papers_gaussian_around_the_median(cells):
    mask = mask_of(5, 7, cells)
    kernel = spatial_kernel(mask[None])[0]
    assert np.abs(kernel.numpy() - paper_kernel(mask.numpy())).max() < 1e-12


def test_median_of_an_even_number_of_cells_lies_between_the_middle_two():
    kernel = spatial_kernel(mask_of(3, 7, [(1, 0), (1, 1), (1, 4), (1, 6)])[None])[0, 1]
    # The centre is at column 2.5, so columns 2 and 3, 1 and 4, 0 and 5 are equally far.
    assert (kernel[[2, 1, 0]] - kernel[[3, 4, 5]]).abs().max() < 1e-12
    assert kernel.argmax() in (2, 3)


def test_deviation_of_one_cell_is_the_floor():
    one = mask_of(7, 7, [(3, 3)])[None]
    for floor in (0.5, 1.0, 2.0):
        kernel = spatial_kernel(one, floor)[0]
        assert kernel[3, 3] == 1
        assert kernel[3, 5] == pytest.approx(np.exp(-(2**2) / (2 * floor**2)))
    # Wider objects have a deviation of their own.
    wide = two_masks(7, 7)
    assert (spatial_kernel(wide, 0.01) == spatial_kernel(wide, 1.0)).all()


def test_cells_count_from_above_one_half():
    soft = torch.tensor([[0.51, 0.5, 0.49], [1.0, 0.0, 0.2]])[None]
    assert (spatial_kernel(soft) == spatial_kernel((soft > 0.5).float())).all()
    assert spatial_kernel(soft)[0, :, 0].min() > spatial_kernel(soft)[0, :, 1].max()


@FORMS
@pytest.mark.parametrize("chunk", [1, 100, 37 * 40])
def test_reading_in_chunks_changes_neither_read_nor_gradients(monkeypatch, chunk, argmax_on, renormalise, top_k):
    reader, masks = SpatialReader(2.0, top_k, argmax_on, renormalise), two_masks(4, 5)
    answers = []
    for size in (readers._CHUNK, chunk):
        monkeypatch.setattr(readers, "_CHUNK", size)
        tensors = [tensor.requires_grad_() for tensor in memory(2, 2, 4, 5)]
        answer = reader(*tensors, masks)
        answers.append([answer, *torch.autograd.grad(answer.square().sum(), tensors)])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*answers, strict=True))


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cells_far_from_a_small_object_give_finite_numbers(argmax_on, renormalise, top_k, dtype):
    tensors = [t.requires_grad_() for t in memory(1, 1, 40, 44, dtype)]
    previous = mask_of(40, 44, [(0, 0)])[None].to(dtype)
    kernel = spatial_kernel(previous)
    assert kernel.min() > 0
    assert kernel.log().isfinite().all()
    read = SpatialReader(0.5, top_k, argmax_on, renormalise)(*tensors, previous)
    read.sum().backward()
    assert read.dtype == dtype
    assert read.isfinite().all()
    assert all(t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (2, 5, 4), (2, 1, 4, 5), (2, 8, 10), (2, 20)], ids=str)
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"previous masks must be \(B, H, W\) = \(2, 4, 5\), found \("):
        SpatialReader()(*memory(2, 2, 4, 5), torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("parts", [{}, {"top_k": 6}, {"argmax_on": "affinity", "renormalise": True}], ids=str)
def test_networks_read_looks_where_each_object_was(make, clips, parts):
    network, free = make("skn", **parts), make("skn", reader="kernel", **parts)
    free.load_state_dict(network.state_dict())
    frames, masks, _ = clips((64, 72), objects=2)
    top_left, bottom_right = torch.zeros_like(masks), torch.zeros_like(masks)
    top_left[:, :, :24, :24], bottom_right[:, :, 40:, 48:] = 1, 1
    mixed = torch.stack([top_left[:, 0], bottom_right[:, 1]], dim=1)
    with torch.no_grad():
        kept = [x[:, :, :, None] for x in network.encode_memory(frames[:, 0], masks)]
        read = {
            name: network.read(network.encode_query(frames[:, 1], previous=previous), *kept)
            for name, previous in {
                "none": None,
                "empty": torch.zeros_like(masks),
                "top left": top_left,
                "bottom right": bottom_right,
                "mixed": mixed,
            }.items()
        }
        unconstrained = free.read(free.encode_query(frames[:, 1], previous=top_left), *kept)
    assert (read["none"] - unconstrained).abs().max() < 1e-5
    assert (read["empty"] - unconstrained).abs().max() < 1e-5
    assert (read["top left"] - unconstrained).abs().max() > 1e-3
    assert (read["top left"] - read["bottom right"]).abs().max() > 1e-3
    assert (read["mixed"][:, 0] - read["top left"][:, 0]).abs().max() < 1e-5
    assert (read["mixed"][:, 1] - read["bottom right"][:, 1]).abs().max() < 1e-5


def test_network_takes_a_cells_share_of_the_mask(make, clips):
    network = make("skn")
    frames, masks, _ = clips((33, 47), objects=1)
    masks = torch.ones_like(masks)
    masks[:, :, :, 24:] = 0
    with torch.no_grad():
        shares = network.encode_query(frames[:, 0], previous=masks).previous
    assert shares.shape == (2, 1, 5, 6)
    # Three rows of padding stand above the frame, four below; the object ends at a cell's border.
    assert shares[0, 0, 1, 0] == shares[0, 0, 2, 2] == 1
    assert shares[0, 0, 0, 1] == pytest.approx(5 / 8)
    assert shares[0, 0, 4, 1] == pytest.approx(4 / 8)
    assert (shares[0, 0, :, 3:] == 0).all()
