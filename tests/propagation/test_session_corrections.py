"""Sessions of corrected masks, with networks and methods that take no scribbles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.propagation import CopyFirstMask, Propagator
from vosforge.propagation.segmenter import Segmenter
from vosforge.propagation.session import Session


class Fading(CopyFirstMask):
    """Every object keeps its mask, surer or less sure by 0.05 a frame, so that it shows which pass a mask is of."""

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        found = super().predict(frame).clone()
        found[1:] *= 0.95
        found[0] = 1 - found[1:].sum(dim=0)
        return found

    def fresh(self) -> Fading:
        return Fading()


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 24, 3), np.uint8)


def mask_of(**columns: slice) -> np.ndarray:
    mask = np.zeros((16, 24), np.uint8)
    for name, place in columns.items():
        mask[4:12, place] = int(name[1:])
    return mask


LEFT, RIGHT = mask_of(k1=slice(2, 8)), mask_of(k1=slice(14, 20))


def test_a_mask_goes_both_ways_from_its_frame():
    session = Session(CopyFirstMask(), pictures(7))
    found = session.correct(3, LEFT)
    assert found.dtype == np.uint8
    assert (found == LEFT).all()


def test_between_two_masks_the_nearer_one_rules():
    session = Session(CopyFirstMask(), pictures(9))
    session.correct(1, LEFT)
    found = session.correct(6, RIGHT)
    assert [("left" if (m == LEFT).all() else "right" if (m == RIGHT).all() else "?") for m in found] == (
        ["left"] * 4 + ["right"] * 5
    )
    inside = session.probabilities(3)[1, 8]
    assert inside[4] == pytest.approx(3 / 5, abs=0.01)
    assert inside[16] == pytest.approx(2 / 5, abs=0.01)


def test_probabilities_are_those_of_passes_from_each_corrected_frame():
    session = Session(Fading(), pictures(9))
    session.correct(1, LEFT)
    session.correct(5, LEFT)
    expected = [0.95, 1, 0.95**1 * 3 / 4 + 0.95**3 / 4, 0.95**2, 0.95**3 / 4 + 0.95 * 3 / 4, 1, 0.95, 0.95**2, 0.95**3]
    assert [float(session.probabilities(t)[1, 8, 4]) for t in range(9)] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", ["stm", "qpm", "stcn"])
def test_masks_after_the_first_round_are_a_propagators_own_both_ways(nano, noise, name):
    network, clip = nano(name), noise(frames=6)
    mask = clip.masks[2]
    found = Session(network, clip.frames, memory_every=2).correct(2, mask)
    for order in (range(2, 6), range(2, -1, -1)):
        propagator = Propagator(network, memory_every=2)
        for t in order:
            labels = propagator.labels(propagator.step(clip.frames[t], mask if t == 2 else None))
            assert (found[t] == labels).mean() > 0.97


def test_a_corrected_frame_keeps_exactly_what_was_given(nano, noise):
    clip = noise(frames=4)
    session = Session(nano(), clip.frames)
    session.correct(0, clip.masks[0])
    found = session.correct(3, clip.masks[3])
    assert (found[0] == clip.masks[0]).all()
    assert (found[3] == clip.masks[3]).all()
    assert session.probabilities(3).shape == (3, *clip.size)


class Counting(CopyFirstMask):
    seen: list = []  # noqa: RUF012

    def predict(self, frame: torch.Tensor) -> torch.Tensor:
        self.seen.append(round(float(frame[0, 0, 0, 0]) * 255))
        return super().predict(frame)

    def fresh(self) -> Counting:
        return Counting()


def test_only_frames_that_a_correction_reaches_are_segmented_again():
    Counting.seen.clear()
    numbered = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 24, 3), np.uint8)
    session = Session(Counting(), numbered)
    session.correct(2, LEFT)
    session.correct(6, RIGHT)
    Counting.seen.clear()
    session.correct(4, LEFT)
    assert {*Counting.seen} == {2, 3, 4, 5, 6}


def test_an_object_that_enters_later_goes_past_masks_that_do_not_know_it():
    session = Session(CopyFirstMask(), pictures(8))
    session.correct(2, LEFT)
    both = LEFT + mask_of(k5=slice(14, 20))
    found = session.correct(5, both)
    assert session.objects == [1, 5]
    assert (found == both).all()
    assert (session.correct(2, LEFT)[:3] == LEFT).all(), "told that it is not there, it is not"


def test_known_objects_that_a_mask_leaves_out_are_out_of_sight():
    session = Session(CopyFirstMask(), pictures(6))
    session.correct(0, LEFT + mask_of(k2=slice(14, 20)))
    found = session.correct(5, LEFT)
    assert [2 in mask for mask in found] == [True, True, True, False, False, False]


def test_undo_brings_back_the_round_before(nano, noise):
    clip = noise(frames=5)
    session = Session(nano(), clip.frames)
    first = session.correct(0, clip.masks[0])
    assert (session.correct(4, clip.masks[4]) != first).any()
    assert (session.undo() == first).all()
    assert [(r.frame, r.kind, r.objects) for r in session.rounds] == [(0, "mask", (3,))]
    second = session.correct(4, clip.masks[4])
    other = Session(nano(), clip.frames)
    other.correct(0, clip.masks[0])
    assert (other.correct(4, clip.masks[4]) == second).all()


def test_frames_can_be_reduced_and_masks_stay_at_full_size(nano, noise):
    clip = noise(frames=3, size=(60, 80))
    session = Session(nano(), clip.frames, short_side=32)
    found = session.correct(1, clip.masks[1])
    assert found.shape == (3, 60, 80)
    assert (found[1] == clip.masks[1]).all()


def test_scribbles_are_refused_with_the_networks_that_take_them(nano):
    session = Session(nano("stm"), pictures(2))
    with pytest.raises(UserError, match=r"takes no scribbles; .*correct.*stm-interactive"):
        session.interact(0, [{"path": [[0.5, 0.5]], "object_id": 1}])


@pytest.mark.parametrize(
    ("frame", "mask", "told"),
    [
        (2, LEFT, "frame: expected a position 0..1, found 2"),
        (-1, LEFT, "found -1"),
        (0.0, LEFT, "found 0.0"),
        (0, LEFT[:5], "mask of frame 0: expected .16, 24. of whole ids, found .5, 24. uint8"),
        (0, LEFT / 2, "found .16, 24. float64"),
        (0, LEFT.astype(int) * 300, "found 0..300"),
        (0, LEFT * 0, "expected an object"),
        (0, None, "found NoneType"),
    ],
)
def test_other_corrections_are_refused_and_change_nothing(frame, mask, told):
    session = Session(CopyFirstMask(), pictures(2))
    with pytest.raises(UserError, match=told):
        session.correct(frame, mask)
    assert not session.rounds
    assert not session.masks.any()


def test_frames_of_other_forms_are_refused():
    for frames, told in (
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one"),
        (np.zeros((2, 8, 8), np.uint8), r"frame 0: expected \(H, W, 3\) uint8, found"),
        (np.zeros((2, 8, 8, 3)), "float64"),
    ):
        with pytest.raises(UserError, match=told):
            Session(CopyFirstMask(), frames)
    session = Session(CopyFirstMask(), [pictures(1)[0], np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(UserError, match="frame 1: the video's frames are"):
        session.correct(0, LEFT)


def test_settings_of_a_segmenter_are_not_given_again():
    with pytest.raises(UserError, match="memory_every would have no effect"):
        Session(CopyFirstMask(), pictures(2), memory_every=3)
    assert isinstance(CopyFirstMask(), Segmenter)


def test_progress_counts_the_frames_of_both_directions():
    heard = []
    session = Session(CopyFirstMask(), pictures(7))
    session.correct(2, LEFT, lambda done, total: heard.append((done, total)))
    assert sorted(set(heard)) == [(done, 6) for done in range(1, 7)]
    assert heard == sorted(heard)


def test_memory_grows_with_rounds_and_shrinks_when_they_are_undone():
    session = Session(CopyFirstMask(), pictures(7))
    empty = session.bytes
    session.correct(2, LEFT)
    once = session.bytes
    session.correct(4, RIGHT)
    assert empty == 7 * 16 * 24 < once < session.bytes
    session.undo()
    assert session.bytes == once
    assert (session.mask(2) == LEFT).all()
