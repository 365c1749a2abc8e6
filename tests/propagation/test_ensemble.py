from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.networks.stacking import StackingNetwork
from vosforge.propagation import CopyFirstMask, Ensemble, FlipAndScales, OpticalFlow, Propagator, Segmenter, View


class Fixed(Segmenter):
    """Answers the same probabilities of its one object in every frame."""

    def __init__(self, foreground: float):
        super().__init__()
        self.foreground = foreground

    def predict(self, frame):
        planes = torch.full((1, *frame.shape[-2:]), self.foreground)
        return torch.cat([1 - planes, planes][: 1 + len(self.objects)]) if self.objects else torch.ones_like(planes)

    def memorise(self, frame, probabilities, given):
        pass

    def forget(self, objects):
        pass

    def fresh(self):
        return Fixed(self.foreground)


def second(segmenter: Segmenter, clip) -> torch.Tensor:
    segmenter.step(clip.frames[0], clip.masks[0])
    return segmenter.step(clip.frames[1])


def test_average_and_vote_differ_where_a_minority_is_certain(noise):
    clip, members = noise(2, 1), [0.4, 0.4, 0.98]
    average = second(Ensemble([Fixed(p) for p in members]), clip)
    vote = second(Ensemble([Fixed(p) for p in members], how="vote"), clip)
    assert average[1].mean() == pytest.approx(sum(members) / 3)
    assert average[1].min() > 0.5 > vote[1].max()
    assert (vote.sum(dim=0) - 1).abs().max() < 1e-6


def test_tied_vote_goes_to_the_more_probable(noise):
    vote = second(Ensemble([Fixed(0.9), Fixed(0.4)], how="vote"), noise(2, 1))
    assert vote[1].min() > 0.5


def test_stacking_network_merges_members(nano, noise):
    clip, members = noise(3, 2), [Propagator(nano(seed=1)), Propagator(nano(seed=2))]
    fresh = Ensemble([m.fresh() for m in members], how=StackingNetwork(2))
    plain = Ensemble(members)
    for t in range(3):
        given = clip.masks[0] if t == 0 else None
        assert (fresh.step(clip.frames[t], given) - plain.step(clip.frames[t], given)).abs().max() < 1e-4
    with pytest.raises(UserError, match="merges 3 members, found 2"):
        Ensemble(members, how=StackingNetwork(3))


def test_mirrored_view_of_a_mirrored_video_is_the_plain_answer(nano, noise):
    clip, network = noise(4, 2), nano()
    plain, view = Propagator(network), View(Propagator(network), mirror=True)
    for t in range(4):
        given = clip.masks[t] if t < 2 else None
        expected = plain.step(clip.frames[t], given)
        found = view.step(clip.frames[t][:, ::-1].copy(), None if given is None else given[:, ::-1].copy())
        assert (found.flip(-1) - expected).abs().max() < 1e-5


def test_views_answer_at_the_frames_size_and_keep_memories_of_their_own(nano, noise):
    clip = noise(3, 2)
    ensemble = Ensemble([Propagator(nano()), OpticalFlow()], augment=FlipAndScales(scales=(0.6, 1.0, 1.5)))
    for t in range(3):
        answer = ensemble.step(clip.frames[t], clip.masks[0] if t == 0 else None)
        assert answer.shape == (2, 40, 56)
        assert (answer.sum(dim=0) - 1).abs().max() < 1e-5
    views = ensemble.members[0].members
    assert [(v.scale, v.mirror) for v in views] == [(s, m) for s in (0.6, 1.0, 1.5) for m in (False, True)]
    sizes = [v.member.memory[0]["bytes"] for v in views]
    assert sizes[0] == sizes[1] < sizes[2] < sizes[4]


def test_augmentation_of_a_copied_mask_keeps_it_where_it_is(noise):
    clip = noise(2, 1)
    answer = second(Ensemble([CopyFirstMask()], augment=FlipAndScales(scales=(1.0, 2.0))), clip)
    assert ((answer[1] > 0.5).numpy() == (clip.masks[0] == 3)).mean() > 0.98


def test_ensembles_may_be_members(nano, noise):
    clip, network = noise(3, 1), nano()
    nested = Ensemble([Ensemble([Propagator(network)]), Propagator(network)])
    plain = Propagator(network)
    for t in range(3):
        given = clip.masks[0] if t == 0 else None
        assert (nested.step(clip.frames[t], given) - plain.step(clip.frames[t], given)).abs().max() < 1e-5


def test_fresh_ensemble_starts_again(nano, noise):
    clip = noise(3, 1)
    used = Ensemble([Propagator(nano()), OpticalFlow()], augment=FlipAndScales())
    first = second(used, clip)
    again = used.fresh()
    assert again.objects == []
    assert (second(again, clip) == first).all()


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("inf"),)])
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(UserError, match="scales must be positive"):
        FlipAndScales(scales=scales)


def test_unknown_way_to_merge_is_refused():
    with pytest.raises(UserError, match="unknown way to merge 'median'; valid: average, vote"):
        Ensemble([CopyFirstMask()], how="median")


def test_members_memorise_the_merged_masks(noise):
    clip = noise(3, 1)
    copy = CopyFirstMask()
    ensemble = Ensemble([copy, Fixed(0.1), Fixed(0.1)])
    ensemble.step(clip.frames[0], clip.masks[0])
    ensemble.step(clip.frames[1])
    merged = ensemble.step(clip.frames[2])
    inside = torch.from_numpy(np.asarray(clip.masks[0] == 3))
    assert merged[1][inside].mean() == pytest.approx((0.4 + 0.2) / 3, abs=1e-4)


def test_networks_are_no_members_before_they_are_propagators(nano):
    with pytest.raises(
        UserError, match=r"an ensemble has segmenters, as Propagator\(network\), found SpaceTimeNetwork"
    ):
        Ensemble([nano()])


def test_memory_of_all_members_is_told(nano, noise):
    clip = noise(2, 1)
    ensemble = Ensemble([Propagator(nano()), View(Propagator(nano("stcn")), mirror=True)])
    second(ensemble, clip)
    assert [held["frames"] for held in ensemble.memory] == [[0, 1], [0]]
