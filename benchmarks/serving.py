"""Serving: sessions that stream at the same time, for minutes; latency, what was lost, and memory.

    python benchmarks/serving.py [--sessions 16] [--minutes 10] [--replicas 1] [--fps 0] [--kill]
    python benchmarks/serving.py --url http://127.0.0.1:8000    # a server that runs already

Without --url `jobs/serve.py` is started with the bundled network (nano) on a free port. Every session sends 240p JPEG
frames one after the other, each as soon as the one before is answered, or --fps a second; once in --clip frames it is
closed and another opened, so that all sizes of memory are met. --kill ends a replica in the middle.

Lost is a frame that was sent and has no answer in the end, or another one than `GET masks` gives. Wrong is one of the
first client whose mask is not the one that the bundled network finds in this process, without a server; a thousandth
of the pixels may differ, as batches of other sizes round otherwise. With --url they are looked for only with --bundled,
which says that the server has that network. A 503, or a 500 without JSON when the ingress itself ended, is answered by
the same request again, as the interface says, for 5 minutes at most; its time counts in the latency.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import requests

from vosforge.data.image_files import decode_frame, decode_mask, encode_frame, encode_mask
from vosforge.propagation.model import BUNDLED, Model
from vosforge.propagation.segmenter import segment_frame

ROOT = Path(__file__).resolve().parent.parent
SIZE = (240, 427)
# Frames of the first client's sessions that are also segmented without a server.
COMPARED = 40
PATIENCE = 300.0


def film(seed: int, length: int) -> tuple[list[bytes], bytes]:
    """JPEG frames of a disc that wanders over smooth noise, and the PNG of its first mask."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    frames, mask = [], np.zeros(SIZE, np.uint8)
    for t in range(length):
        centre = int(213 + 120 * np.sin(t / 15 + seed)), int(120 + 50 * np.cos(t / 11))
        frames.append(encode_frame(cv2.circle(ground.copy(), centre, 35, (230, 40 * (seed % 6), 90), -1)))
        if t == 0:
            cv2.circle(mask, centre, 35, 1, -1)
    return frames, encode_mask(mask)


def segmented_alone(frames: list[bytes], first: bytes) -> list[np.ndarray]:
    """Masks of the bundled network without a server."""
    model = Model.load(BUNDLED)
    segmenter, given = model.start(), {0: decode_mask(first, "mask")}
    return [
        segment_frame(segmenter, decode_frame(frame, "frame"), given.get(t), model.short_side)
        for t, frame in enumerate(frames)
    ]


def count_wrong(answers: list[bytes], expected: list[np.ndarray]) -> int:
    """Masks of which more than a thousandth of the pixels are not as expected."""
    found = (decode_mask(answer, "answer") for answer in answers)
    return sum(float((a != b).mean()) > 1e-3 for a, b in zip(found, expected, strict=False))


class Sender(threading.Thread):
    """One client: sessions one after the other until the time is up."""

    def __init__(self, url: str, seed: int, until: float, fps: float, length: int, headers: dict[str, str]):
        super().__init__(daemon=True)
        self.url, self.until, self.fps = url, until, fps
        self.expected: list[np.ndarray] = []
        self.frames, self.first = film(seed, length)
        self.seconds: list[float] = []
        self.counts: Counter[str] = Counter()
        self._web = requests.Session()
        self._web.headers.update(headers)

    def run(self) -> None:
        try:
            while time.monotonic() < self.until:
                self._session()
        except requests.RequestException as error:
            print(f"a client gave up: {error}", file=sys.stderr)
            self.counts["failed"] += 1

    def _session(self) -> None:
        name = self._ask("POST", "/v1/sessions", json={"kind": "stream"}).json()["session"]
        self._ask("PUT", f"/v1/sessions/{name}/masks/0", data=self.first)
        answers, begun = [], time.monotonic()
        for t, frame in enumerate(self.frames):
            if time.monotonic() >= self.until:
                break
            if self.fps:
                time.sleep(max(0.0, begun + t / self.fps - time.monotonic()))
            started = time.monotonic()
            answers.append(self._ask("PUT", f"/v1/sessions/{name}/frames/{t}", data=frame).content)
            self.seconds.append(time.monotonic() - started)
        self.counts["sent"] += len(answers)
        kept = self._ask("GET", f"/v1/sessions/{name}/masks").content
        with tarfile.open(fileobj=io.BytesIO(kept)) as archive:
            found = [archive.extractfile(entry).read() for entry in archive]
        same = sum(a == b for a, b in zip(answers, found, strict=False))
        self.counts["lost"] += len(answers) - same
        self.counts["wrong"] += count_wrong(answers, self.expected)
        self.counts["compared"] += min(len(answers), len(self.expected))
        self._ask("DELETE", f"/v1/sessions/{name}")
        self.counts["sessions"] += 1

    def _ask(self, method: str, path: str, **options: object) -> requests.Response:
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._web.request(method, f"{self.url}{path}", timeout=PATIENCE, **options)
            self.counts[str(answer.status_code)] += 1
            is_json = answer.headers.get("Content-Type", "").startswith("application/json")
            passes = answer.status_code == 503 or (answer.status_code == 500 and not is_json)
            if not passes or time.monotonic() > deadline:
                answer.raise_for_status()
                return answer
            time.sleep(float(answer.headers.get("Retry-After", 1)))


