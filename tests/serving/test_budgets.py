"""What one client can take of a replica, and what it cannot."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from films import Film, stream

from vosforge.data.image_files import encode_frame, encode_mask
from vosforge.propagation.model import BUNDLED, Model
from vosforge.serving.holding import AT_ONCE
from vosforge.serving.limits import Busy, Failed, Gone, TooLarge, TooMany, Unready
from vosforge.serving.models import Served, Shelf


def test_clips_count_and_are_bounded_as_sessions_are(make_store, monkeypatch):
    film = Film(length=8, size=(240, 320))
    with pytest.raises(TooLarge, match=r"clip: holds .* of at most 1"):
        make_store(session_mib=1).segment(film.archive())
    with pytest.raises(TooMany, match="the 1 MiB"):
        make_store(replica_mib=1).segment(film.archive())
    store, seen = make_store(), []
    step = store._batcher.step
    monkeypatch.setattr(store._batcher, "step", lambda *given: (seen.append(store.stats()["bytes"]), step(*given))[1])
    store.segment(film.archive())
    assert seen[-1] > seen[1] > 0
    assert store.stats()["bytes"] == 0


def repeat(act: Callable[[int], None]) -> None:
    """Often enough that it must be refused."""
    for k in range(20):
        act(k)


def large(t: int) -> bytes:
    return encode_frame(np.full((480, 640, 3), 20 * t, np.uint8), 20)


def large_mask() -> bytes:
    mask = np.zeros((480, 640), np.uint8)
    mask[100:300, 100:300] = 1
    return encode_mask(mask)


def test_an_interactive_session_has_room_for_rounds_from_its_frames_on(make_store):
    store = make_store(session_mib=8)
    session = store.open("interactive", 32)["session"]
    with pytest.raises(TooLarge, match=r"at most 7\.0 MiB of frames"):
        repeat(lambda t: store.put_frame(session, t, large(t)))
    full = store.state(session)
    assert full["frames"] * 2 * 480 * 640 < full["bytes"] <= 7 << 20
    assert store.put_round(session, 1, 0, "corrected", large_mask())["bytes"] > full["bytes"]
    assert store.undo(session, 1)["bytes"] == full["bytes"]


def test_a_round_that_takes_too_much_is_taken_back_and_undoing_makes_room(make_store):
    store = make_store(session_mib=4)
    session = store.open("interactive", 32)["session"]
    for t in range(4):
        store.put_frame(session, t, large(t))
    first = store.put_round(session, 1, 0, "corrected", large_mask())
    masks = []

    def correct(k: int) -> None:
        masks.append(store.masks(session))
        store.put_round(session, k + 2, k % 4, "corrected", large_mask())

    with pytest.raises(TooLarge, match="with it the session would hold"):
        repeat(correct)
    state = store.state(session)
    assert first["bytes"] <= state["bytes"] <= 4 << 20
    assert store.masks(session) == masks[-1]
    store.undo(session, state["rounds"])
    assert store.put_round(session, state["rounds"], 1, "corrected", large_mask())["rounds"] == state["rounds"]


def entries(folder: Path) -> int:
    return sum(path.name != "opened.json" for path in folder.iterdir())


def test_a_journal_has_so_many_entries_and_no_more(make_store, tmp_path):
    film, store = Film(length=3), make_store(journal_entries=6)
    session = store.open("stream")["session"]
    for _ in range(9):
        store.put_mask(session, 0, film.masks[0])
    assert entries(tmp_path / "journal" / session) == 1
    with pytest.raises(TooLarge, match="journal has 6 entries"):
        repeat(lambda k: store.put_mask(session, 0, film.masks[k % 2]))
    corrected = store.open("interactive")["session"]
    store.put_frame(corrected, 0, film.frames[0])

    def correct(k: int) -> None:
        store.put_round(corrected, 1, 0, "corrected", film.masks[0])
        store.undo(corrected, 1)

    with pytest.raises(TooLarge, match="journal has 6 entries"):
        repeat(correct)
    # Another process counts what is there.
    with pytest.raises(TooLarge, match="journal has 6 entries"):
        make_store(journal_entries=6).put_frame(session, 0, film.frames[0])
    assert {entries(folder) for folder in (tmp_path / "journal").iterdir()} == {6}


def test_a_journal_has_so_many_bytes_and_no_more(make_store):
    rng = np.random.default_rng(0)
    frames = [encode_frame(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)) for _ in range(3)]
    store = make_store(journal_mib=1)
    session = store.open("interactive")["session"]
    with pytest.raises(TooLarge, match="of at most 30000 of 1"):
        repeat(lambda t: store.put_frame(session, t, frames[t % 3]))


def test_a_session_used_while_others_expire_stays(make_store, clock, monkeypatch):
    store, film = make_store(idle_seconds=10), Film()
    first, second = (store.open("stream")["session"] for _ in range(2))
    clock.now = 11
    forget = store._journal.forget

    def slow(name: str) -> None:
        if name == first:
            store.put_mask(second, 0, film.masks[0])
        forget(name)

    monkeypatch.setattr(store._journal, "forget", slow)
    store.expire()
    assert store.state(second)["frames"] == 0


def test_one_sessions_requests_leave_threads_to_others(make_store):
    store, film = make_store(), Film()
    session, masks = stream(store, film)
    held = store._holding.get(session)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        with held.lock:
            waiting = [threads.submit(store.mask, session, 0) for _ in range(AT_ONCE)]
            while held.asked < AT_ONCE:
                pass
            with pytest.raises(Busy, match="run or wait") as refused:
                store.mask(session, 0)
        assert [each.result() for each in waiting] == masks[:1] * AT_ONCE
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    assert store.mask(session, 0) == masks[0]


def test_a_request_that_fails_again_and_again_is_not_tried_for_ever(make_store, monkeypatch):
    film, store = Film(), make_store()
    session = store.open("stream")["session"]
    store.put_mask(session, 0, film.masks[0])

    def broken(*arguments: object) -> None:
        raise TypeError("of this frame")

    with monkeypatch.context() as patch:
        patch.setattr("vosforge.serving.sessions.reduced", broken)
        for _ in range(2):
            with pytest.raises(Unready):
                store.put_frame(session, 0, film.frames[0])
        replayed = store.stats()["replayed"]
        for _ in range(3):
            with pytest.raises(Failed, match="failed 2 times") as refused:
                store.put_frame(session, 0, film.frames[0])
        assert (refused.value.status, refused.value.retry_after) == (500, None)
    assert store.stats()["replayed"] == replayed
    # Another request shows that the session is well.
    assert store.state(session)["frames"] == 0
    assert store.put_frame(session, 0, film.frames[0])


def damages() -> dict[str, tuple[int, bytes]]:
    film = Film()
    opened = {"kind": "stream", "short_side": None, "model": "m"}
    return {
        "a cut frame": (1, film.frames[0][:500]),
        "an empty frame": (1, b""),
        "another frame": (1, film.frames[2]),
        "another mask": (0, film.masks[1]),
        "no description": (-1, b"[]"),
        "a short side of text": (-1, json.dumps({**opened, "short_side": "abc"}).encode()),
        "no model": (-1, json.dumps({**opened, "model": None}).encode()),
        "no text": (-1, b"\xff\xfe"),
    }


@pytest.mark.parametrize("kind", damages())
def test_a_journal_with_other_content_ends_its_session(make_store, tmp_path, kind):
    session, _ = stream(make_store(), Film(length=3))
    place, content = damages()[kind]
    sorted((tmp_path / "journal" / session).iterdir())[place].write_bytes(content)
    later = make_store()
    for _ in range(2):
        with pytest.raises(Gone, match="damaged"):
            later.mask(session, 0)


def test_a_journal_beyond_lower_limits_ends_its_session(make_store):
    session, _ = stream(make_store(), Film(length=3))
    with pytest.raises(Gone, match="beyond the limits"):
        make_store(max_frames=2).mask(session, 0)


def test_sessions_do_not_wait_while_another_version_loads():
    model, begun, loaded = Model.load(BUNDLED), threading.Event(), threading.Event()

    def load(version: str) -> Served:
        if version == "2":
            begun.set()
            assert loaded.wait(30)
        return Served(version, model)

    newest = ["1"]
    models = Shelf(lambda: newest[0], load)
    newest[0] = "2"
    with ThreadPoolExecutor(2) as threads:
        refreshed = threads.submit(models.refresh)
        assert begun.wait(30)
        try:
            assert threads.submit(models.get, "1").result(10) is models.current
        finally:
            loaded.set()
        assert refreshed.result()
