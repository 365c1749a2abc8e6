"""MLflow's servers on this machine: of tracking, and of a model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path


class _Mlflow:
    """An `mlflow` command that listens on a port; it can be killed and started again.

    Args:
        command: what stands behind `mlflow`, without host and port.
        health: path that answers once it is ready.
    """

    def __init__(self, command: list[str], health: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command, self._health = command, health
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", *self._command, "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}{self._health}", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"mlflow {self._command[0]} does not start")

    def kill(self) -> None:
        """SIGKILL the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Server(_Mlflow):
    """A real `mlflow server`.

    Args:
        folder: for its database and artefacts, where they lie nowhere else.
        database: SQLAlchemy's URI of another database.
        artefacts: URI of another place for artefacts.
    """

    def __init__(self, folder: Path, database: str | None = None, artefacts: str | None = None):
        command = ["server", "--workers", "1"]
        command += ["--backend-store-uri", database or f"sqlite:///{folder / 'server.db'}"]
        command += ["--artifacts-destination", artefacts or str(folder / "artifacts")]
        super().__init__(command, "/health")


class Scoring(_Mlflow):
    """A real `mlflow models serve`, in this environment.

    Args:
        model: its URI.
    """

    def __init__(self, model: str):
        super().__init__(["models", "serve", "-m", model, "--env-manager", "local"], "/ping")
