"""What a replica holds, and whether there is room for more."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vosforge.serving.interactive import Interactive
from vosforge.serving.limits import Busy, Limits, TooLarge, TooMany
from vosforge.serving.sessions import Stream

# Requests of one session that run or wait, each in a thread.
AT_ONCE = 4


@dataclass
class Held:
    """A session, or the place of one that is in the journal alone; or a clip.

    Attributes:
        used: time of the latest request.
        lock: held by the request that runs.
        session: None where it is not in memory.
        entries, written: of its journal, and their bytes.
        bytes: memory held.
        asked: requests that run or wait.
        failed: the latest request that failed for no known reason, and how often it did since another one succeeded.
        closed: whether it is there no longer.
    """

    used: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    session: Stream | Interactive | None = None
    entries: int = 0
    written: int = 0
    bytes: int = 0
    asked: int = 0
    failed: tuple[str, int] = ("", 0)
    closed: bool = False

    def leave_memory(self) -> None:
        """Forget what is in memory; the journal has it."""
        self.session = None
        self.bytes = self.entries = self.written = 0


class Holding:
    """All sessions and clips of a replica, within its limits; every method may be called from any thread.

    Args:
        limits: of what is held.
        sessions: those that are there at the start.
    """

    def __init__(self, limits: Limits, sessions: Iterable[tuple[str, Held]]):
        self._limits, self._lock = limits, threading.Lock()
        self._sessions = dict(sessions)
        self._clips: list[Held] = []

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def bytes(self) -> int:
        """Memory held by all."""
        with self._lock:
            return self._sum()

    def get(self, name: str) -> Held | None:
        """A session."""
        with self._lock:
            return self._sessions.get(name)

    def sessions(self) -> list[tuple[str, Held]]:
        """All sessions."""
        with self._lock:
            return list(self._sessions.items())

    def add(self, name: str, held: Held) -> None:
        """Hold another session.

        Raises:
            TooMany: when there is no room.
        """
        with self._lock:
            self._check_place()
            self._sessions[name] = held

    def remove(self, name: str) -> None:
        """Hold a session no longer."""
        with self._lock:
            self._sessions.pop(name, None)

    @contextmanager
    def clip(self, held: Held) -> Iterator[None]:
        """Hold a clip for as long as this lasts.

        Raises:
            TooMany: when there is no room.
        """
        with self._lock:
            self._check_place()
            self._clips.append(held)
        try:
            yield
        finally:
            with self._lock:
                self._clips = [each for each in self._clips if each is not held]

    @contextmanager
    def turn(self, held: Held) -> Iterator[None]:
        """Wait for a session's other requests, so that one runs at a time.

        Raises:
            Busy: when many wait already, that one session's do not take the threads of all.
        """
        with self._lock:
            if held.asked >= AT_ONCE:
                raise Busy(f"session: {AT_ONCE} of its requests run or wait; wait for their answers")
            held.asked += 1
        try:
            with held.lock:
                yield
        finally:
            with self._lock:
                held.asked -= 1

    def check_memory(self, held: Held, added: int, what: str = "session") -> None:
        """Refuse more bytes than a session or clip, or all of them together, may hold.

        Raises:
            TooLarge: when it may not hold so much.
            TooMany: when all hold so much that nothing can be added now.
        """
        most = self._limits.session_mib
        if held.bytes + added > most << 20:
            out = "send it in parts" if what == "clip" else "undo rounds, or close it and open another"
            raise TooLarge(f"{what}: holds {held.bytes / 2**20:.0f} MiB of at most {most}; {out}")
        with self._lock:
            self._check_sum(added)

    def check_journal(self, held: Held, added: int) -> None:
        """Refuse an entry that a session's journal has no room for.

        Raises:
            TooLarge: always, from then on.
        """
        most, most_mib = self._limits.journal_entries, self._limits.journal_mib
        if held.entries >= most or held.written + added > most_mib << 20:
            found = f"{held.entries} entries of {held.written / 2**20:.0f} MiB"
            raise TooLarge(f"session: its journal has {found} of at most {most} of {most_mib}; open another session")

    def _check_place(self) -> None:
        most = self._limits.max_sessions
        if len(self._sessions) + len(self._clips) >= most:
            raise TooMany(f"sessions: {most} sessions and clips run here; close one, or wait")
        self._check_sum()

    def _check_sum(self, added: int = 0) -> None:
        most = self._limits.replica_mib
        if self._sum() + added > most << 20:
            raise TooMany(f"memory: sessions and clips here hold the {most} MiB that they may; try again")

    def _sum(self) -> int:
        return sum(each.bytes for each in (*self._sessions.values(), *self._clips))
