"""Sessions of scribbles: a network that takes them, trained on one clip."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation import jaccard
from vosforge.evaluation.robot import Robot
from vosforge.networks import MemoryNetwork, build
from vosforge.propagation.scribbles import draw
from vosforge.propagation.session import Session

OBJECTS = (1, 2)
SIZE = (40, 56)


@pytest.fixture(scope="module")
def crossing() -> Clip:
    """A red square and a blue disc that pass each other on a textured ground."""
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    frames = np.repeat(cv2.GaussianBlur(noise, (0, 0), 2)[None], 6, axis=0)
    masks = np.zeros((6, *SIZE), np.uint8)
    for t in range(6):
        masks[t, 4 + 2 * t : 18 + 2 * t, 4 + 5 * t : 18 + 5 * t] = 1
        cv2.circle(masks[t], (46 - 5 * t, 29 - 2 * t), 7, 2, -1)
    frames[masks == 1], frames[masks == 2] = (220, 40, 40), (40, 60, 230)
    return Clip("crossing", frames, masks)


def planes(strokes: list) -> torch.Tensor:
    return torch.from_numpy(draw(strokes, 0, 1, SIZE).planes(OBJECTS))[None].float()


@pytest.fixture(scope="module")
def learnt(crossing) -> MemoryNetwork:
    """A nano network that learnt to segment the clip from any frame's scribbles, with and without its mask."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    network = build("stm-interactive", "nano").train()
    frames = torch.from_numpy(crossing.frames).permute(0, 3, 1, 2).float() / 255
    truth = torch.from_numpy(crossing.masks).long()
    drawn = [planes(Robot().draw(m, np.zeros_like(m), OBJECTS)) for m in crossing.masks]
    optimiser = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=140)
    for step in range(140):
        order = rng.permutation(6)[:3]
        first = torch.stack([truth[order[0]] == k for k in OBJECTS])[None].float()
        given = first if step % 3 == 0 else torch.zeros_like(first)
        logits = network(frames[order][None], given, scribbles=drawn[order[0]]).logits
        loss = F.cross_entropy(logits[0], truth[order[1:]])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@pytest.fixture
def begin(learnt, crossing) -> Callable[[], Session]:
    return lambda **options: Session(learnt, crossing.frames, **options)


def quality(clip: Clip, found: np.ndarray) -> np.ndarray:
    """J of every frame, mean over objects, `(T,)`."""
    return np.mean([jaccard(clip.masks == k, found == k) for k in OBJECTS], axis=0)


def strokes(clip: Clip, t: int, found: np.ndarray | None = None) -> list:
    """What the robot draws on a frame, all objects where nothing is found yet."""
    return Robot().draw(clip.masks[t], np.zeros_like(clip.masks[t]) if found is None else found[t], OBJECTS)


def test_scribbles_on_a_middle_frame_segment_frames_on_both_sides(begin, crossing):
    found = begin().interact(2, strokes(crossing, 2))
    assert (found.dtype, found.shape) == (np.uint8, crossing.masks.shape)
    assert (quality(crossing, found) > 0.6).all()


def test_progress_is_told_frame_by_frame(begin, crossing):
    heard = []
    begin().interact(2, strokes(crossing, 2), lambda done, total: heard.append((done, total)))
    assert heard == [(done, 6) for done in range(1, 7)]


def test_quality_does_not_fall_over_rounds(begin, crossing):
    session, found = begin(), None
    t, history = 2, []
    for _ in range(4):
        drawn = strokes(crossing, t, found)
        if not drawn:
            break
        found = session.interact(t, drawn)
        history.append(quality(crossing, found).mean())
        t = int(quality(crossing, found).argmin())
    assert len(history) >= 2
    assert all(later > earlier - 0.01 for earlier, later in itertools.pairwise(history))
    assert history[-1] > 0.85


def test_scribbles_decide_what_is_found(begin, crossing):
    swapped = [{**stroke, "object_id": 3 - stroke["object_id"]} for stroke in strokes(crossing, 2)]
    found = begin().interact(2, swapped)
    assert (quality(crossing, np.array([0, 2, 1], np.uint8)[found]) > 0.6).all()


def test_every_frame_reads_the_users_frames_alone(begin, learnt, crossing):
    session = begin()
    session.interact(4, strokes(crossing, 4))
    shuffled = np.array([4, 0, 3, 1, 5, 2])
    other = Session(learnt, crossing.frames[shuffled])
    assert (other.interact(0, strokes(crossing, 4)) == session.masks[shuffled]).all()


