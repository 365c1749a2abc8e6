from __future__ import annotations

import boto3
import pytest
from faulty_s3 import faulty, s3_server
from films import Film, stream

from vosforge import s3, storage
from vosforge.serving.journal import Journal
from vosforge.serving.limits import Limits, Unready
from vosforge.serving.store import SessionStore

PLACE = "s3://sessions/some/journal"


@pytest.fixture
def server(monkeypatch):
    with s3_server() as address:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="sessions")
        monkeypatch.setattr(s3, "_ATTEMPTS", 1)
        monkeypatch.setattr(storage, "_ATTEMPTS", 2)
        yield address


@pytest.fixture
def make(bundled):
    stores = []

    def make() -> SessionStore:
        stores.append(SessionStore(bundled, Journal(PLACE), Limits()))
        return stores[-1]

    yield make
    for store in stores:
        store.stop()


def keys() -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="sessions").get("Contents", [])
    return [entry["Key"] for entry in found if not entry["Key"].endswith("/")]


def test_sessions_go_on_from_a_bucket_and_leave_it_empty(server, make):
    film = Film(length=4)
    session, whole = stream(make(), film)
    assert len(keys()) == 1 + 1 + 4
    later = make()
    assert [later.mask(session, t) for t in range(4)] == whole
    later.close(session)
    assert keys() == []


def test_a_bucket_that_fails_costs_an_error_and_no_frame(server, make, monkeypatch):
    film, store = Film(length=4), make()
    _, whole = stream(store, film)
    session = store.open("stream")["session"]
    store.put_mask(session, 0, film.masks[0])
    with faulty(server, lambda number, method, path: "500" if method == "PUT" else None) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(Unready, match="journal"):
            store.put_frame(session, 0, film.frames[0])
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    answers = [store.put_frame(session, t, frame) for t, frame in enumerate(film.frames)]
    assert answers == whole
