"""A session brought back: its journal's entries done again, and their answers compared."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vosforge.serving.interactive import Interactive
from vosforge.serving.journal import Entry, digest
from vosforge.serving.limits import Gone, NotFound, Unready
from vosforge.serving.sessions import Stream
from vosforge.storage import Unavailable

logger = logging.getLogger(__name__)


def replay(session: Stream | Interactive, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bool]]:
    """Do what a journal says with a fresh session.

    Yields:
        Each entry, and whether its answer is the one that was given.

    Raises:
        UserError: for an entry that cannot be done again.
    """
    for number, entry in enumerate(entries):
        same = digest(_repeat(session, entry)) == entry.answer
        if not same:
            logger.warning("entry %s (%s %s) has another answer than before", number, entry.kind, entry.at)
        yield entry, same


@contextmanager
def bringing_back(name: str) -> Iterator[None]:
    """Say of what goes wrong in this block whether the session can be brought back later.

    Raises:
        Gone: when its journal cannot be done again.
        Unready: when the reason passes.
    """
    try:
        yield
    except (NotFound, Gone, Unready):
        raise
    except (Unavailable, OSError) as error:
        logger.warning("the journal of session %s cannot be read: %s", name, error)
        raise Unready(f"session {name}: the journal cannot be read; try again") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # What the journal has was done before: it is another journal now, or the server's limits are lower.
        logger.warning("session %s cannot be brought back: %s", name, error)
        raise Gone(f"session {name}: its journal is damaged, or beyond the limits; open another session") from error
    except Exception as error:
        logger.exception("session %s cannot be brought back", name)
        raise Unready(f"session {name}: cannot be brought back now; try again") from error


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
