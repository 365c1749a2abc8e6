from __future__ import annotations

import io
import json
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from clients import TOKEN, opened
from films import Film, tar, untar
from PIL import Image

from vosforge.errors import UserError
from vosforge.serving.access import Access, read_token


def test_a_clip_comes_back_as_masks(connect):
    film = Film()
    answer = connect().post("/v1/segment", content=film.archive())
    assert answer.status_code == 200
    assert list(untar(answer.content)) == [f"{t:05d}.png" for t in range(6)]


def test_a_streams_whole_life(connect):
    film, client = Film(), connect()
    session = opened(client)
    assert client.put(f"{session}/masks/0", content=film.masks[0]).status_code == 204
    masks = [client.put(f"{session}/frames/{t}", content=frame) for t, frame in enumerate(film.frames)]
    assert {answer.status_code for answer in masks} == {200}
    assert Image.open(io.BytesIO(masks[0].content)).mode == "P"
    assert re.fullmatch(r"stm-nano#sha256:[0-9a-f]{12}", client.get(session).json()["model"])
    assert client.get(f"{session}/masks/3").content == masks[3].content
    assert list(untar(client.get(f"{session}/masks").content).values()) == [answer.content for answer in masks]
    state = client.get(session).json()
    assert (state["kind"], state["frames"], state["objects"]) == ("stream", 6, [1])
    assert [client.delete(session).status_code for _ in range(2)] == [204, 204]
    assert client.get(session).status_code == 404


def test_an_interactive_sessions_whole_life(connect):
    film, client = Film(length=3), connect()
    session = opened(client, kind="interactive", short_side=32)
    for t, frame in enumerate(film.frames):
        assert client.put(f"{session}/frames/{t}", content=frame).status_code == 204
    assert client.get(f"{session}/masks/0").status_code == 404
    image = {"content-type": "image/png"}
    answer = client.put(f"{session}/rounds/1?frame=1", content=film.masks[1], headers=image)
    assert (answer.status_code, answer.json()["rounds"], answer.json()["objects"]) == (200, 1, [1])
    assert client.put(f"{session}/rounds/3?frame=1", content=film.masks[1], headers=image).status_code == 409
    assert client.put(f"{session}/rounds/2?frame=9", content=film.masks[1], headers=image).status_code == 400
    assert client.delete(f"{session}/rounds/1").json()["rounds"] == 0


def test_strokes_that_cannot_be_are_refused(connect):
    film, client = Film(length=2), connect()
    session = opened(client, kind="interactive")
    client.put(f"{session}/frames/0", content=film.frames[0])
    drawn = {"content-type": "application/json"}
    for strokes in (b"{", b"[" * 100_000, b'"file:///etc/passwd"', json.dumps([{"path": [[10**400, 0]]}]).encode()):
        answer = client.put(f"{session}/rounds/1?frame=0", content=strokes, headers=drawn)
        assert answer.status_code == 400, strokes[:20]
    assert client.get(session).json()["rounds"] == 0


def webp() -> bytes:
    return cv2.imencode(".webp", np.zeros((48, 64, 3), np.uint8))[1].tobytes()


