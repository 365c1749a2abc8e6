from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from faulty_s3 import faulty, s3_server

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
SHAPE = ["--frames", "3", "--height", "64", "--width", "64", "--speed", "8", "--videos-per-file", "2", "--workers", "1"]


@pytest.fixture
def client() -> Iterator:
    with s3_server() as address:
        found = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        found.create_bucket(Bucket="films")
        found.address = address
        yield found


def render(out: str, videos: int, address: str) -> subprocess.Popen[str]:
    """The program as a user starts it, in a group of processes of its own, with a Ray cluster of its own."""
    command = [sys.executable, str(ROOT / "datasets" / "bl30k.py"), "--videos", str(videos), "--out", out, *SHAPE]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        command,
        env={**environment, **KEYS, "AWS_ENDPOINT_URL": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def names(client) -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket="films").get("Contents", [])]


@pytest.mark.cluster
def test_build_on_a_faulty_s3_that_is_killed_goes_on_and_ends_in_the_same_bytes(client, tmp_path):
    here = render(str(tmp_path / "here"), 12, client.address)
    assert here.wait(300) == 0, here.stdout.read()
    running = render("s3://films/there", 12, client.address)
    deadline = time.monotonic() + 240
    while not any("part-" in name for name in names(client)) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    left = names(client)
    assert any("part-" in name for name in left)
    assert "there/manifest.json" not in left
    with faulty(client.address, lambda number, method, path: "503" if number % 5 == 2 else None) as (address, spoilt):
        again = render("s3://films/there", 12, address)
        assert again.wait(300) == 0, again.stdout.read()
    assert spoilt
    there = json.loads(client.get_object(Bucket="films", Key="there/manifest.json")["Body"].read())
    assert there == json.loads((tmp_path / "here" / "manifest.json").read_text())
    assert not [name for name in names(client) if "index-" in name]
