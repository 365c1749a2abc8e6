from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
# What a job takes along to nodes that have no vosforge.
SHIPPED = ("--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml")


def free_ports(count: int) -> list[int]:
    """Ports below those that Ray gives to its workers."""
    found = []
    for port in range(21000, 29000, 7):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


class Head:
    """A Ray head node with its job server, as `ray start --head` makes it.

    Args:
        folder: of MLflow's store.
        variables: of the node, beside this process's own.
    """

    def __init__(self, folder: Path, variables: dict[str, str]):
        gcs, dashboard, agent = free_ports(3)
        self.address = f"http://127.0.0.1:{dashboard}"
        # Ray's sockets need a short path.
        self.folder = Path("/tmp") / f"vf-{os.getpid()}-{gcs}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            **variables,
        }
        for command in (["get-auth-token", "--generate"], self._start(gcs, dashboard, agent)):
            done = self.ray(*command)
            if done.returncode:
                self.stop()
                raise RuntimeError(f"ray {command[0]} failed: {done.stdout}{done.stderr}")

    def _start(self, gcs: int, dashboard: int, agent: int) -> list[str]:
        return [
            "start", "--head", f"--port={gcs}", "--num-cpus=4", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={self.folder}",
        ]  # fmt: skip

    def ray(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=ROOT, timeout=timeout, check=False
        )

    def submit(
        self, *command: str, shipped: tuple[str, ...] = SHIPPED, timeout: float = 580
    ) -> subprocess.CompletedProcess[str]:
        """Submit a job from the repository's root as the documentation says, and wait for it.

        Args:
            command: of the job.
            shipped: flags of `ray job submit` that say what goes along.
            timeout: in seconds.
        """
        deadline = time.monotonic() + 60
        while True:
            done = self.ray("job", "submit", "--address", self.address, *shipped, "--", *command, timeout=timeout)
            # The node's agent needs some seconds after the head is up.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done

    def stop(self) -> None:
        subprocess.run(["pkill", "-9", "-f", f"{self.folder}/"], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def started(folder: Path, variables: dict[str, str]) -> Iterator[Head]:
    """A head that ends with the block."""
    if shutil.which("pkill") is None:
        pytest.skip("pkill is not installed (Debian: procps)")
    running = Head(folder, variables)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started(tmp_path_factory.mktemp("head"), {}) as running:
        yield running


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A head whose Python has vosforge as `pip install .` makes it, and the folder where that lies."""
    sources, place = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("installed")
    # setuptools builds beside what it is given.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "platform", sources / "platform", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", place]
    subprocess.run([*map(str, pip), str(sources)], check=True, timeout=300)
    with started(tmp_path_factory.mktemp("head"), {"PYTHONPATH": str(place)}) as running:
        yield running, place
