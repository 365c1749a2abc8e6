"""A served model over real HTTP on a real Ray Serve: one server for all tests, which run in their order."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from films import Film, untar
from machines import descendants
from mlflow import MlflowClient
from servers import Client, Server

from vosforge.data.image_files import decode_frame, decode_mask, encode_mask
from vosforge.propagation import Model, save_model
from vosforge.propagation.model import BUNDLED
from vosforge.propagation.segmenter import segment_frame
from vosforge.registry import register

pytestmark = pytest.mark.cluster
SHORT_SIDES = {1: 256, 2: 32}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("serving")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    for version, side in SHORT_SIDES.items():
        save_model(folder / f"model-{version}", [BUNDLED / "member-0.safetensors"], short_side=side)
        register(folder / f"model-{version}", "vos", store, folder, "champion" if version == 1 else None)
    running = Server(folder, store, "--model", "models:/vos@champion", "--seconds-between-looks", "1")
    running.store = store
    try:
        running.wait()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def expected(film: Film, version: int = 1) -> list[bytes]:
    """Masks without a server."""
    segmenter = Model.load(BUNDLED).start()
    given = {0: decode_mask(film.masks[0], "mask")}
    return [
        encode_mask(segment_frame(segmenter, decode_frame(frame, "frame"), given.get(t), SHORT_SIDES[version]))
        for t, frame in enumerate(film.frames)
    ]


def test_a_whole_clip(server):
    film = Film()
    answer = server.client.ask("POST", "/v1/segment", data=film.archive())
    assert answer.status_code == 200, answer.text
    assert list(untar(answer.content).values()) == expected(film)
    assert requests.post(f"{server.url}/v1/segment", data=film.archive(), timeout=60).status_code == 401
    assert server.client.ask("POST", "/v1/segment", data=b"http://127.0.0.1/").status_code == 400
    assert server.client.ask("GET", "/health").json()["answering"] == 2
    assert "vosforge_clips_total" in server.client.ask("GET", "/metrics").text


def test_a_sessions_whole_life(server):
    film, client = Film(1, length=24, size=(96, 128)), server.client
    session, corrector = begin_correcting(server, film)
    seen = []
    with ThreadPoolExecutor(1) as threads:
        round_1 = threads.submit(corrector.round, session, 1, 12, film.masks[12])
        while not round_1.done():
            seen.append(client.state(session)["progress"])
    assert round_1.result()["rounds"] == 1
    assert any(progress and 0 < progress["done"] <= progress["total"] == 23 for progress in seen)
    masks = f"/v1/sessions/{session}/masks"
    once = client.ask("GET", masks).content
    assert len(untar(once)) == 24
    client.round(session, 2, 0, film.masks[0])
    assert client.ask("GET", masks).content != once
    assert client.ask("DELETE", f"/v1/sessions/{session}/rounds/2").json()["rounds"] == 1
    assert client.ask("GET", masks).content == once
    assert client.ask("DELETE", f"/v1/sessions/{session}").status_code == 204
    assert client.ask("GET", f"/v1/sessions/{session}").status_code == 404


def test_a_replica_killed_under_load_costs_a_client_one_error_and_no_mask(server):
    films = [Film(seed, length=30) for seed in range(4)]
    clients = [Client(server.url) for _ in films]
    sessions = [client.open()["session"] for client in clients]
    corrected, corrector = begin_correcting(server, Film(7, length=40, size=(144, 192)))

    def send(client: Client, session: str, film: Film) -> list[bytes]:
        client.mask(session, 0, film.masks[0])
        return [client.frame(session, t, frame) for t, frame in enumerate(film.frames)]

    with ThreadPoolExecutor(len(films) + 1) as threads:
        sending = [threads.submit(send, *each) for each in zip(clients, sessions, films, strict=True)]
        round_1 = threads.submit(corrector.round, corrected, 1, 0, Film(7, length=1, size=(144, 192)).masks[0])
        while (server.client.state(corrected)["progress"] or {}).get("done", 0) < 3:
            assert not round_1.done()
        before = server.replica(slot := int(corrected[0]))
        os.kill(before, signal.SIGKILL)
        answered = [each.result() for each in sending]
    assert answered == [expected(film) for film in films]
    assert round_1.result()["rounds"] == 1
    # This request was under way; of the others some may have been between two.
    assert corrector.retried == 1
    retried = {session: client.retried for session, client in zip(sessions, clients, strict=True)}
    assert max(retried.values()) <= 1
    assert {int(session[0]) for session, times in retried.items() if times} <= {slot}
    assert server.replica(slot) != before
    metrics = server.client.ask("GET", "/metrics").text
    assert f'vosforge_differing_total{{slot="{slot}"}} 0.0' in metrics
    assert f'vosforge_replayed_total{{slot="{slot}"}} 3.0' in metrics
    for session in [*sessions, corrected]:
        server.client.ask("DELETE", f"/v1/sessions/{session}")


def begin_correcting(server: Server, film: Film) -> tuple[str, Client]:
    """An interactive session with its frames, and the client that has it."""
    client = Client(server.url)
    session = client.open(kind="interactive")["session"]
    for t, frame in enumerate(film.frames):
        client.frame(session, t, frame)
    return session, client


def test_a_new_champion_gets_new_sessions_and_open_ones_keep_theirs(server):
    film, client = Film(2, length=12), server.client
    old = client.open()
    client.mask(old["session"], 0, film.masks[0])
    answers = [client.frame(old["session"], t, film.frames[t]) for t in range(4)]
    MlflowClient(server.store).set_registered_model_alias("vos", "champion", "2")
    deadline = time.monotonic() + 60
    while (new := client.open())["model"] != "models:/vos/2":
        client.ask("DELETE", f"/v1/sessions/{new['session']}")
        assert time.monotonic() < deadline
    answers += [client.frame(old["session"], t, film.frames[t]) for t in range(4, 12)]
    assert old["model"] == client.state(old["session"])["model"] == "models:/vos/1"
    assert answers == expected(film, 1)
    client.mask(new["session"], 0, film.masks[0])
    assert [client.frame(new["session"], t, frame) for t, frame in enumerate(film.frames)] == expected(film, 2)
    assert expected(film, 1) != expected(film, 2)


def test_sigterm_ends_it_and_leaves_the_journal_alone(server):
    below = descendants(server.process.pid)
    assert server.stop() == 0
    assert "stopped; open sessions are in the journal" in server.log.read_text()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in below):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "Traceback" not in server.log.read_text()
    assert len(list((server.log.parent / "journal").iterdir())) == 2
