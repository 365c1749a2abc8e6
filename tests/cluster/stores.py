"""Real servers on this machine for tests: MLflow's, PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


class Server:
    """A real `mlflow server` that can be killed and started again.

    Its store and artefacts are a SQLite file and a folder in `folder` where no others are named.
    """

    def __init__(self, folder: Path, store: str | None = None, artefacts: str | None = None):
        self.store = store or f"sqlite:///{folder / 'server.db'}"
        self.artefacts = artefacts or str(folder / "artifacts")
        # Of the time when it was made, which is what it is started with again.
        self.environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.store, "--workers", "1"]
        command += ["--artifacts-destination", self.artefacts]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=self.environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + 240
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError("mlflow server does not start")

    def kill(self) -> None:
        """SIGKILL the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database of a PostgreSQL server, which is gone at the end."""
    installed = [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
    initdb = next((Path(path).resolve() for path in installed if path), None)
    if initdb is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    # It refuses to run as root, and its sockets need a short path.
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    folder, port = Path(tempfile.mkdtemp(prefix="vf-pg-")), free_port()
    if user:
        shutil.chown(folder, "nobody")
    where = {"cwd": folder, "stdout": subprocess.DEVNULL, **user}
    data = folder / "data"
    try:
        subprocess.run([initdb, "-D", data, "-U", "vosforge", "-A", "trust", "--no-sync"], check=True, **where)
        options = ["-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"]
        process = subprocess.Popen([initdb.with_name("postgres"), *options], stderr=subprocess.DEVNULL, **where)
        try:
            ready = [initdb.with_name("pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-U", "vosforge"]
            deadline = time.monotonic() + 60
            while subprocess.run(ready, check=False, **where).returncode:
                assert time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.2)
            yield f"postgresql+psycopg2://vosforge@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
