from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from films import Film, stream, tar, untar

from vosforge.data.image_files import decode_frame, decode_mask, encode_frame, encode_mask
from vosforge.errors import UserError
from vosforge.propagation.model import BUNDLED, Model
from vosforge.propagation.segmenter import segment_frame
from vosforge.serving.limits import Conflict, Gone, NotFound, Refused, TooLarge, TooMany, Unready
from vosforge.serving.models import Served, Shelf


def segmented_alone(film: Film) -> list[np.ndarray]:
    model = Model.load(BUNDLED)
    segmenter = model.start()
    given = {0: decode_mask(film.masks[0], "mask")}
    return [
        segment_frame(segmenter, decode_frame(frame, "frame"), given.get(t), model.short_side)
        for t, frame in enumerate(film.frames)
    ]


def test_a_stream_answers_what_segmenting_without_a_server_does(make_store):
    film = Film()
    _, answered = stream(make_store(), film)
    alone = segmented_alone(film)
    assert all((decode_mask(a, "a") == b).all() for a, b in zip(answered, alone, strict=True))
    assert any(mask.any() for mask in alone[1:])


def test_a_clip_has_the_masks_of_a_stream(make_store):
    film, store = Film(), make_store()
    _, answered = stream(store, film)
    assert list(untar(store.segment(film.archive())).values()) == answered


def test_sessions_side_by_side_get_what_each_gets_alone(make_store):
    films = [Film(seed, length=5) for seed in range(6)]
    alone = [stream(make_store(batch=1), film)[1] for film in films]
    store = make_store(batch=8)
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda film: stream(store, film)[1], films))
    assert together == alone
    assert store.stats()["batches"] < store.stats()["steps"] == 30


def test_another_process_goes_on_where_one_ended(make_store):
    film = Film()
    _, whole = stream(make_store(), film)
    first = make_store()
    session = first.open("stream")["session"]
    first.put_mask(session, 0, film.masks[0])
    begun = [first.put_frame(session, t, film.frames[t]) for t in range(3)]
    second = make_store()
    # The client got no answer to frame 2, and sends it again.
    assert second.put_frame(session, 2, film.frames[2]) == begun[2]
    assert begun + stream(second, film, 3, session)[1] == whole
    assert second.stats()["replayed"] == 1
    assert second.stats()["differing"] == 0


def test_an_interactive_session_is_replayed_with_its_rounds(make_store):
    film = Film(length=4)
    first = make_store()
    session = first.open("interactive")["session"]
    for t, frame in enumerate(film.frames):
        assert first.put_frame(session, t, frame) == b""
    first.put_round(session, 1, 0, "corrected", film.masks[0])
    once = first.masks(session)
    first.put_round(session, 2, 3, "corrected", film.masks[3])
    twice = first.masks(session)
    assert once != twice
    second = make_store()
    assert second.masks(session) == twice
    assert second.put_round(session, 2, 3, "corrected", film.masks[3])["rounds"] == 2
    second.undo(session, 2)
    third = make_store()
    assert third.undo(session, 2)["rounds"] == 1
    assert third.masks(session) == once
    assert third.stats()["differing"] == 0


def test_requests_out_of_turn_are_told_what_comes_next(make_store):
    film, store = Film(), make_store()
    session, _ = stream(store, film)
    with pytest.raises(Conflict, match="expected frame 6"):
        store.put_frame(session, 8, film.frames[0])
    with pytest.raises(Conflict, match="with other bytes"):
        store.put_frame(session, 1, film.frames[0])
    with pytest.raises(Conflict, match="expected the mask of frame 6"):
        store.put_mask(session, 2, film.masks[2])
    with pytest.raises(Refused, match="is stream"):
        store.put_round(session, 1, 0, "corrected", film.masks[0])


