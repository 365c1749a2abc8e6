from __future__ import annotations

import hashlib

import boto3
import numpy as np
import pytest
from faulty_s3 import faulty, s3_server

from vosforge import s3, storage
from vosforge.clip import Clip
from vosforge.data.shards import ShardSet
from vosforge.errors import UserError

PLACE = "s3://films/some/folder"


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def endpoint(server, monkeypatch):
    """Tells this process to use an address, and empties the bucket when done."""
    client = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket="films")

    def use(address: str = server):
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        return client

    yield use
    for found in client.list_objects_v2(Bucket="films").get("Contents", []):
        client.delete_object(Bucket="films", Key=found["Key"])
    client.delete_bucket(Bucket="films")


def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 32, 48), np.uint8)
    masks[:, 4:20, 8:30] = 2
    return [Clip(name, rng.integers(0, 255, (6, 32, 48, 3), dtype=np.uint8), masks) for name in ("a", "b", "c")]


@pytest.mark.parametrize("kind", ["500", "503", "cut"])
def test_shards_are_written_and_read_where_every_third_request_fails(server, endpoint, build_shards, tmp_path, kind):
    here = build_shards(tmp_path / "local", clips())
    reads_only = kind == "cut"

    def fault(number: int, method: str, path: str) -> str | None:
        return kind if number % 3 == 1 and (method == "GET" or not reads_only) else None

    with faulty(server, fault) as (address, spoilt):
        endpoint(address)
        there = build_shards(PLACE, clips())
        for mine, theirs in zip(here.videos, there.videos, strict=True):
            assert (here.read(mine).frames == there.read(theirs, range(6)).frames).all()
        assert there.digest == here.digest
    assert len(spoilt) > 3


@pytest.mark.parametrize("open_store", [s3.file_system, s3.patient_file_system])
def test_patience_does_not_wear_out_in_a_long_run(server, endpoint, open_store):
    endpoint()
    with faulty(server, lambda number, method, path: "500" if number % 2 else None) as (address, spoilt):
        endpoint(address)
        files = open_store()
        for i in range(120):
            assert not files.get_file_info(f"films/{i}").is_file
    assert len(spoilt) > 200


def test_a_store_is_asked_as_often_as_the_usual_variable_says(server, endpoint, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    with faulty(server, lambda number, method, path: "500") as (address, spoilt):
        endpoint(address)
        with pytest.raises(OSError, match=r"INTERNAL_FAILURE|500"):
            s3.patient_file_system().get_file_info("films/one")
    assert len(spoilt) == 3
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(UserError, match=r"^AWS_MAX_ATTEMPTS: expected a number of at least 1, found 'many'$"):
        s3.patient_file_system()


def test_slow_answers_are_waited_for(server, endpoint, build_shards):
    with faulty(server, lambda number, method, path: 0.5 if number % 4 == 0 else None) as (address, spoilt):
        endpoint(address)
        assert len(build_shards(PLACE, clips()).videos) == 3
    assert spoilt


@pytest.fixture
def impatient(monkeypatch):
    """Few tries, that tests need not wait for all."""
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    monkeypatch.setattr(storage, "_ATTEMPTS", 2)


@pytest.mark.usefixtures("impatient")
def test_storage_that_fails_for_good_is_named_in_one_error(server, endpoint, build_shards):
    endpoint()
    shards = build_shards(PLACE, clips())
    with faulty(server, lambda number, method, path: "500") as (address, _):
        endpoint(address)
        shards = ShardSet.__new__(ShardSet)
        with pytest.raises(UserError, match=r"s3://films/some/folder/manifest.json: the storage fails after 2 tries"):
            shards.__init__(PLACE)


@pytest.mark.usefixtures("impatient")
def test_frames_that_cannot_be_read_name_their_video(server, endpoint, build_shards):
    endpoint()
    shards = build_shards(PLACE, clips())
    videos = shards.videos
    with faulty(server, lambda number, method, path: "500" if "part-" in path else None) as (address, _):
        endpoint(address)
        with pytest.raises(UserError, match=r"part-00000\.parquet"):
            shards.read(videos[1])


def test_clip_on_s3_asks_for_little_more_than_its_bytes(endpoint, build_shards):
    endpoint()
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 255, (160, 64, 96, 3), dtype=np.uint8)
    masks = np.zeros((160, 64, 96), np.uint8)
    masks[:, 10:30, 20:60] = 1
    shards = build_shards(PLACE, [Clip("long", frames, masks)])
    (video,) = shards.videos
    wanted = [3, 60, 159]
    needed = sum(int(video.lengths[name][t]) for name in ("image", "mask") for t in wanted)
    shards.read(video, wanted)
    assert shards.reader.bytes_read <= 4 * needed
    assert shards.reader.requests <= 6


def test_uploads_that_nobody_finished_are_deleted_after_some_hours(endpoint):
    client = endpoint()
    client.create_multipart_upload(Bucket="films", Key="some/folder/part-0.parquet")
    client.create_multipart_upload(Bucket="films", Key="elsewhere/part-0.parquet")
    # The server dates all uploads to 2010.
    assert s3.abort_unfinished_uploads(PLACE, hours=1e6) == 0
    assert s3.abort_unfinished_uploads(PLACE) == 1
    left = client.list_multipart_uploads(Bucket="films")["Uploads"]
    assert [upload["Key"] for upload in left] == ["elsewhere/part-0.parquet"]


def test_hash_of_a_file_survives_a_broken_answer(server, endpoint):
    endpoint()
    data = np.random.default_rng(0).bytes(3_000_000)
    storage.write_bytes(f"{PLACE}/big.bin", data)
    cut = iter(["cut", "500"])
    with faulty(server, lambda number, method, path: next(cut, None) if method == "GET" else None) as (address, _):
        endpoint(address)
        assert storage.sha256(f"{PLACE}/big.bin") == hashlib.sha256(data).hexdigest()
