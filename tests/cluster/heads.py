"""Ray heads with a job server, as users start them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

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
        folder: for MLflow's store.
        variables: of the node and its jobs.
        flags: of `ray start`.
    """

    def __init__(self, folder: Path, variables: dict[str, str] | None = None, flags: Sequence[str] = ("--num-cpus=4",)):
        gcs, dashboard, agent = free_ports(3)
        self.gcs_port = gcs
        self.address = f"http://127.0.0.1:{dashboard}"
        # Ray's sockets need a short path.
        self.folder = Path(tempfile.mkdtemp(prefix="vf-", dir="/tmp"))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            **(variables or {}),
        }
        start = ["start", "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        start += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={self.folder}", *flags]
        for command in (["get-auth-token", "--generate"], start):
            done = self.ray(*command)
            if done.returncode:
                self.stop()
                raise RuntimeError(f"ray {command[0]} failed: {done.stdout}{done.stderr}")

    def ray(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=ROOT, timeout=timeout, check=False
        )

    def submission(self, *command: str, shipped: Sequence[str] = SHIPPED) -> list[str]:
        """What `ray` is given to submit a job from the repository's root, as the documentation says.

        Args:
            command: of the job.
            shipped: flags of `ray job submit` that say what goes along.
        """
        return ["job", "submit", "--address", self.address, *shipped, "--", *command]

    def submit(
        self, *command: str, shipped: Sequence[str] = SHIPPED, timeout: float = 580
    ) -> subprocess.CompletedProcess[str]:
        """Submit a job, and wait for it; `timeout` is in seconds."""
        deadline = time.monotonic() + 60
        while True:
            done = self.ray(*self.submission(*command, shipped=shipped), timeout=timeout)
            # The node's agent needs some seconds after the head is up.
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done

    def stop(self) -> None:
        subprocess.run(["pkill", "-9", "-f", f"{self.folder}/"], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
