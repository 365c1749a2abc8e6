"""A thread between what is tracked and a store that may be slow, away or gone for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vosforge.tracking.journal import Journal, Record

# Records gather for this long, so that fast steps do not each cost a transaction.
_GATHER_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 60.0


class Outbox:
    """Hands records in order to a function that sends them; while that raises, they stay in a journal.

    Args:
        send: sends records, and returns those that should be tried later; raises when the store is away.
        journal: holds what is not sent.
        complain: hears why something is not sent.
    """

    def __init__(
        self, send: Callable[[list[Record]], list[Record]], journal: Journal, complain: Callable[[object], None]
    ):
        self._send, self._journal, self._complain = send, journal, complain
        self._closing = threading.Event()
        self._pause = _FIRST_PAUSE
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Send a record some time; never waits for the store."""
        try:
            self._journal.put(record)
        except OSError as error:
            self._complain(error)

    def close(self, seconds: float) -> None:
        """Send what is left; what cannot be sent within these seconds stays in the journal."""
        self._closing.set()
        self._thread.join(timeout=seconds)
        if self._thread.is_alive():
            self._complain("the store does not answer")
        try:
            self._journal.close()
        except Exception as error:
            self._complain(error)

    def _work(self) -> None:
        try:
            self._journal.open()
        except Exception as error:
            self._complain(error)
        retry_at = 0.0
        while True:
            # Asked first: what is put before closing is then sent below.
            over = self._closing.wait(_GATHER_SECONDS)
            if not over and time.monotonic() < retry_at:
                continue
            try:
                delayed = self._empty_journal()
                self._pause = _FIRST_PAUSE
            except Exception as error:
                # Whatever goes wrong with tracking, what is tracked must go on.
                self._complain(error)
                delayed = True
            if over:
                return
            if delayed:
                retry_at = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _empty_journal(self) -> bool:
        """Send all there is, but what asks for another time; whether something did."""
        later: list[Record] = []
        while True:
            records, end = self._journal.peek()
            if not records and self._journal.empty:
                break
            later += self._send(records)
            self._journal.drop(end)
        for record in later:
            self._journal.put(record)
        return bool(later)