def test_a_round_is_the_networks_own_answer(begin, learnt, crossing):
    drawn = strokes(crossing, 1)
    session = begin()
    session.interact(1, drawn)
    frames = torch.from_numpy(crossing.frames[[1, 3]]).permute(0, 3, 1, 2)[None].float() / 255
    nothing = torch.zeros(1, 2, *SIZE)
    with torch.no_grad():
        expected = learnt(frames, nothing, scribbles=planes(drawn)).logits[0, 0].softmax(dim=0)
    assert (session.probabilities(3) - expected).abs().max() < 1 / 250


def test_later_rounds_remember_the_mask_that_was_found(begin, learnt, crossing):
    session = begin()
    session.interact(1, strokes(crossing, 1))
    before = session.probabilities(4)
    extra = [{"path": [[0.05, 0.9], [0.3, 0.9]], "object_id": 0}]
    session.interact(4, extra)
    image = torch.from_numpy(crossing.frames).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        kept = [
            learnt.encode_memory(image[1:2], torch.zeros(1, 2, *SIZE), planes(strokes(crossing, 1))),
            learnt.encode_memory(image[4:5], before[None, 1:], planes(extra)),
        ]
        memory = (torch.stack(kind, dim=3) for kind in zip(*kept, strict=True))
        expected = learnt.segment(learnt.encode_query(image[:1]), *memory)[0].softmax(dim=0)
    assert (session.probabilities(0) - expected).abs().max() < 1 / 200


def test_strokes_on_a_frame_that_was_drawn_on_are_added(begin, learnt, crossing):
    first, extra = strokes(crossing, 1), [{"path": [[0.05, 0.9], [0.3, 0.9]], "object_id": 0}]
    session = begin()
    session.interact(1, first)
    before = session.probabilities(1)
    session.interact(1, extra)
    image = torch.from_numpy(crossing.frames).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        kept = learnt.encode_memory(image[1:2], before[None, 1:], planes(first + extra))
        memory = (x.unsqueeze(3) for x in kept)
        expected = learnt.segment(learnt.encode_query(image[:1]), *memory)[0].softmax(dim=0)
    assert (session.probabilities(0) - expected).abs().max() < 1 / 200


def test_undo_gives_the_earlier_rounds_without_computing(begin, crossing, learnt):
    session = begin()
    first = session.interact(0, strokes(crossing, 0))
    second = session.interact(5, strokes(crossing, 5))
    assert (second != first).any()
    calls = []
    handle = learnt.decoder.register_forward_hook(lambda *_: calls.append(1))
    assert (session.undo() == first).all()
    assert (session.masks == first).all()
    assert len(session.rounds) == 1
    assert not session.undo().any()
    handle.remove()
    assert not calls
    assert session.objects == []
    with pytest.raises(UserError, match="no round to undo"):
        session.undo()


def test_a_round_taken_back_leaves_no_trace(begin, crossing):
    session = begin()
    session.interact(0, strokes(crossing, 0))
    session.interact(3, [{"path": [[0.5, 0.5]], "object_id": 2}])
    session.undo()
    again = session.interact(5, strokes(crossing, 5))
    other = begin()
    other.interact(0, strokes(crossing, 0))
    assert (other.interact(5, strokes(crossing, 5)) == again).all()


def test_objects_may_enter_in_later_rounds(begin, crossing):
    ground = [{**stroke, "object_id": stroke["object_id"] % 2} for stroke in strokes(crossing, 1)]
    session = begin()
    found = session.interact(1, ground)
    assert (session.objects, {*np.unique(found)}) == ([1], {0, 1})
    found = session.interact(4, strokes(crossing, 4))
    assert session.objects == [1, 2]
    assert [r.objects for r in session.rounds] == [(1,), (1, 2)]
    assert (quality(crossing, found) > 0.6).all()
    assert session.probabilities(0).shape == (3, *SIZE)
    session.undo()
    assert session.objects == [1]


def test_ids_may_have_gaps(begin, crossing):
    renamed = [{**s, "object_id": {1: 200, 2: 7}[s["object_id"]]} for s in strokes(crossing, 2)]
    session = begin()
    found = session.interact(2, renamed)
    assert session.objects == [7, 200]
    back = np.zeros(256, np.uint8)
    back[[200, 7]] = 1, 2
    assert (quality(crossing, back[found]) > 0.5).all()


