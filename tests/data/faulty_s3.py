"""A real S3 server on this machine, and a way to it on which answers fail, come late or break off."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

Fault = Callable[[int, str, str], str | float | None]
"""Number, method and path of a request -> "500", "503", "cut" (half an answer), "lost" (done, and no answer),
seconds to wait, or None."""


@contextlib.contextmanager
def s3_server(ip: str = "127.0.0.1") -> Iterator[str]:
    """The address of a server that stores in memory, and forgets at its end: moto's buckets are the process's."""
    server = ThreadedMotoServer(ip_address=ip, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        with contextlib.closing(http.client.HTTPConnection(host, port)) as connection:
            connection.request("POST", "/moto-api/reset")
            assert connection.getresponse().status == 200
        server.stop()


@contextlib.contextmanager
def faulty(endpoint: str, fault: Fault, ip: str = "127.0.0.1") -> Iterator[tuple[str, list[str]]]:
    """An address that passes requests on to `endpoint`, but for those that `fault` spoils; and what was spoilt."""
    spoilt: list[str] = []
    lock = threading.Lock()
    count = iter(range(10**9))

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self._body()
            with lock:
                found = fault(next(count), self.command, self.path)
                if found is not None:
                    spoilt.append(f"{self.command} {self.path}: {found}")
            if isinstance(found, float):
                time.sleep(found)
            if found in ("500", "503"):
                self.send_response(int(found))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            upstream = http.client.HTTPConnection(endpoint.removeprefix("http://"))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            data = answer.read()
            if found == "lost":
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if found == "cut" else data)
            self.close_connection = found == "cut"

        def _body(self) -> bytes:
            if self.headers.get("Expect") == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer((ip, 0), Proxy)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{ip}:{server.server_address[1]}", spoilt
    finally:
        server.shutdown()
        server.server_close()