def test_what_exceeds_a_limit_is_named(make_store):
    film = Film()
    store = make_store(max_side=60)
    with pytest.raises(TooLarge, match="60 pixels a side, found 48x64"):
        store.put_frame(store.open("stream")["session"], 0, film.frames[0])
    store = make_store(max_frames=2)
    with pytest.raises(TooLarge, match="at most 2 frames"):
        stream(store, film)
    with pytest.raises(TooLarge, match="at most 2 frames"):
        store.segment(film.archive())
    many = np.arange(48 * 64).reshape(48, 64) // 160 % 20
    store = make_store(max_objects=3)
    with pytest.raises(TooLarge, match="at most 3 objects, found 19"):
        store.put_mask(store.open("stream")["session"], 0, encode_mask(many.astype(np.uint8)))
    with pytest.raises(TooLarge, match="at most 8 MiB, found 9"):
        store.put_frame(store.open("stream")["session"], 0, bytes(9 << 20))


def test_there_is_room_for_so_many_sessions(make_store):
    store = make_store(max_sessions=2)
    first = store.open("stream")["session"]
    store.open("interactive")
    with pytest.raises(TooMany, match="2 sessions and clips run here"):
        store.open("stream")
    store.close(first)
    store.open("stream")


def test_a_session_that_grows_too_large_takes_no_more(make_store):
    rng = np.random.default_rng(0)
    frames = [encode_frame(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)) for _ in range(3)]

    def send(store, session):
        for t in range(9):
            store.put_frame(session, t, frames[t % 3])

    store = make_store(session_mib=3)
    session = store.open("interactive")["session"]
    with pytest.raises(TooLarge, match=r"at most 2\.6 MiB of frames"):
        send(store, session)
    assert store.state(session)["frames"] >= 2
    store = make_store(replica_mib=1, session_mib=8)
    session = store.open("interactive")["session"]
    with pytest.raises(TooMany, match="the 1 MiB that they may"):
        send(store, session)


def test_idle_sessions_are_closed_and_leave_nothing_behind(make_store, clock, tmp_path):
    store = make_store(idle_seconds=60)
    idle, _ = stream(store, Film())
    clock.now = 50
    used, _ = stream(store, Film(1))
    clock.now = 70
    store.expire()
    with pytest.raises(NotFound, match="no request for 60 seconds"):
        store.mask(idle, 0)
    assert store.mask(used, 0)
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [used]
    # Those of an earlier process are closed in time, too.
    later = make_store(idle_seconds=60)
    clock.now = 140
    later.expire()
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_journal_that_cannot_be_written_loses_nothing(make_store, tmp_path):
    film, store = Film(), make_store()
    _, whole = stream(store, film)
    session = store.open("stream")["session"]
    store.put_mask(session, 0, film.masks[0])
    store.put_frame(session, 0, film.frames[0])
    folder = tmp_path / "journal" / session
    folder.rename(aside := tmp_path / "aside")
    folder.write_bytes(b"in the way")
    with pytest.raises(Unready, match="journal"):
        store.put_frame(session, 1, film.frames[1])
    folder.unlink()
    aside.rename(folder)
    assert stream(store, film, 1, session)[1] == whole[1:]


def test_a_batch_that_breaks_takes_no_session_with_it(make_store, monkeypatch):
    films = [Film(seed) for seed in range(3)]
    model = Model.load(BUNDLED)
    store = make_store(Shelf(lambda: "breaking", lambda version: Served(version, model)))
    whole = [stream(store, film)[1] for film in films]
    sessions = [store.open("stream")["session"] for _ in films]
    for session, film in zip(sessions, films, strict=True):
        store.put_mask(session, 0, film.masks[0])
        store.put_frame(session, 0, film.frames[0])

    def broken(**arguments: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model.members[0], "decode", broken)
        for session, film in zip(sessions, films, strict=True):
            with pytest.raises(Unready, match="the request failed"):
                store.put_frame(session, 1, film.frames[1])
    answers = [stream(store, film, 1, session)[1] for session, film in zip(sessions, films, strict=True)]
    assert answers == [masks[1:] for masks in whole]


