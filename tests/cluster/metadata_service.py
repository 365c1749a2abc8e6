"""What EC2's metadata service, of the second version, answers to a spot machine: nothing, until it has to go."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataService:
    """Of one machine.

    Attributes:
        address: of the server.
        asked: how often it was asked with a token of its own.
        answer: status and body instead of its usual ones.
    """

    def __init__(self, address: str):
        self.address = address
        self.asked = 0
        self.tokens: set[str] = set()
        self.answer: tuple[int, bytes] = (404, b"")

    def announce(self, seconds: float) -> None:
        """The machine will be taken away in so many seconds."""
        at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        told = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self.answer = (200, json.dumps(told).encode())


@contextlib.contextmanager
def metadata_service() -> Iterator[MetadataService]:
    """A server on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
                self._send(400, b"")
                return
            token = secrets.token_hex()
            service.tokens.add(token)
            self._send(200, token.encode())

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") not in service.tokens:
                self._send(401, b"")
                return
            service.asked += 1
            if self.path == "/latest/meta-data/spot/instance-action":
                self._send(*service.answer)
            else:
                self._send(404, b"")

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service = MetadataService(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
