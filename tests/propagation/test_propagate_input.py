"""Input of another form to batches of videos and to sessions, and how much of a long video is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vosforge.errors import UserError
from vosforge.propagation import MemoryBank, Model, Propagator, Session, propagate, read_scribbles, segment_clip


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_frames_without_masks_are_an_error_in_their_place(nano, noise, batch, place):
    clips = [noise(3, 1, seed=1), noise(4, 2, seed=2)]
    videos = [*clips]
    videos.insert(place, noise(3, 1).frames)
    found = list(propagate(videos, nano(), batch=batch))
    assert len(found) == 3
    error = found.pop(place)
    assert isinstance(error, UserError)
    assert str(error) == "expected a Clip, or a pair (frames, position -> mask), found ndarray"
    for masks, clip in zip(found, clips, strict=True):
        assert (masks != segment_clip(Propagator(nano()), clip)).mean() < 1e-3


@pytest.mark.parametrize(
    ("video", "kind"),
    [
        (lambda clip: (clip.frames, clip.masks), "tuple"),
        (lambda clip: (clip.frames, {0: clip.masks[0]}, 25), "tuple"),
        (lambda clip: [clip.frames, {0: clip.masks[0]}], "list"),
        (lambda clip: clip.name, "str"),
        (lambda clip: None, "NoneType"),
    ],
)
def test_what_is_no_video_is_named_by_its_kind(nano, noise, video, kind):
    clip = noise(2, 1)
    error, masks = propagate([video(clip), clip], nano())
    assert isinstance(error, UserError)
    assert str(error).endswith(f"found {kind}")
    assert masks.shape == clip.masks.shape


def test_videos_that_are_all_of_another_form_are_all_told(nano, noise):
    found = list(propagate([noise(2, 1).frames] * 5, nano(), batch=2))
    assert [type(error) for error in found] == [UserError] * 5


def test_mask_past_the_end_is_an_error_that_names_its_frame(nano, noise):
    clip = noise(3, 1)
    late = (clip.frames, {0: clip.masks[0], 7: clip.masks[1], 3: clip.masks[2]})
    last = (clip.frames, {0: clip.masks[0], 2: clip.masks[2]})
    found = list(propagate([late, clip, last], nano(), batch=2))
    assert isinstance(found[0], UserError)
    assert str(found[0]) == "a mask is given at frame 3, the video has 3 frames"
    assert [masks.shape for masks in found[1:]] == [clip.masks.shape] * 2
    assert (found[2][2] == clip.masks[2]).all()


@pytest.fixture
def session(nano, noise) -> Session:
    return Session(nano("stm-interactive"), noise(3, 1).frames)


@pytest.mark.parametrize("kind", [str, Path])
def test_path_of_a_scribble_file_is_refused_with_what_reads_it(session, tmp_path, kind):
    path = tmp_path / "001.json"
    strokes = [{"path": [[0.1, 0.2], [0.4, 0.4]], "object_id": 3}]
    path.write_text(json.dumps({"scribbles": [[], strokes, []], "sequence": "noise"}))
    with pytest.raises(UserError) as error:
        session.interact(1, kind(path))
    assert str(error.value) == (
        f"scribbles on frame 1: expected the content of a file, found the path {path}; give read_scribbles(path)"
    )
    assert session.rounds == ()
    masks = session.interact(1, read_scribbles(path))
    assert masks.shape == (3, 40, 56)
    assert (session.objects, len(session.rounds)) == ([3], 1)


def test_long_videos_tell_the_latest_thousand_frames_that_went():
    bank, tensors = MemoryBank(every=1, budget=3), (torch.zeros(1),)
    for t in range(2500):
        bank.add(t, tensors, permanent=t == 0)
    assert bank.frames == [0, 2498, 2499]
    assert list(bank.evicted) == list(range(1498, 2498))


def test_few_frames_that_went_are_all_told_as_a_list(nano, noise):
    propagator, clip = Propagator(nano(), memory_every=1, budget=2), noise(5, 1)
    segment_clip(propagator, clip)
    assert propagator.memory[0]["evicted"] == [1, 2, 3]
    assert np.all(np.diff(propagator.memory[0]["frames"]) > 0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("a.safetensors", r"found the path a\.safetensors; load it with networks\.load\(path\)"),
        (Path("a.safetensors"), r"found the path a\.safetensors; load it"),
        (None, "found NoneType$"),
        (torch.nn.Linear(1, 1), "found Linear$"),
    ],
)
def test_what_is_no_network_is_named_by_its_kind(noise, network, message):
    for make in (Propagator, lambda network: Session(network, noise(2, 1).frames)):
        with pytest.raises(UserError, match=f"network: expected a MemoryNetwork, {message}"):
            make(network)


def test_model_in_place_of_a_network_is_told_how_it_starts(nano, noise):
    for make in (Propagator, lambda network: Session(network, noise(2, 1).frames)):
        with pytest.raises(UserError, match=r"found Model; Model\.start\(\) gives its segmenter"):
            make(Model([nano()]))


def test_frames_that_come_only_once_are_refused_by_a_session(nano, noise):
    for frames, kind in ((iter(noise(2, 1).frames), "iterator"), ((f for f in noise(2, 1).frames), "generator")):
        with pytest.raises(UserError, match=rf"frames: expected .*, found {kind}; make a list of it"):
            Session(nano("stm-interactive"), frames)