def test_a_damaged_journal_ends_its_session_alone(make_store, tmp_path):
    film, store = Film(), make_store()
    session, _ = stream(store, film)
    sorted((tmp_path / "journal" / session).iterdir())[2].unlink()
    later = make_store()
    with pytest.raises(Gone, match="entry 2"):
        later.mask(session, 0)
    other, _ = stream(later, film)
    (tmp_path / "journal" / other / "opened.json").write_text("{")
    with pytest.raises(Gone, match="journal is damaged"):
        make_store().mask(other, 0)


def test_a_session_waits_for_a_model_that_is_out_of_reach(make_store):
    film, model = Film(), Model.load(BUNDLED)
    session, whole = stream(make_store(Shelf(lambda: "models:/a/1", lambda v: Served(v, model))), film)
    reachable = False

    def load(version: str) -> Served:
        if version == "models:/a/1" and not reachable:
            raise UserError("the registry does not answer")
        return Served(version, model)

    later = make_store(Shelf(lambda: "models:/a/2", load))
    with pytest.raises(Unready, match="model cannot be loaded"):
        later.mask(session, 0)
    reachable = True
    assert later.mask(session, 5) == whole[5]


def test_new_sessions_get_the_new_version_and_open_ones_keep_theirs(make_store):
    newest = ["models:/a/1"]
    loaded = []

    def load(version: str) -> Served:
        loaded.append(version)
        model = Model.load(BUNDLED)
        return Served(version, model)

    models = Shelf(lambda: newest[0], load)
    store, film = make_store(models), Film()
    old = store.open("stream")["session"]
    store.put_mask(old, 0, film.masks[0])
    newest[0] = "models:/a/2"
    store.refresh()
    store.put_frame(old, 0, film.frames[0])
    new = store.open("stream")
    assert (store.state(old)["model"], new["model"]) == ("models:/a/1", "models:/a/2")
    # Another process brings each back with its own version.
    later = make_store(models)
    assert later.state(old)["model"] == "models:/a/1"
    store.close(old)
    later.close(old)
    assert models.versions == ["models:/a/2"]
    assert loaded == ["models:/a/1", "models:/a/2"]


def test_a_version_that_cannot_be_loaded_changes_nothing():
    newest = ["models:/a/1"]

    def load(version: str) -> Served:
        if version.endswith("2"):
            raise UserError("broken")
        return Served(version, Model.load(BUNDLED))

    models = Shelf(lambda: newest[0], load)
    newest[0] = "models:/a/2"
    assert not models.refresh()
    assert models.current.version == "models:/a/1"


@pytest.mark.parametrize(
    ("name", "told"),
    [("../0-" + "0" * 32, "expected an id"), ("0-" + "0" * 32, "no such session"), ("7-" + "0" * 32, "not held here")],
)
def test_ids_of_nothing_are_not_found(make_store, name, told):
    with pytest.raises(NotFound, match=told):
        make_store().state(name)


def test_drawing_on_a_network_that_takes_masks_alone_is_refused(make_store):
    film, store = Film(length=2), make_store()
    session = store.open("interactive")["session"]
    for t, frame in enumerate(film.frames):
        store.put_frame(session, t, frame)
    strokes = json.dumps([{"path": [[0.2, 0.3], [0.3, 0.4]], "object_id": 1}]).encode()
    with pytest.raises(UserError, match="takes no scribbles"):
        store.put_round(session, 1, 0, "drawn", strokes)
    assert store.put_round(session, 1, 0, "corrected", film.masks[0])["objects"] == [1]


def test_two_masks_or_frames_of_one_name_are_refused(make_store):
    film = Film()
    with pytest.raises(Refused, match="two frames are named"):
        make_store().segment(tar({"a/0.jpg": film.frames[0], "b/0.jpg": film.frames[1], "mask.png": film.masks[0]}))
