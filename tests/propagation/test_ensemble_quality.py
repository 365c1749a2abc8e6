"""What an ensemble thinks of its masks: the mean of those members that assess theirs."""

from __future__ import annotations

import pytest
import torch

from vosforge.networks import MemoryNetwork
from vosforge.propagation import Ensemble, FlipAndScales, Propagator, Refined


@pytest.fixture
def assessing(nano):
    """Builds a network that assesses its masks, whose assessment depends on the seed."""
    return lambda seed=0: nano("qpm", seed, memorise_margin=False)


def scores(network: MemoryNetwork, frame, probabilities: torch.Tensor) -> torch.Tensor:
    """The network's own scores of the masks."""
    rgb = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        return network.assess(rgb, probabilities[None, 1:])[0]


def test_quality_is_the_mean_of_what_members_think_of_the_merged_masks(assessing, noise):
    clip, members = noise(4, 2), [assessing(1), assessing(2)]
    ensemble = Ensemble([Propagator(network) for network in members])
    assert ensemble.quality == {}
    told, first = [], [{}, {}]
    for t, frame in enumerate(clip.frames):
        given = {0: clip.masks[0], 1: (clip.masks[1] == 6) * clip.masks[1]}.get(t)
        answer = ensemble.step(frame, given)
        relative = []
        for network, own in zip(members, first, strict=True):
            now = dict(zip(ensemble.objects, scores(network, frame, answer).tolist(), strict=True))
            own.update({i: score for i, score in now.items() if i not in own})
            relative.append({i: now[i] / own[i] for i in now})
        assert ensemble.quality == pytest.approx(
            {i: (relative[0][i] + relative[1][i]) / 2 for i in relative[0]}, rel=1e-4
        )
        told.append((ensemble.quality, relative))
    assert told[0][0] == {3: 1.0}
    assert told[1][0][6] == 1.0
    quality, (one, other) = told[-1]
    assert list(quality) == [3, 6]
    assert abs(one[3] - other[3]) > 1e-4, "members that agree would hide whose quality is told"


def test_members_that_assess_nothing_do_not_count(assessing, nano, noise):
    clip = noise(3, 1)
    mixed = Ensemble([Propagator(nano()), Propagator(assessing()), Propagator(nano("stcn"))])
    for t, frame in enumerate(clip.frames):
        mixed.step(frame, clip.masks[t] if t == 0 else None)
        assert mixed.quality == mixed.members[1].quality
    assert list(mixed.quality) == [3]
    assert mixed.quality != {3: 1.0}


def test_ensembles_that_assess_nothing_tell_no_quality(nano, noise):
    clip, plain = noise(2, 1), Ensemble([Propagator(nano(seed=1)), Propagator(nano(seed=2))])
    for t, frame in enumerate(clip.frames):
        plain.step(frame, clip.masks[t] if t == 0 else None)
        assert plain.quality == {}


def test_views_of_one_network_are_one_opinion(assessing, noise):
    clip = noise(3, 1)
    views = Ensemble([Propagator(assessing())], augment=FlipAndScales(scales=(1.0, 0.75)))
    refined = Refined(views)
    for t, frame in enumerate(clip.frames):
        refined.step(frame, clip.masks[t] if t == 0 else None)
    own = [view.quality[3] for view in views.members[0].members]
    assert len(set(own)) > 1
    assert refined.quality == pytest.approx({3: sum(own) / 4})


def test_removed_objects_have_no_quality(assessing, noise):
    clip = noise(3, 2)
    ensemble = Ensemble([Propagator(assessing(1)), Propagator(assessing(2))])
    ensemble.step(clip.frames[0], clip.masks[1])
    assert list(ensemble.quality) == [3, 6]
    ensemble.remove(3)
    ensemble.step(clip.frames[1])
    assert list(ensemble.quality) == [6]
