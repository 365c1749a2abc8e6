from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from vosforge.networks.siamese import correlate, correlation_channels, crop_targets, target_size


def picture(batch: int = 1, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (24, 32)) -> torch.Tensor:
    """`(1, 1, H, W)` of (top, bottom, left, right), ends excluded; its corners alone carry it."""
    top, bottom, left, right = box
    mask = torch.zeros(1, 1, *size, dtype=torch.float64)
    mask[..., top, right - 1] = mask[..., bottom - 1, left] = 1
    return mask


def sampled(frame: torch.Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """`(3, *size)`: one bilinear sample a pixel at the box's evenly spaced centres."""
    top, bottom, left, right = box
    patch = torch.empty(3, *size, dtype=frame.dtype)
    for i, j in itertools.product(range(size[0]), range(size[1])):
        y = min(max(top + (i + 0.5) * (bottom - top) / size[0] - 0.5, 0), frame.shape[1] - 1)
        x = min(max(left + (j + 0.5) * (right - left) / size[1] - 0.5, 0), frame.shape[2] - 1)
        y0, x0 = min(math.floor(y), frame.shape[1] - 2), min(math.floor(x), frame.shape[2] - 2)
        (a, b), (c, d) = frame[:, y0 : y0 + 2, x0 : x0 + 2].permute(1, 2, 0)
        v, u = y - y0, x - x0
        patch[:, i, j] = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
    return patch


BOXES = [(3, 11, 5, 21), (0, 8, 0, 16), (16, 24, 16, 32), (13, 21, 14, 30), (15, 23, 0, 16), (0, 8, 16, 32)]


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_box_as_large_as_the_patch_is_cut_out_as_it_is(box):
    frame = picture()
    patch = crop_targets(frame, mask_of(box), (8, 16))
    assert patch.shape == (1, 1, 3, 8, 16)
    assert (patch[0, 0] - frame[0, :, box[0] : box[1], box[2] : box[3]]).abs().max() < 1e-5


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_box_of_twice_the_patch_is_halved_as_resizing_does(box):
    frame = picture()
    cut = frame[:, :, box[0] : box[1], box[2] : box[3]]
    halved = F.interpolate(cut, (4, 8), mode="bilinear", align_corners=False)
    assert (crop_targets(frame, mask_of(box), (4, 8))[0, 0] - halved[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "box",
    [(3, 5, 20, 29), (12, 13, 17, 18), (0, 1, 0, 1), (23, 24, 31, 32), (0, 1, 5, 32), (7, 24, 31, 32), (0, 24, 0, 32)],
    ids=str,
)
def test_any_box_is_sampled_bilinearly(box):
    frame = picture()
    patch = crop_targets(frame, mask_of(box), (8, 8))
    assert (patch[0, 0] - sampled(frame[0], box, (8, 8))).abs().max() < 1e-4


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5])
def test_mask_without_a_pixel_above_one_half_takes_the_whole_frame(level):
    frame = picture()
    patch = crop_targets(frame, torch.full((1, 1, 24, 32), level, dtype=torch.float64), (12, 16))
    halved = F.interpolate(frame, (12, 16), mode="bilinear", align_corners=False)
    assert (patch[0, 0] - halved[0]).abs().max() < 1e-5


def test_faint_pixels_do_not_widen_the_box():
    frame, mask = picture(), mask_of((13, 21, 14, 30))
    blurred = mask.clone() * 0.6
    blurred[..., 2, 3] = 0.4
    assert (crop_targets(frame, blurred, (8, 16)) == crop_targets(frame, mask, (8, 16))).all()


def test_boxes_of_a_batch_are_cut_from_their_own_frames():
    frames = picture(batch=2)
    boxes = [[(1, 9, 2, 10), (15, 24, 20, 31), (4, 20, 8, 28)], [(0, 6, 25, 32), (11, 13, 1, 30), (12, 24, 0, 16)]]
    masks = torch.cat([torch.cat([mask_of(box) for box in row], dim=1) for row in boxes])
    masks[1, 1] = 0
    patches = crop_targets(frames, masks, (8, 8))
    boxes[1][1] = (0, 24, 0, 32)
    assert patches.shape == (2, 3, 3, 8, 8)
    for b, k in itertools.product(range(2), range(3)):
        assert (patches[b, k] - sampled(frames[b], boxes[b][k], (8, 8))).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [((384, 384), 16, (96, 96)), ((480, 854), 16, (128, 224)), ((33, 47), 8, (16, 16)), ((1, 5), 8, (8, 8))],
)
def test_targets_are_a_quarter_of_the_frame_rounded_up_to_the_stride(size, stride, expected):
    assert target_size(size, stride) == expected


def plain(features: torch.Tensor, targets: torch.Tensor, correlation: str) -> torch.Tensor:
    """EMN's equation 8, one cell after the other; outside the query there are zeros."""
    batch, objects, channels, height, width = targets.shape
    rows, columns = features.shape[-2:]
    related = torch.zeros(batch, objects, channels, rows, columns, dtype=features.dtype)
    for b, k, y, x in itertools.product(range(batch), range(objects), range(rows), range(columns)):
        for i, j in itertools.product(range(height), range(width)):
            v, u = y + i - (height - 1) // 2, x + j - (width - 1) // 2
            if 0 <= v < rows and 0 <= u < columns:
                related[b, k, :, y, x] += features[b, :, v, u] * targets[b, k, :, i, j] / (height * width)
    return related if correlation == "depthwise" else related.mean(dim=2, keepdim=True)


@pytest.mark.parametrize("correlation", ["depthwise", "full"])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 2), (3, 4), (2, 5), (4, 1), (9, 8)], ids=str)
def test_correlation_equals_a_plain_loop_at_the_querys_size(size, correlation):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 3, 4, *size, generator=generator, dtype=torch.float64)
    related = correlate(features, targets, correlation)
    assert related.shape == (2, 3, 4 if correlation == "depthwise" else 1, 5, 6)
    assert (related - plain(features, targets, correlation)).abs().max() < 1e-12


@pytest.mark.parametrize("correlation", ["depthwise", "full"])
def test_correlation_peaks_where_the_target_is(correlation):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 16, 12, 12, generator=generator)
    target = features[:, None, :, 6:9, 2:5]
    response = correlate(features, target, correlation).sum(dim=2)[0, 0]
    assert divmod(int(response.argmax()), 12) == (7, 3)


@pytest.mark.parametrize(
    ("parts", "channels"),
    [({}, 48), ({"siamese": True}, 96), ({"siamese": True, "correlation": "full"}, 49)],
    ids=str,
)
def test_query_is_widened_by_what_the_correlation_adds(make, parts, channels):
    network = make("stm", **parts)
    coarse = network.query_encoder.channels[-1]
    assert coarse + correlation_channels(network.parts, coarse) == network.query_head.key.in_channels == channels


def test_query_depends_on_what_the_target_looks_like(make, clips):
    network = make("emn")
    frames, masks, _ = clips((32, 48), objects=2)
    with torch.no_grad():
        targets = network.encode_target(frames[:, 0], masks)
        query = network.encode_query(frames[:, 1], targets)
        swapped = network.encode_query(frames[:, 1], targets[:, [1, 0]])
    assert (query.key[:, 0] - query.key[:, 1]).abs().max() > 1e-4
    assert (query.key - swapped.key[:, [1, 0]]).abs().max() < 1e-5
    assert (query.features == swapped.features).all()
