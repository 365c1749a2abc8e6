"""A server as users start it, the processes under it, and clients that ask again as the interface says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests
from machines import descendants

ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "a-token-for-these-tests"


class Server:
    """`jobs/serve.py` in a process of its own, with two replicas."""

    def __init__(self, folder: Path, store: str, *flags: str):
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", folder / "serve.log"
        command = [sys.executable, str(ROOT / "jobs" / "serve.py"), "--port", str(port), "--replicas", "2"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"MLFLOW_TRACKING_URI": store, "VOSFORGE_TOKEN": TOKEN, "RAY_AUTH_MODE": "disabled"}
        command += ["--journal", str(folder / "journal"), "--threads", "1", *flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        self.client = Client(self.url)

    def wait(self, seconds: float = 240) -> None:
        """Until it answers."""
        deadline = time.monotonic() + seconds
        while "serving " not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)

    def replica(self, slot: int) -> int:
        """The process that holds a slot's sessions."""
        (found,) = descendants(self.process.pid, f"replica-{slot}")
        return found

    def stop(self) -> int:
        """End it with SIGTERM; its status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            for process in descendants(self.process.pid):
                os.kill(process, signal.SIGKILL)
            self.process.kill()
            raise


class Client:
    """Asks again after a 503, and counts how often it had to."""

    def __init__(self, url: str, token: str | None = TOKEN):
        self.url, self.retried = url, 0
        self._web = requests.Session()
        if token:
            self._web.headers["Authorization"] = f"Bearer {token}"

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        while True:
            answer = self._web.request(method, f"{self.url}{path}", timeout=120, **options)
            if answer.status_code != 503:
                return answer
            self.retried += 1
            time.sleep(float(answer.headers["Retry-After"]))

    def open(self, **body: Any) -> dict[str, Any]:
        answer = self.ask("POST", "/v1/sessions", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def frame(self, session: str, t: int, data: bytes) -> bytes:
        answer = self.ask("PUT", f"/v1/sessions/{session}/frames/{t}", data=data)
        assert answer.status_code in (200, 204), answer.text
        return answer.content

    def mask(self, session: str, t: int, data: bytes) -> None:
        answer = self.ask("PUT", f"/v1/sessions/{session}/masks/{t}", data=data)
        assert answer.status_code == 204, answer.text

    def round(self, session: str, n: int, frame: int, mask: bytes) -> dict[str, Any]:
        image = {"Content-Type": "image/png"}
        answer = self.ask("PUT", f"/v1/sessions/{session}/rounds/{n}?frame={frame}", data=mask, headers=image)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def state(self, session: str) -> dict[str, Any]:
        return self.ask("GET", f"/v1/sessions/{session}").json()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
