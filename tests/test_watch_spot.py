"""The watcher of spot machines beside processes that are named like Ray's; tests/cluster has it drain a real node."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from metadata_service import metadata_service

WATCHER = Path(__file__).resolve().parent.parent / "jobs" / "watch_spot.py"


class Watcher:
    """The program as a process that asks several times a second."""

    def __init__(self, *flags: object):
        command = [sys.executable, WATCHER, "--every", 0.05, *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([*map(str, command)], text=True, **pipes)

    def end(self) -> tuple[int, str, str]:
        """Exit status, and what it printed."""
        printed, complained = self.process.communicate(timeout=60)
        return self.process.returncode, printed, complained


@contextlib.contextmanager
def raylet() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The id of a node whose cluster does not answer, and its process."""
    node = secrets.token_hex(28)
    said = [f"--node_id={node}", "--gcs-address=127.0.0.1:9", "--labels="]
    command = ["/ray/core/raylet", "-c", "import time; time.sleep(300)", *said]
    process = subprocess.Popen(command, executable=sys.executable)
    try:
        yield node, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def watching() -> Iterator[Callable[..., Watcher]]:
    started: list[Watcher] = []

    def start(*flags: object) -> Watcher:
        started.append(Watcher(*flags))
        return started[-1]

    yield start
    for watcher in started:
        watcher.process.kill()
        watcher.process.wait()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_watcher_asks_on_whatever_it_is_answered_and_ends_with_its_node(watching):
    with metadata_service() as service, raylet() as (node, process):
        watcher = watching("--node-id", node, "--metadata", service.address)
        for answer in ((404, b""), (500, b""), (200, b"no json"), (200, b"[]"), (200, b'{"time": "soon"}'), (404, b"")):
            service.answer, before = answer, service.asked
            wait_until(lambda before=before: service.asked > before + 2)
        assert watcher.process.poll() is None
        process.kill()
        process.wait()
        status, printed, complained = watcher.end()
    assert (status, printed) == (0, "")
    # One line for each kind of failure, however often it was met.
    assert len(complained.splitlines()) == 4
    assert "status 500; asking on" in complained


def test_metadata_service_that_is_not_there_is_asked_on(watching):
    with raylet() as (node, process):
        watcher = watching("--node-id", node, "--metadata", "http://127.0.0.1:9")
        assert watcher.process.stderr.readline().endswith("; asking on\n")
        process.kill()
        process.wait()
        assert watcher.end() == (0, "", "")


def test_watcher_wants_one_node(watching):
    status, _, complained = watching("--node-id", "0" * 56).end()
    assert status == 2
    assert complained == "error: expected one Ray node on this machine, found 0; start Ray first\n"
    with raylet(), raylet():
        status, _, complained = watching("--leaving-in", 1).end()
    assert status == 2
    assert "choose one by --node-id" in complained
