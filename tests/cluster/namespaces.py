"""A Ray cluster whose nodes have addresses of their own: network namespaces of this machine, on one bridge."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from heads import BIN, Head

# Of the bridge, and so of the head; nodes follow.
SUBNET = "10.77.{}."
# What tells nodes apart, by this process, in names of links that may have 15 characters.
_MARK = f"vf{os.getpid() % 100_000}"


@contextlib.contextmanager
def bridge() -> Iterator[str]:
    """A bridge between namespaces; its address here.

    Skips the test where this user may not make one.
    """
    name, address = f"{_MARK}br", f"{SUBNET.format(os.getpid() % 256)}1"
    try:
        made = _ip("link", "add", name, "type", "bridge", check=False)
    except FileNotFoundError:
        pytest.skip("ip is not installed (Debian: iproute2)")
    if made.returncode:
        pytest.skip(f"no right to make network namespaces: {made.stderr.strip()}")
    try:
        _ip("addr", "add", f"{address}/24", "dev", name)
        _ip("link", "set", name, "up")
        yield address
    finally:
        _ip("link", "del", name, check=False)


class Node:
    """A machine of two CPUs on the bridge that loses power when it is killed.

    Args:
        number: from 1.
        head: of the cluster, at `address`.
        address: of the bridge.
    """

    def __init__(self, number: int, head: Head, address: str):
        self.name, self.head, self.address = f"{_MARK}n{number}", head, address
        self.ip = f"{address.rpartition('.')[0]}.{10 + number}"
        self.folder = Path(f"{head.folder}{number}")
        link, inside = f"{_MARK}v{number}", f"{_MARK}p{number}"
        _ip("netns", "add", self.name)
        _ip("link", "add", link, "type", "veth", "peer", "name", inside)
        _ip("link", "set", link, "master", f"{_MARK}br", "up")
        _ip("link", "set", inside, "netns", self.name, "name", "eth0")
        for setting in (("addr", "add", f"{self.ip}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            _ip("-n", self.name, *setting)
        _ip("-n", self.name, "link", "set", "lo", "up")

    def start(self) -> None:
        """Join the cluster, for the first time or again."""
        command = [
            "ip", "netns", "exec", self.name, BIN / "ray", "start", f"--address={self.address}:{self.head.gcs_port}",
            f"--node-ip-address={self.ip}", "--num-cpus=2", f"--temp-dir={self.folder}",
        ]  # fmt: skip
        # Gloo takes the first link otherwise, which leads to this machine alone.
        environment = {**self.head.environment, "GLOO_SOCKET_IFNAME": "eth0"}
        done = subprocess.run(
            [*map(str, command)], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self) -> None:
        """All its processes at once."""
        for pid in _ip("netns", "pids", self.name).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        """Kill it and take its network away."""
        self.kill()
        _ip("netns", "del", self.name, check=False)
        subprocess.run(["rm", "-rf", self.folder], check=False)


def _ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)
