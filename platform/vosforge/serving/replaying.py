"""A session brought back: its journal's entries done again, and their answers compared."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from vosforge.serving.journal import Entry, digest
from vosforge.serving.sessions import Interactive, Stream

logger = logging.getLogger(__name__)


def replay(session: Stream | Interactive, entries: Iterable[Entry]) -> Iterator[bool]:
    """Do what a journal says with a fresh session.

    Yields:
        For each entry whether its answer is the one that was given.

    Raises:
        UserError: for an entry that cannot be done again.
    """
    for number, entry in enumerate(entries):
        same = digest(_repeat(session, entry)) == entry.answer
        if not same:
            logger.warning("entry %s (%s %s) has another answer than before", number, entry.kind, entry.at)
        yield same


def _repeat(session: Stream | Interactive, entry: Entry) -> bytes:
    """Do again what an entry says; its answer."""
    if entry.kind == "mask":
        session.put_mask(entry.at, entry.data)
        return b""
    if entry.kind == "frame":
        return session.put_frame(entry.at, entry.data)
    if entry.kind == "undone":
        session.undo(entry.at)
        return b""
    return session.put_round(session.state["rounds"] + 1, entry.at, entry.kind, entry.data)