def start_server(folder: str, sessions: int, replicas: int) -> tuple[subprocess.Popen, str]:
    """`jobs/serve.py` on a free port, ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "jobs" / "serve.py"), "--port", str(port), "--replicas", str(replicas)]
    command += ["--journal", f"{folder}/journal", "--max-sessions", str(sessions + 1)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    for line in server.stdout:
        print(line, end="", flush=True)
        if line.startswith("serving "):
            threading.Thread(target=server.stdout.read, daemon=True).start()
            return server, f"http://127.0.0.1:{port}"
    raise SystemExit(f"the server ended with status {server.wait()}")


def below(ancestor: int) -> list[int]:
    """The processes under one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [ancestor]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def replica_processes(server: int) -> list[int]:
    """The processes that hold sessions."""
    titles = {process: Path(f"/proc/{process}/cmdline").read_bytes() for process in below(server)}
    return [process for process, title in titles.items() if b"ServeReplica" in title and b"replica-" in title]


def resident(process: int) -> float:
    """MiB of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(server: subprocess.Popen | None, until: float, kill: bool) -> list[float]:
    """MiB of all replicas every 5 seconds; in the middle one replica is killed where that is asked for."""
    begun, held = time.monotonic(), []
    while (now := time.monotonic()) < until:
        if server is not None:
            processes = replica_processes(server.pid)
            held.append(sum(resident(process) for process in processes))
            if kill and now - begun > (until - begun) / 2:
                os.kill(processes[0], signal.SIGKILL)
                kill = False
        time.sleep(max(0.0, min(5.0, until - time.monotonic())))
    return held


def measure(options: argparse.Namespace, server: subprocess.Popen | None, url: str) -> dict[str, object]:
    """Send for the time asked for, and count."""
    token = os.environ.get("VOSFORGE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    known = server is not None or options.bundled
    frames, first = film(0, options.clip)
    expected = segmented_alone(frames[:COMPARED], first) if known else []
    begun = time.monotonic()
    until = begun + 60 * options.minutes
    arguments = (until, options.fps, options.clip, headers)
    senders = [Sender(url, seed, *arguments) for seed in range(options.sessions)]
    senders[0].expected = expected
    for sender in senders:
        sender.start()
    held = watch(server, until, options.kill)
    for sender in senders:
        sender.join()
    seconds = np.array([s for sender in senders for s in sender.seconds])
    counts = sum((sender.counts for sender in senders), Counter())
    latency = {f"p{q}": round(1000 * float(np.percentile(seconds, q))) for q in (50, 90, 95, 99, 100)}
    # Replicas that were starting are left out of the growth.
    grown = (held[len(held) // 4 : len(held) // 4 + 1] or [0.0])[0], (held[-1:] or [0.0])[0]
    return {
        "sessions": options.sessions,
        "minutes": options.minutes,
        "frames": counts["sent"],
        "frames_per_second": round(len(seconds) / (time.monotonic() - begun), 2),
        "milliseconds": latency,
        "lost": counts["lost"],
        "compared": counts["compared"],
        "wrong": counts["wrong"],
        "clients_failed": counts["failed"],
        "answered_503": counts["503"],
        "answered_500": counts["500"],
        "sessions_closed": counts["sessions"],
        "replicas_mib": {"after a quarter": round(grown[0]), "at the end": round(grown[1])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of a server that runs; by default one is started")
    parser.add_argument("--bundled", action="store_true", help="the server of --url has the bundled network")
    parser.add_argument("--sessions", type=int, default=16, help="open at the same time")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--replicas", type=int, default=1, help="of the server that is started")
    parser.add_argument("--fps", type=float, default=0.0, help="frames a second of each session; 0: as answered")
    parser.add_argument("--clip", type=int, default=200, help="frames of a session before the next one is opened")
    parser.add_argument("--kill", action="store_true", help="kill a replica in the middle")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, url = (None, options.url) if options.url else start_server(folder, options.sessions, options.replicas)
        try:
            found = measure(options, server, url)
        finally:
            if server is not None:
                server.send_signal(signal.SIGTERM)
                server.wait()
    print(json.dumps(found, indent=1))
    if found["lost"] or found["wrong"] or found["clients_failed"]:
        told = f"{found['lost']} frames were lost, {found['wrong']} are wrong"
        raise SystemExit(f"{told}, {found['clients_failed']} clients gave up")


if __name__ == "__main__":
    main()
