"""What is still to be sent, in a file: a process that is killed leaves it to the next."""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

from vosforge.storage import delete, download_file, exists, is_local, local_path, upload_file

Record = dict[str, Any]
_MOST_BYTES = 200_000_000
_MOST_READ = 1 << 20


class Journal:
    """A queue of records in a file, one JSON object a line; it may be written and read by two threads.

    Args:
        uri: of the file, local or `s3://`; None keeps records for the life of this process alone. A remote file is
            fetched by `open` and brought up to date by `close`; meanwhile records are on this machine.
    """

    def __init__(self, uri: str | None):
        self.uri = uri
        self._lock = threading.Lock()
        self._sent = 0
        self._scratch: tempfile.TemporaryDirectory | None = None
        if uri is not None and is_local(uri):
            self._path = local_path(uri)
        else:
            self._scratch = tempfile.TemporaryDirectory(prefix="unsent-")
            self._path = Path(self._scratch.name) / "unsent.jsonl"
        self._left_remotely = False

    def open(self) -> None:
        """Fetch what an earlier process left in remote storage; it comes before what was put already.

        Raises:
            OSError, UserError: when the storage fails.
        """
        if not self._remote or not exists(self.uri):
            return
        fetched = download_file(self.uri, self._path.with_suffix(".fetched"))
        with self._lock:
            put = self._path.read_bytes() if self._path.exists() else b""
            self._path.write_bytes(fetched.read_bytes() + put)
        self._left_remotely = True

    def put(self, record: Record) -> None:
        """Add a record at the end.

        Raises:
            OSError: when it cannot be written, or there are too many.
        """
        line = f"{json.dumps(record)}\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as file:
                end = file.tell()
                if end > _MOST_BYTES:
                    raise OSError(f"{self._path} has grown beyond {_MOST_BYTES / 1e6:.0f} MB")
                # The last line of a process that was killed may be half a line.
                if end and self._sent == 0 and not self._ends_line(end):
                    line = f"\n{line}"
                file.write(line.encode())

    def peek(self) -> tuple[list[Record], int]:
        """The oldest records, as many as are sent at once, and where in the file they end."""
        with self._lock:
            if not self._path.exists():
                return [], 0
            with self._path.open("rb") as file:
                file.seek(self._sent)
                data = file.read(_MOST_READ) + file.readline()
        records = [_parsed(line) for line in data.splitlines()]
        return [record for record in records if record is not None], self._sent + len(data)

    def drop(self, end: int) -> None:
        """Forget what lies before a place: it is sent. A file of which all is sent goes away."""
        with self._lock:
            self._sent = end
            if self._path.exists() and self._path.stat().st_size <= end:
                self._path.unlink()
                self._sent = 0

    def close(self) -> None:
        """Leave what is not sent to a later process.

        Raises:
            OSError, UserError: when remote storage fails.
        """
        try:
            if self._remote and self._path.exists():
                upload_file(self._path, self.uri)
            elif self._left_remotely:
                delete(self.uri)
        finally:
            if self._scratch is not None:
                self._scratch.cleanup()

    @property
    def empty(self) -> bool:
        """Whether all is sent."""
        return not self._path.exists()

    @property
    def _remote(self) -> bool:
        return self.uri is not None and not is_local(self.uri)

    def _ends_line(self, end: int) -> bool:
        with self._path.open("rb") as file:
            file.seek(end - 1)
            return file.read(1) == b"\n"


def _parsed(line: bytes) -> Record | None:
    """The record of a line; None for one whose writer was killed in the middle of it."""
    try:
        return json.loads(line)
    except ValueError:
        return None
