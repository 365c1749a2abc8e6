from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks import NETWORKS
from vosforge.propagation import Propagator, propagate, segment_clip


@pytest.fixture
def videos(noise):
    """Videos of different lengths, sizes and numbers of objects."""
    shapes = [(5, 1, (40, 56)), (3, 3, (40, 56)), (7, 2, (40, 56)), (1, 1, (40, 56)), (4, 2, (33, 47))]
    return [noise(*shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("name", NETWORKS)
def test_batched_videos_get_the_masks_that_each_gets_alone(nano, videos, name):
    network = nano(name)
    alone = [segment_clip(Propagator(network, memory_every=2), video) for video in videos]
    found = list(propagate(videos, network, batch=3, memory_every=2))
    assert [masks.shape for masks in found] == [video.masks.shape for video in videos]
    for own, together in zip(alone, found, strict=True):
        assert (own != together).mean() < 1e-3


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_any_batch_answers_in_the_order_of_the_videos(nano, videos, batch):
    found = list(propagate(videos, nano(), batch=batch))
    assert [(len(masks), masks[-1].shape) for masks in found] == [(len(video), video.size) for video in videos]
    assert all((masks[0] == video.masks[0]).all() for masks, video in zip(found, videos, strict=True))


def test_network_encodes_frames_of_several_videos_in_one_call(nano, videos):
    network, batches = nano(), []
    network.query_encoder.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    list(propagate([videos[0], videos[0], videos[0]], network, batch=3))
    assert batches == [3, 3, 3, 3]


def test_video_that_breaks_off_is_an_error_and_the_others_go_on(nano, videos):
    frames = [*videos[0].frames[:2], np.zeros((8, 8, 3), np.uint8)]
    broken = (iter(frames), {0: videos[0].masks[0]})
    first, second, third = propagate([videos[1], broken, ([], {})], nano(), batch=2)
    assert (first == segment_clip(Propagator(nano()), videos[1])).mean() > 0.999
    assert isinstance(second, UserError)
    assert "frame 2: the video's frames are (40, 56), this one is (8, 8)" in str(second)
    assert isinstance(third, UserError)
    assert "no frame" in str(third)


def test_frames_may_come_one_by_one_with_the_masks_given(nano, videos):
    clip = videos[0]
    tensors = (torch.from_numpy(frame).permute(2, 0, 1).float() / 255 for frame in clip.frames)
    (found,) = propagate([(tensors, {0: clip.masks[0]})], nano())
    assert (found == segment_clip(Propagator(nano()), clip)).mean() > 0.999


def test_videos_are_read_when_there_is_room_for_them(nano, videos):
    taken = []

    def stream():
        for i in range(4):
            taken.append(i)
            yield videos[3]

    found = propagate(stream(), nano(), batch=2)
    next(found)
    assert taken == [0, 1]
    assert len(list(found)) == 3


def test_batch_below_one_is_refused(nano):
    with pytest.raises(UserError, match="batch must be a number of videos of at least 1, found 0"):
        list(propagate([], nano(), batch=0))


def test_frames_that_cannot_be_read_are_their_videos_error_alone(nano, videos):
    def broken():
        yield videos[0].frames[0]
        raise OSError("truncated stream")

    first, second = propagate([(broken(), {0: videos[0].masks[0]}), videos[1]], nano(), batch=2)
    assert isinstance(first, UserError)
    assert "frame 1: truncated stream" in str(first)
    assert second.shape == videos[1].masks.shape


def test_only_a_network_is_run_in_batches(nano, videos):
    with pytest.raises(UserError, match="propagate runs one network, found Propagator"):
        list(propagate(videos, Propagator(nano())))
