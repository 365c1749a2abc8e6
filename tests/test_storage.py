from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import boto3
import numpy as np
import pytest
from faulty_s3 import faulty
from moto.server import ThreadedMotoServer

from vosforge import s3, storage
from vosforge.clip import Clip
from vosforge.errors import UserError


@pytest.fixture(scope="module")
def endpoint():
    """The address of a real S3 server, in a thread of this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="videos")
    yield "s3://videos/some/folder"
    for found in client.list_objects_v2(Bucket="videos").get("Contents", []):
        client.delete_object(Bucket="videos", Key=found["Key"])
    client.delete_bucket(Bucket="videos")


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "some" / "folder") if request.param == "local" else request.getfixturevalue("bucket")


def test_written_bytes_are_read_listed_and_deleted(place):
    uri = storage.join(place, "a", "one.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"first")
    storage.write_bytes(storage.join(place, "two.bin"), b"")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"first"
    assert storage.list_names(place) == ["a", "two.bin"]
    assert storage.sha256(uri) == hashlib.sha256(b"first").hexdigest()
    storage.write_bytes(uri, b"second, longer")
    assert storage.read_bytes(uri) == b"second, longer"
    storage.delete(uri)
    assert not storage.exists(uri)


def test_folder_that_does_not_exist_lists_nothing(place):
    assert storage.list_names(storage.join(place, "nowhere")) == []


def test_missing_file_is_named(place):
    uri = storage.join(place, "gone.bin")
    with pytest.raises(UserError, match=r"folder/gone\.bin: no such file"):
        storage.read_bytes(uri)


def test_finished_file_is_uploaded_and_comes_back_whole(place, tmp_path):
    data = np.random.default_rng(0).bytes(3_000_000)
    source = tmp_path / "source.bin"
    source.write_bytes(data)
    storage.upload_file(source, storage.join(place, "big.bin"))
    assert storage.read_bytes(storage.join(place, "big.bin")) == data
    assert storage.list_names(place) == ["big.bin"]


def test_writable_place_passes_the_check_and_stays_clean(place):
    storage.check_writable(place)
    assert storage.list_names(place) == []


def test_shards_are_written_to_and_read_from_s3(bucket, build_shards):
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    masks = np.zeros((4, 32, 48), np.uint8)
    masks[:, 4:12, 5:20] = 3
    shards = build_shards(bucket, [Clip("a", frames, masks), Clip("b", frames[:2], masks[:2])])
    assert storage.list_names(bucket) == ["manifest.json", "part-00000.parquet", "videos.parquet"]
    assert [(v.video_id, v.frames, v.objects.tolist()) for v in shards.videos] == [("a", 4, [3]), ("b", 2, [3])]
    assert (shards.read(shards.videos[1]).masks == masks[:2]).all()
    assert shards.read(shards.videos[0], [3, 1]).frame_ids == ("00003", "00001")


def test_missing_shards_on_s3_are_named(bucket, build_shards):
    shards = build_shards(bucket, [Clip("a", np.zeros((1, 16, 16, 3), np.uint8), np.ones((1, 16, 16), np.uint8))])
    storage.delete(storage.join(bucket, "part-00000.parquet"))
    with pytest.raises(UserError, match=r"s3://videos/some/folder/part-00000\.parquet:a"):
        shards.read(shards.videos[0])


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "weights.bin"
    target.write_bytes(b"old")

    def fail_halfway():
        with storage.write_aside(target) as aside:
            aside.write_bytes(b"half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_written_aside_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").touch()
    with storage.write_aside(target) as aside:
        aside.mkdir()
        (aside / "fresh").touch()
    assert [path.name for path in target.iterdir()] == ["fresh"]
    assert list(tmp_path.iterdir()) == [target]


def test_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        storage.write_bytes(tmp_path / "file" / "inside.bin", b"x")


def test_unknown_scheme_is_refused():
    with pytest.raises(UserError, match=r"carrier-pigeon://coop/egg: expected a local path or s3://"):
        storage.exists("carrier-pigeon://coop/egg")


def test_local_uris_are_known():
    assert storage.is_local("runs/a")
    assert storage.is_local("file:///tmp/a")
    assert not storage.is_local("s3://bucket/a")
    assert storage.local_path("file:///tmp/a") == Path("/tmp/a")


def test_too_little_space_is_refused_with_both_numbers(tmp_path):
    storage.check_space(tmp_path / "not" / "there", 1)
    with pytest.raises(UserError, match=r"1000000000\.0 GB of disk needed, .* GB free"):
        storage.check_space(tmp_path / "not" / "there", 10**18)


def test_a_lease_is_held_by_one_at_a_time(bucket):
    held: list[str] = []

    def work(name: str) -> None:
        with s3.lease(f"{bucket}/turn.lock", seconds=1):
            held.append(name)
            time.sleep(0.7)
            held.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert "".join(held) in ("aabb", "bbaa")
    assert not storage.exists(f"{bucket}/turn.lock")


def test_a_lease_is_kept_when_answers_to_its_renewals_are_lost(bucket, endpoint, monkeypatch):
    others: list[float] = []

    def wait() -> None:
        with s3.lease(f"{bucket}/turn.lock", seconds=1):
            others.append(time.monotonic())

    # What was done without an answer is asked for again, and refused for its own sake.
    lost = lambda number, method, path: "lost" if method == "PUT" and number % 3 else None  # noqa: E731
    with faulty(endpoint, lost) as (address, spoilt):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with s3.lease(f"{bucket}/turn.lock", seconds=1):
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            other = threading.Thread(target=wait)
            other.start()
            time.sleep(5)
            left = time.monotonic()
        other.join(30)
    assert spoilt
    assert len(others) == 1
    assert others[0] > left


def test_a_lease_that_nobody_renews_is_taken_over(bucket):
    storage.write_bytes(f"{bucket}/turn.lock", b"of a process that died")
    began = time.monotonic()
    with s3.lease(f"{bucket}/turn.lock", seconds=0.2):
        assert time.monotonic() - began > 0.6
    assert not storage.exists(f"{bucket}/turn.lock")


def test_local_copies_of_files_and_folders_on_s3_last_for_a_block(bucket, tmp_path):
    storage.write_bytes(f"{bucket}/model/a", b"1")
    storage.write_bytes(f"{bucket}/model/b", b"22")
    with storage.local_copy(f"{bucket}/model") as folder, storage.local_copy(f"{bucket}/model/b") as file:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "b": b"22"}
        assert (file.name, file.read_bytes()) == ("b", b"22")
    assert not folder.exists()
    assert not file.exists()
    with storage.local_copy(tmp_path) as folder:
        assert folder == tmp_path
    with (
        pytest.raises(UserError, match=rf"^{bucket}/absent: no such file or folder$"),
        storage.local_copy(f"{bucket}/absent"),
    ):
        pass
