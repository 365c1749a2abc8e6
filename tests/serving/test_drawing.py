from __future__ import annotations

import json

import pytest
import torch
from films import Film

from vosforge.data.image_files import decode_frame, decode_mask
from vosforge.networks import build
from vosforge.propagation import Model, Session
from vosforge.serving.limits import TooLarge
from vosforge.serving.models import Served, Shelf


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build("stm-interactive", "nano")


def strokes(*objects: int) -> bytes:
    return json.dumps([{"path": [[0.1 * k, 0.2], [0.1 * k + 0.2, 0.5]], "object_id": k} for k in objects]).encode()


def test_strokes_are_answered_as_a_session_of_the_library_does(make_store, network):
    film = Film(length=3)
    models = Shelf(lambda: "drawn", lambda version: Served(version, Model([network])))
    store = make_store(models, max_objects=2)
    session = store.open("interactive")["session"]
    for t, frame in enumerate(film.frames):
        store.put_frame(session, t, frame)
    with pytest.raises(TooLarge, match="at most 2 objects, found 3"):
        store.put_round(session, 1, 1, "drawn", strokes(1, 2, 3))
    assert store.put_round(session, 1, 1, "drawn", strokes(1, 2))["objects"] == [1, 2]
    alone = Session(network, [decode_frame(frame, "frame") for frame in film.frames])
    masks = alone.interact(1, json.loads(strokes(1, 2)))
    later = make_store(models)
    for held in (store, later):
        assert all((decode_mask(held.mask(session, t), "mask") == masks[t]).all() for t in range(3))
    assert later.stats()["differing"] == 0