def bomb() -> bytes:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"hello", 400),
        (b"http://169.254.169.254/latest/meta-data", 400),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 400),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 400),
        (webp(), 400),
        (Film().frames[0][:-300], 400),
        (Film().masks[0][:-30], 400),
        (bomb(), 413),
        (bytes(2 << 20), 413),
    ],
    ids=["empty", "text", "address", "playlist", "svg", "webp", "half jpeg", "half png", "bomb", "too long"],
)
def test_bodies_that_are_no_frames_are_refused(connect, body, status):
    client = connect(max_image_mib=1)
    session = opened(client)
    answer = client.put(f"{session}/frames/0", content=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert client.get(session).json()["frames"] == 0


def link(name: str, target: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        archive.addfile(entry)
    return stream.getvalue()


def clips() -> dict[str, bytes]:
    film = Film(length=2)
    frames = {"0.jpg": film.frames[0], "1.jpg": film.frames[1]}
    return {
        "no archive": b"hello",
        "empty": b"",
        "no frames": tar({"mask.png": film.masks[0]}),
        "no mask": tar(frames),
        "cut off": tar({**frames, "mask.png": film.masks[0]})[:3000],
        "a link": link("0.jpg", "/etc/passwd"),
        "a mask of no frame": tar({**frames, "masks/7.png": film.masks[0]}),
        "another kind of file": tar({**frames, "mask.png": film.masks[0], "list.m3u8": b"file:///etc/passwd"}),
        "an empty mask": tar({**frames, "mask.png": Film(size=(48, 64)).masks[0][:0]}),
        "a mask of another size": tar({**frames, "mask.png": Film(size=(40, 64)).masks[0]}),
    }


@pytest.mark.parametrize("kind", clips())
def test_bodies_that_are_no_clips_are_refused(connect, kind):
    answer = connect().post("/v1/segment", content=clips()[kind])
    assert answer.status_code == 400, answer.text


def test_names_in_an_archive_reach_no_path(connect, tmp_path):
    film = Film(length=2)
    body = tar({"../../../x/0.jpg": film.frames[0], "/abs/1.jpg": film.frames[1], "../mask.png": film.masks[0]})
    answer = connect().post("/v1/segment", content=body)
    assert list(untar(answer.content)) == ["0.png", "1.png"]
    assert not list(tmp_path.rglob("*.jpg"))


@pytest.mark.parametrize(
    "path", ["/v1/sessions/..%2f..%2fetc", "/v1/sessions/0-zz", "/v1/sessions/99999-" + "0" * 32, "/v1/sessions/%00"]
)
def test_ids_that_are_none_are_not_found(connect, path):
    assert connect().get(path).status_code == 404


def test_opening_takes_no_other_fields(connect):
    client = connect()
    assert client.post("/v1/sessions", json={"model": "models:/other@champion"}).status_code == 422
    assert client.post("/v1/sessions", json={"kind": "film"}).status_code == 422
    assert client.post("/v1/sessions", json={"short_side": 4}).status_code == 400


def test_sessions_without_end_are_refused_with_a_time_to_wait(connect):
    client = connect(max_sessions=1)
    opened(client)
    answer = client.post("/v1/sessions", json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")


def test_clips_beyond_those_under_way_are_refused_before_they_are_read(connect):
    client, film = connect(max_clips=1), Film(length=40)
    with ThreadPoolExecutor(4) as threads:
        body = film.archive()
        answers = list(threads.map(lambda _: client.post("/v1/segment", content=body), range(4)))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert client.post("/v1/segment", content=body).status_code == 200


def test_only_who_bears_the_token_is_let_in(connect):
    client = connect(TOKEN)
    for header in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
    ):
        answer = client.post("/v1/sessions", json={}, headers=header)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert TOKEN not in answer.text
    assert client.get("/metrics").status_code == 401
    assert client.get("/health").status_code == 200
    assert client.post("/v1/sessions", json={}, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 201


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    monkeypatch.setenv("VOSFORGE_TOKEN", "another-one-of-length")
    assert read_token(None) == "another-one-of-length"
    assert TOKEN not in repr(vars(Access(TOKEN)))
    file.write_text("")
    with pytest.raises(UserError, match="empty"):
        read_token(file)
    with pytest.raises(UserError, match="at least 16"):
        Access("short")


def test_metrics_and_the_interfaces_description(connect):
    client, film = connect(), Film(length=2)
    client.post("/v1/segment", content=film.archive())
    session = opened(client)
    client.get(f"{session}/masks/0")
    text = client.get("/metrics").text
    assert 'vosforge_frames_total{slot="0"} 2.0' in text
    assert 'vosforge_replica_up{slot="1"} 0.0' in text
    assert 'route="/v1/sessions/{session}/masks/{t}",status="404"' in text
    assert session.rpartition("/")[2] not in text
    assert client.get("/health").json()["answering"] == 1
    paths = client.get("/openapi.json").json()["paths"]
    assert "requestBody" in paths["/v1/sessions/{session}/rounds/{n}"]["put"]
    assert client.get("/docs").status_code == 200
