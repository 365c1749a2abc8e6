"""The journal: what every session was told, outside the process that holds it, so that another can hold it again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vosforge.serving.limits import Gone
from vosforge.storage import delete_folder, join, list_names, read_bytes, write_bytes

_OPENED = "opened.json"
_NAME = re.compile(r"(\d{8})-([a-z]+)-(\d+)-([0-9a-f]{16})-([0-9a-f]{16})")


def digest(*parts: bytes | np.ndarray) -> str:
    """Short hex digest by which equal inputs and equal answers are recognised; that of parts is that of their whole."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """One thing that a session was told, and did.

    Attributes:
        kind: "mask" or "frame" of a stream; "frame", "corrected", "drawn" or "undone" of an interactive session.
        at: the frame's position.
        data: the request's body.
        answer: digest of what was answered.
    """

    kind: str
    at: int
    data: bytes
    answer: str


class Journal:
    """A folder a session, a file an entry: its name says what it is, its content is the body as it was sent.

    An entry is written as a whole before the client has its answer. So what was answered is in the journal, and of
    what was not answered at most the last entry. Names have the digests of bodies, so that one that was changed is
    found; an entry that is lost at the end is not: the client's next request then is not what comes next.

    Args:
        uri: a local folder, or `s3://` URI, that all replicas reach.
    """

    def __init__(self, uri: str):
        self.uri = uri

    def open(self, session: str, description: dict[str, Any]) -> None:
        """Begin a session's entries with what it was opened with."""
        write_bytes(join(self.uri, session, _OPENED), json.dumps(description).encode())

    def opened(self, session: str) -> dict[str, Any] | None:
        """What a session was opened with; None when there is no such session.

        Raises:
            Gone: when it is damaged.
        """
        if _OPENED not in list_names(join(self.uri, session)):
            return None
        try:
            found = json.loads(read_bytes(join(self.uri, session, _OPENED)))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _damaged(session, _OPENED) from error
        if not _is_description(found):
            raise _damaged(session, _OPENED)
        return found

    def add(self, session: str, number: int, entry: Entry) -> None:
        """Write the entry of that number, from 0."""
        name = f"{number:08d}-{entry.kind}-{entry.at}-{digest(entry.data)}-{entry.answer}"
        write_bytes(join(self.uri, session, name), entry.data)

    def entries(self, session: str) -> Iterator[Entry]:
        """The entries in order.

        Raises:
            Gone: when one is missing, or has another content than it had.
        """
        found = [match for name in list_names(join(self.uri, session)) if (match := _NAME.fullmatch(name))]
        for number, match in enumerate(found):
            if int(match[1]) != number:
                raise Gone(f"session {session}: entry {number} of its journal is missing; open another session")
            data = read_bytes(join(self.uri, session, match[0]))
            if digest(data) != match[4]:
                raise _damaged(session, f"entry {number}")
            yield Entry(match[2], int(match[3]), data, match[5])

    def sessions(self, prefix: str) -> list[str]:
        """Sessions with entries, of those whose ids begin so."""
        return [name for name in list_names(self.uri) if name.startswith(prefix)]

    def forget(self, session: str) -> None:
        """Delete a session's entries."""
        delete_folder(join(self.uri, session))


def _is_description(found: Any) -> bool:
    """Whether that is what a session can be opened with."""
    return (
        isinstance(found, dict)
        and found.get("kind") in ("stream", "interactive")
        and isinstance(found.get("model"), str)
        and type(found.get("short_side", "")) in (int, type(None))
    )


def _damaged(session: str, what: str) -> Gone:
    return Gone(f"session {session}: its journal is damaged ({what}); open another session")