def test_davis_json_maps_and_planes_say_the_same(begin, crossing):
    drawn = strokes(crossing, 2)
    davis = {"scribbles": [[], [], drawn, [], [], []], "sequence": "crossing", "annotated_frame": 2}
    ids = draw(drawn, 2, 6, SIZE).ids
    each = {k: np.stack([ids == k, (ids >= 0) & (ids != k)]) for k in OBJECTS}
    found = [begin().interact(2, scribbles) for scribbles in (davis, drawn, ids, each)]
    assert all((masks == found[0]).all() for masks in found)


def test_masks_can_be_given_to_a_network_with_scribbles(begin, crossing):
    session = begin()
    session.interact(0, strokes(crossing, 0))
    found = session.correct(3, crossing.masks[3])
    assert (found[3] == crossing.masks[3]).all()
    assert (quality(crossing, found) > 0.5).all()
    assert [r.kind for r in session.rounds] == ["scribbles", "mask"]
    reopened = session.interact(3, [{"path": [[0.02, 0.02], [0.02, 0.3]], "object_id": 0}])
    assert quality(crossing, reopened)[3] > 0.6


def test_reduced_frames_give_masks_at_full_size(learnt, crossing):
    large = Clip(
        "large",
        np.repeat(np.repeat(crossing.frames, 3, axis=1), 3, axis=2),
        np.repeat(np.repeat(crossing.masks, 3, axis=1), 3, axis=2),
    )
    session = Session(learnt, large.frames, short_side=40)
    found = session.interact(2, strokes(crossing, 2))
    assert found.shape == (6, 120, 168)
    assert (quality(large, found) > 0.5).all()


def test_frames_are_decoded_when_they_are_asked_for(learnt, crossing):
    class Lazy:
        asked: list = []  # noqa: RUF012

        def __len__(self) -> int:
            return 6

        def __getitem__(self, t: int) -> np.ndarray:
            self.asked.append(t)
            return crossing.frames[t]

    session = Session(learnt, Lazy())
    assert Lazy.asked == [0]
    whole = Session(learnt, crossing.frames)
    drawn = strokes(crossing, 2)
    assert (session.interact(2, drawn) == whole.interact(2, drawn)).all()


@pytest.mark.parametrize(
    ("frame", "scribbles", "told"),
    [
        (6, [{"path": [[0.5, 0.5]], "object_id": 1}], "frame: expected a position 0..5, found 6"),
        (True, [{"path": [[0.5, 0.5]], "object_id": 1}], "found True"),
        (1, [{"path": [[0.5, 0.5]], "object_id": 0}], "frame 1: draw where any object is"),
        (1, {4: np.stack([np.zeros(SIZE), np.ones(SIZE)])}, "draw where object 4 is"),
        (1, [{"path": [[1.5, 0.5]], "object_id": 1}], "coordinates in"),
        (1, [], "nothing is drawn"),
    ],
)
def test_other_interactions_are_refused_and_change_nothing(begin, frame, scribbles, told):
    session = begin()
    with pytest.raises(UserError, match=told):
        session.interact(frame, scribbles)
    assert not session.rounds
    assert not session.masks.any()


def test_what_is_returned_is_the_callers(begin, crossing):
    session = begin()
    session.interact(2, strokes(crossing, 2))[:] = 9
    session.masks[:] = 9
    assert 9 not in session.masks


def test_networks_whose_query_asks_for_masks_are_refused(nano, crossing):
    for parts in ({"siamese": True}, {"prior": "union"}):
        with pytest.raises(UserError, match="query sees the frame alone"):
            Session(nano("stm-interactive", **parts), crossing.frames)


@pytest.mark.parametrize("parts", [{"memory_encoder": "value"}, {"reader": "topk"}, {"reader": "spatial"}])
def test_other_parts_go_with_scribbles(nano, crossing, parts):
    session = Session(nano("stm-interactive", **parts), crossing.frames)
    session.interact(1, strokes(crossing, 1))
    session.interact(4, [{"path": [[0.1, 0.1]], "object_id": 3}])
    assert session.objects == [1, 2, 3]
    total = session.probabilities(5).sum(dim=0)
    assert (total - 1).abs().max() < 0.02
