from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.propagation.baselines import CopyFirstMask, OpticalFlow

BOTH = pytest.mark.parametrize("baseline", [CopyFirstMask, OpticalFlow])


def texture(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def moving_square(frames: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured square of 40 pixels that moves right over a still, textured ground."""
    ground, square = texture(0, 96, 160), texture(1, 40, 40)
    pictures = np.repeat(ground[None], frames, axis=0)
    masks = np.zeros((frames, 96, 160), np.uint8)
    for t in range(frames):
        left = 20 + step * t
        pictures[t, 30:70, left : left + 40] = square
        masks[t, 30:70, left : left + 40] = 1
    return pictures, masks


def overlap(probabilities: torch.Tensor, mask: np.ndarray, channel: int = 1) -> float:
    found, wanted = probabilities[channel].numpy() > 0.5, mask == channel
    return (found & wanted).sum() / (found | wanted).sum()


def test_moving_square_is_followed_by_flow_and_not_by_copying():
    frames, masks = moving_square(frames=12, step=3)
    copy, flow = CopyFirstMask(), OpticalFlow()
    for t, frame in enumerate(frames):
        given = masks[0] if t == 0 else None
        copied, flowed = copy.step(frame, given), flow.step(frame, given)
    wanted = masks[-1] == 1
    assert overlap(copied, masks[-1]) < 0.15
    # Uncovered ground keeps the object's label behind it, so the overlap cannot reach 1; the object itself is held.
    assert overlap(flowed, masks[-1]) > 0.5
    assert flowed[1].numpy()[wanted].mean() > 0.9


def test_moving_camera_is_followed_by_flow():
    scene, mask = texture(0, 96, 260), np.zeros((96, 260), np.uint8)
    mask[30:70, 110:150] = 1
    flow = OpticalFlow()
    for t in range(12):
        view = np.s_[:, 3 * t : 3 * t + 200]
        flowed = flow.step(scene[view], mask[view] if t == 0 else None)
    assert overlap(flowed, mask[view]) > 0.95


@BOTH
def test_still_video_keeps_its_mask(baseline):
    frame, mask = texture(0, 48, 64), np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 1
    propagator = baseline()
    propagator.step(frame, mask)
    for _ in range(3):
        answer = propagator.step(frame)
    assert overlap(answer, mask) == 1


@BOTH
def test_channels_are_background_then_ids_ascending(baseline):
    mask = np.zeros((32, 32), np.uint8)
    mask[:8], mask[24:] = 7, 3
    propagator = baseline()
    answer = propagator.step(texture(0, 32, 32), mask)
    assert propagator.objects == [3, 7]
    assert (answer.shape, answer.dtype) == ((3, 32, 32), torch.float32)
    for channel, k in enumerate([0, 3, 7]):
        assert (answer[channel].numpy() == (mask == k)).all()


@BOTH
def test_object_that_appears_later_takes_its_pixels_and_leaves_the_rest(baseline):
    frame = texture(0, 32, 32)
    first, later = np.zeros((2, 32, 32), np.uint8)
    first[4:20, 4:20] = 5
    later[12:28, 12:28] = 2
    propagator = baseline()
    propagator.step(frame, first)
    answer = propagator.step(frame, later)
    assert propagator.objects == [2, 5]
    assert (answer.argmax(0).numpy() == np.where(later == 2, 1, np.where(first == 5, 2, 0))).all()


@BOTH
def test_object_given_again_is_replaced(baseline):
    frame = texture(0, 32, 32)
    first, again = np.zeros((2, 32, 32), np.uint8)
    first[4:12, 4:12], again[20:28, 20:28] = 1, 1
    propagator = baseline()
    propagator.step(frame, first)
    assert (propagator.step(frame, again)[1].numpy() == (again == 1)).all()


@BOTH
def test_all_is_background_before_the_first_mask(baseline):
    propagator = baseline()
    assert (propagator.step(texture(0, 32, 40)) == torch.ones(1, 32, 40)).all()
    assert propagator.objects == []


def test_answers_do_not_change_when_the_video_goes_on():
    frames, masks = moving_square(frames=3, step=3)
    flow = OpticalFlow()
    first = flow.step(frames[0], masks[0])
    kept = first.clone()
    flow.step(frames[1])
    assert (first == kept).all()


@pytest.mark.parametrize("size", [(4, 4), (9, 300), (300, 9), (1, 1)])
def test_tiny_frames_flow_too(size):
    frame, mask = texture(0, *size), np.ones(size, np.uint8)
    flow = OpticalFlow()
    flow.step(frame, mask)
    assert flow.step(frame).shape == (2, *size)


@BOTH
def test_frames_and_masks_that_do_not_fit_are_refused(baseline):
    propagator = baseline()
    with pytest.raises(UserError, match=r"frame 0: the mask must have the frame's size \(32, 40\)"):
        propagator.step(texture(0, 32, 40), np.zeros((40, 32), np.uint8))
    propagator.step(texture(0, 32, 40), np.ones((32, 40), np.uint8))
    with pytest.raises(UserError, match=r"frame 1: .*\(32, 40\), this one is \(40, 32\)"):
        propagator.step(texture(0, 40, 32))
    with pytest.raises(UserError, match="float32"):
        baseline().step(texture(0, 32, 40).astype(np.float32))
