"""What clients send that nobody should: refused in one form, in time, and counted."""

from __future__ import annotations

import asyncio
import tarfile

import pytest
from clients import TOKEN, opened
from films import Film, tar

from vosforge.errors import UserError
from vosforge.serving.access import Access, read_token

FILM = Film(length=2)
AS_JSON = {"content-type": "application/json"}


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header whose size may be below 0, which `TarInfo` does not write."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    block = bytearray(entry.tobuf())
    block[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def hidden_loop() -> bytes:
    """An entry whose size below 0 is hidden by an extended header, so that it leads back to itself."""
    record = b"26 GNU.sparse.realsize=10\n"
    return header(".a") + header("x", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0") + header(".x", -1536)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (header(".a") + header(".x", -512) + bytes(1024), 400),
        (hidden_loop() + bytes(1024), 413),
        (header("p", 0, tarfile.XHDTYPE) * 3000 + FILM.archive(), 400),
        (tar({f"{'1' * 4400}.jpg": FILM.frames[0], "2.jpg": FILM.frames[1], "mask.png": FILM.masks[0]}), 400),
        (tar({"\udcff.jpg": FILM.frames[0], "masks/7.png": FILM.masks[0]}), 400),
        (tar({f".{k}": b"" for k in range(121)}), 413),
    ],
    ids=["a loop", "a hidden loop", "chained headers", "a number of 4400 digits", "a name that is no text", "entries"],
)
def test_archives_made_to_harm_are_refused(connect, body, status):
    answer = connect(max_frames=5).post("/v1/segment", content=body)
    assert (answer.status_code, set(answer.json())) == (status, {"error"}), answer.text


def test_openings_are_bounded_and_not_sent_back(connect):
    client = connect()
    answer = client.post("/v1/sessions", content=b'{"kind": "' + b"x" * (2 << 20) + b'"}', headers=AS_JSON)
    assert answer.status_code == 413
    answer = client.post("/v1/sessions", content=b'{"' + b"x" * 100_000 + b'": "secret"}', headers=AS_JSON)
    assert answer.status_code == 422
    assert len(answer.content) < 500
    assert "secret" not in answer.text
    assert client.post("/v1/sessions", content=b"{}", headers={"content-type": "text/plain"}).status_code == 400


@pytest.mark.parametrize("body", [b'{"kind":"\\ud800"}', b'{"short_side":NaN}', b"[]", b"{", b"\xff", b""])
def test_malformed_openings_are_refused(connect, body):
    answer = connect().post("/v1/sessions", content=body, headers=AS_JSON)
    assert (answer.status_code, set(answer.json())) == (422, {"error"})


def test_every_refusal_has_one_form(connect):
    client = connect()
    session = opened(client, kind="interactive")
    asked = {
        ("PUT", f"{session}/frames/abc"): 422,
        ("PUT", f"{session}/rounds/1"): 422,
        ("GET", "/v1/films"): 404,
        ("POST", "/health"): 405,
        ("GET", f"{session}/masks/0"): 404,
    }
    for (method, path), status in asked.items():
        answer = client.request(method, path, content=b"x")
        assert (answer.status_code, set(answer.json())) == (status, {"error"}), answer.text
    assert "frame: Field required" in client.put(f"{session}/rounds/1").json()["error"]
    described = client.get("/openapi.json").json()["paths"]["/v1/sessions/{session}/frames/{t}"]["put"]["responses"]
    assert set(described) == {"200", "default"}


def test_faults_are_json_and_counted_and_tell_nothing(connect, make_store, monkeypatch):
    client = connect()

    def broken(*arguments: object) -> None:
        raise RuntimeError("the inside")

    monkeypatch.setattr("vosforge.serving.store.segment_clip", broken)
    monkeypatch.setattr("vosforge.serving.store.SessionStore.state", broken)
    clip, state = client.post("/v1/segment", content=FILM.archive()), client.get("/v1/sessions/0-" + "0" * 32)
    for answer in (clip, state):
        assert (answer.status_code, set(answer.json())) == (500, {"error"})
        assert "inside" not in answer.text
    text = client.get("/metrics").text
    assert 'route="/v1/segment",status="500"' in text
    assert 'route="/v1/sessions/{session}",status="500"' in text


def test_methods_that_http_does_not_have_make_no_series(connect):
    client = connect(TOKEN)
    for method in ("FOO1", "FOO2"):
        client.request(method, "/")
    text = client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    assert "FOO" not in text
    assert 'method="other"' in text


def test_pages_that_are_open_are_those_that_are_documented(connect):
    client = connect(TOKEN)
    asked = {path: client.get(path).status_code for path in ("/redoc", "/docs/oauth2-redirect", "/docs", "/health")}
    assert asked == {"/redoc": 404, "/docs/oauth2-redirect": 404, "/docs": 200, "/health": 200}
    assert "HTTPBearer" in client.get("/openapi.json").json()["components"]["securitySchemes"]
    assert "securitySchemes" not in connect().get("/openapi.json").json()["components"]


def test_a_slow_upload_gives_its_place_to_others(connect):
    client, sent = connect(max_clips=1, upload_seconds=0.2), []

    async def slow() -> dict[str, object]:
        await asyncio.sleep(5)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/segment", "headers": [], "query_string": b""}
    asyncio.run(client.app(scope, slow, send))
    assert sent[0]["status"] == 408
    assert client.post("/v1/segment", content=FILM.archive()).status_code == 200


def test_tokens_are_what_a_header_can_carry(monkeypatch):
    monkeypatch.setenv("VOSFORGE_TOKEN", f" {TOKEN}\n")
    assert read_token(None) == TOKEN
    monkeypatch.setenv("VOSFORGE_TOKEN", " ")
    assert read_token(None) is None
    with pytest.raises(UserError, match="ASCII"):
        Access("ein-schönes-langes-Kennwort")
