from __future__ import annotations

import pytest
import torch

from vosforge.errors import UserError
from vosforge.propagation import MemoryBank


def fill(
    bank: MemoryBank, frames: range, permanent: tuple[int, ...] = (0,), poor: tuple[int, ...] = ()
) -> list[list[int]]:
    """What is held after each frame; key and value carry the frame's number, and poor frames shall not last."""
    held = []
    for t in frames:
        if bank.wants(t, t in permanent):
            key, value = torch.full((2, 3, 4, 5), float(t)), torch.full((2, 6, 4, 5), float(t))
            bank.add(t, (key, value), permanent=t in permanent, lasting=t not in poor)
        held.append(bank.frames)
    return held


def test_first_previous_and_every_fifth_frame_are_held():
    held = fill(MemoryBank(every=5), range(12))
    assert held[:3] == [[0], [0, 1], [0, 2]]
    assert held[5:8] == [[0, 5], [0, 5, 6], [0, 5, 7]]
    assert held[11] == [0, 5, 10, 11]


@pytest.mark.parametrize("policy", ["previous", "every"])
def test_every_frame_is_held_when_asked(policy):
    assert fill(MemoryBank(every=1, policy=policy), range(4))[-1] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("previous", [3, 5, 10, 12]), ("every", [3, 5, 10]), ("ends", [3, 12]), ("given", [3]), ("latest", [12])],
)
def test_policy_says_what_is_held_beside_the_given_frame(policy, expected):
    assert fill(MemoryBank(every=5, policy=policy), range(3, 13), permanent=(3,))[-1] == expected


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [("previous", [0, 1, 2, 3, 4, 5, 6, 7]), ("every", [0, 3, 6, 7]), ("given", [0, 7])],
)
def test_frames_that_the_policy_leaves_out_are_not_wanted(policy, wanted):
    bank = MemoryBank(every=3, policy=policy)
    assert [t for t in range(8) if bank.wants(t, t in (0, 7))] == wanted


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("previous", [0, 2, 5, 7, 10, 11]), ("every", [0, 2, 5, 7, 10]), ("given", [0, 2, 7]), ("latest", [11])],
)
def test_frames_given_in_the_middle_stay_although_it_is_not_their_turn(policy, expected):
    assert fill(MemoryBank(every=5, policy=policy), range(12), permanent=(0, 2, 7))[-1] == expected


def test_budget_holds_under_every_policy():
    for policy, expected in [("previous", [0, 3, 6, 7]), ("every", [0, 3, 4, 6]), ("given", [0, 3])]:
        bank = MemoryBank(every=2, budget=4, policy=policy)
        held = fill(bank, range(8), permanent=(0, 3))
        assert max(map(len, held)) <= 4
        assert held[-1] == expected


def test_objects_that_enter_later_keep_their_own_first_frame():
    assert fill(MemoryBank(every=5), range(7, 18), permanent=(7,))[-1] == [7, 10, 15, 17]


def test_budget_evicts_the_oldest_that_is_not_permanent():
    bank = MemoryBank(every=2, budget=3)
    held = fill(bank, range(8))
    assert max(map(len, held)) == 3
    assert held[-1] == [0, 6, 7]
    assert bank.evicted == [2, 4]


def test_smallest_budget_holds_first_and_previous():
    assert fill(MemoryBank(every=1, budget=2), range(6))[2:] == [[0, t] for t in range(2, 6)]


def test_permanent_frames_are_kept_even_beyond_the_budget():
    assert fill(MemoryBank(every=1, budget=2), range(5), permanent=(0, 1, 2))[-1] == [0, 1, 2, 4]


def test_read_stacks_what_is_held_in_time():
    bank = MemoryBank(every=5)
    fill(bank, range(7))
    key, value = bank.read()
    assert (key.shape, value.shape) == ((1, 2, 3, 3, 4, 5), (1, 2, 6, 3, 4, 5))
    assert key[0, 0, 0, :, 0, 0].tolist() == value[0, 1, 5, :, 3, 4].tolist() == [0, 5, 6]
    assert bank.bytes == 3 * 2 * (3 + 6) * 20 * 4


def test_key_that_objects_share_is_held_once():
    bank = MemoryBank(every=1)
    for t in range(3):
        bank.add(t, (torch.zeros(1, 3, 4, 5), torch.zeros(2, 6, 4, 5)), permanent=t == 0)
    key, value = bank.read()
    assert (key.shape, value.shape) == ((1, 1, 3, 3, 4, 5), (1, 2, 6, 3, 4, 5))
    assert bank.bytes == 3 * (3 + 2 * 6) * 20 * 4


def test_poor_frames_are_held_as_the_previous_one_and_no_longer():
    held = fill(MemoryBank(every=2), range(8), poor=(2, 3, 6))
    assert held == [[0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 4, 5], [0, 4, 6], [0, 4, 7]]


def test_given_frames_stay_however_poor_they_are():
    assert fill(MemoryBank(every=2), range(6), permanent=(0, 3), poor=(0, 3, 4))[-1] == [0, 2, 3, 5]


def test_poor_frames_take_no_place_in_the_budget():
    bank = MemoryBank(every=1, budget=3)
    assert fill(bank, range(6), poor=(2, 3, 4))[-1] == [0, 1, 5]
    assert bank.evicted == []


def test_any_number_of_tensors_is_remembered_together():
    bank = MemoryBank(every=1)
    for t in range(2):
        bank.add(t, (torch.full((2, 3, 4, 5), t), torch.full((1, 7, 4, 5), t), torch.full((2, 1, 8, 9), t)), t == 0)
    shapes = [(1, 2, 3, 2, 4, 5), (1, 1, 7, 2, 4, 5), (1, 2, 1, 2, 8, 9)]
    assert [tuple(kind.shape) for kind in bank.read()] == shapes
    assert all(kind[0, 0, 0, :, 0, 0].tolist() == [0, 1] for kind in bank.read())


@pytest.mark.parametrize(("every", "budget"), [(0, None), (5, 1), (5, 0)])
def test_impossible_settings_are_refused(every, budget):
    with pytest.raises(UserError, match="at least"):
        MemoryBank(every, budget)
