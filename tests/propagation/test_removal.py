from __future__ import annotations

import numpy as np
import pytest

from vosforge.errors import UserError
from vosforge.networks import NETWORKS
from vosforge.propagation import CopyFirstMask, Ensemble, FlipAndScales, OpticalFlow, Propagator, Refined

MAKERS = {
    **{name: lambda network: Propagator(network, memory_every=1) for name in NETWORKS},
    "copy": lambda network: CopyFirstMask(),
    "flow": lambda network: OpticalFlow(),
    "ensemble": lambda network: Ensemble([Propagator(network), Propagator(network)], FlipAndScales(scales=(0.8,))),
    "refined": lambda network: Refined(Propagator(network), small=0.2),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_removed_object_is_background_from_the_next_frame_on(nano, noise, kind):
    segmenter = MAKERS[kind](nano(kind if kind in NETWORKS else "stm"))
    clip = noise(6, 2)
    for t in range(3):
        segmenter.step(clip.frames[t], clip.masks[t] if t < 2 else None)
    assert segmenter.objects == [3, 6]
    segmenter.remove(3)
    answer = segmenter.step(clip.frames[3])
    assert (segmenter.objects, len(answer)) == ([6], 2)
    assert (answer.sum(dim=0) - 1).abs().max() < 1e-5
    assert set(np.unique(segmenter.labels(answer))) <= {0, 6}
    segmenter.remove(6)
    assert (segmenter.step(clip.frames[4]) == 1).all()
    again = segmenter.step(clip.frames[5], clip.masks[5])
    assert segmenter.objects == [3, 6]
    assert (segmenter.labels(again) == clip.masks[5]).all()


def test_other_objects_are_segmented_as_if_the_removed_one_had_just_left(nano, noise):
    clip, network = noise(6, 2), nano(memory_input="mask", aggregation="none")
    both, alone = Propagator(network), Propagator(network)
    for t in range(5):
        both.step(clip.frames[t], clip.masks[t] if t < 2 else None)
        alone.step(clip.frames[t], np.where(clip.masks[t] == 6, 6, 0).astype(np.uint8) if t == 1 else None)
    both.remove(3)
    assert [bank["objects"] for bank in both.memory] == [[6]]
    assert (both.step(clip.frames[5])[1] - alone.step(clip.frames[5])[1]).abs().max() < 1e-5


def test_unknown_object_cannot_be_removed(nano, noise):
    segmenter, clip = Propagator(nano()), noise(1, 1)
    segmenter.step(clip.frames[0], clip.masks[0])
    with pytest.raises(UserError, match=r"object 9 cannot be removed; known are \[3\]"):
        segmenter.remove(9)
