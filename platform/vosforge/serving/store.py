"""The sessions of one replica: opened, fed, remembered in the journal, brought back from it, and closed when idle."""

from __future__ import annotations

import logging
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vosforge.errors import UserError
from vosforge.serving.batching import Batcher
from vosforge.serving.holding import Held, Holding
from vosforge.serving.interactive import Interactive
from vosforge.serving.journal import Entry, Journal, digest
from vosforge.serving.limits import Failed, Limits, NotFound, Refused, Unready
from vosforge.serving.media import read_clip, write_masks
from vosforge.serving.models import Shelf
from vosforge.serving.replaying import bringing_back, replay
from vosforge.serving.sessions import Kind, Stream, segment_clip

logger = logging.getLogger(__name__)
_ID = re.compile(r"(\d{1,4})-[0-9a-f]{32}")
# How often a request that fails for no known reason is tried, with the session brought back in between.
_TRIES = 2


def slot_of(session: str) -> int:
    """The slot whose replica holds a session, which its id begins with.

    Raises:
        NotFound: for what is no id.
    """
    match = _ID.fullmatch(session)
    if match is None:
        raise NotFound("session: expected an id as opening one answers it")
    return int(match[1])


class SessionStore:
    """All sessions of one replica; every method may be called from any thread.

    A session's requests run one after another, those of different sessions side by side. Every input is in the journal
    before it is answered; a session that is not in memory, because another process held it or because its last entry
    could not be written, is brought back by replaying the journal when it is asked for.

    Args:
        shelf: the models.
        journal: where inputs are kept.
        limits: of what clients may ask.
        slot: number of this store; the ids of its sessions begin with it.
        batch: most frames in one forward.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        shelf: Shelf,
        journal: Journal,
        limits: Limits,
        slot: int = 0,
        batch: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._shelf, self._journal, self._limits, self._slot = shelf, journal, limits, slot
        self._batcher, self._clock = Batcher(batch), clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        # What an earlier process held is closed in time, too, when nobody asks for it.
        self._holding = Holding(limits, ((name, Held(clock())) for name in journal.sessions(f"{slot}-")))

    def open(self, kind: Kind, short_side: int | None = None) -> dict[str, Any]:
        """Open a session with the newest model.

        Raises:
            Refused: for an unknown kind, a short side below 16, or one session too many.
        """
        if kind not in ("stream", "interactive"):
            raise Refused(f"kind: expected stream or interactive, found {str(kind)[:40]!r}")
        if short_side is not None and (type(short_side) is not int or not 16 <= short_side <= self._limits.max_side):
            expected = f"pixels from 16 to {self._limits.max_side}"
            raise Refused(f"short_side: expected {expected}, found {str(short_side)[:40]}")
        served = self._shelf.current
        description = {"kind": kind, "short_side": short_side, "model": served.version}
        name = f"{self._slot}-{secrets.token_hex(16)}"
        self._holding.add(name, Held(self._clock(), session=self._begin(description)))
        try:
            self._journal.open(name, description)
        except (UserError, OSError) as error:
            self._holding.remove(name)
            raise Unready("the journal cannot be written; try again") from error
        self._count("opened")
        return {"session": name, **description, "model": served.name, "idle_seconds": self._limits.idle_seconds}

    def state(self, name: str) -> dict[str, Any]:
        """What a session has so far; during a round also its progress."""
        held = self._find(name)
        if held.session is None:
            with self._use(name, (Stream, Interactive), "state"):
                pass
        held.used = self._clock()
        session = held.session
        if session is None:
            raise Unready(f"session {name}: is being brought back; try again")
        opened = {"session": name, "kind": session.kind, "model": session.served.name}
        return {**opened, **session.state, "bytes": held.bytes}

    def put_mask(self, name: str, t: int, data: bytes) -> None:
        """`Stream.put_mask`, in the journal."""
        with self._use(name, (Stream,), f"mask {t} {digest(data)}") as held:
            if held.session.knows_mask(t, data):
                return
            self._holding.check_journal(held, len(data))
            held.session.put_mask(t, data)
            self._enter(name, held, Entry("mask", t, data, digest(b"")))

    def put_frame(self, name: str, t: int, data: bytes) -> bytes:
        """`Stream.put_frame` or `Interactive.put_frame`, in the journal."""
        with self._use(name, (Stream, Interactive), f"frame {t} {digest(data)}") as held:
            if held.session.knows(t, data):
                return held.session.put_frame(t, data)
            self._holding.check_memory(held, len(data))
            self._holding.check_journal(held, len(data))
            answer = held.session.put_frame(t, data)
            self._enter(name, held, Entry("frame", t, data, digest(answer)))
            self._count("frames")
            return answer

    def put_round(self, name: str, n: int, t: int, kind: str, data: bytes) -> dict[str, Any]:
        """`Interactive.put_round`, in the journal; the session's state after it."""
        with self._use(name, (Interactive,), f"{kind} {n} {t} {digest(data)}") as held:
            if not held.session.knows_round(n, t, kind, data):
                self._holding.check_memory(held, len(data))
                self._holding.check_journal(held, len(data))
                answer = held.session.put_round(n, t, kind, data)
                self._enter(name, held, Entry(kind, t, data, digest(answer)))
                self._count("rounds")
        return self.state(name)

    def undo(self, name: str, n: int) -> dict[str, Any]:
        """`Interactive.undo`, in the journal; the session's state after it."""
        with self._use(name, (Interactive,), f"undo {n}") as held:
            self._holding.check_journal(held, 0)
            before = held.session.state["rounds"]
            held.session.undo(n)
            if held.session.state["rounds"] < before:
                self._enter(name, held, Entry("undone", n, b"", digest(b"")))
        return self.state(name)

    def mask(self, name: str, t: int) -> bytes:
        """The mask of one frame, a palette PNG."""
        with self._use(name, (Stream, Interactive), f"mask of {t}") as held:
            return held.session.mask(t)

    def masks(self, name: str) -> bytes:
        """The masks of all frames, a tar archive of palette PNGs."""
        with self._use(name, (Stream, Interactive), "masks") as held:
            frames = range(held.session.state["frames"])
            return write_masks([f"{t:05d}" for t in frames], [held.session.mask(t) for t in frames])

    def close(self, name: str) -> None:
        """Close a session and delete its journal; nothing to do when it is closed."""
        try:
            held = self._find(name)
        except NotFound:
            return
        with self._holding.turn(held):
            self._drop(name, held)

    def segment(self, data: bytes) -> bytes:
        """Masks of a whole clip: a tar archive as `read_clip` takes it -> one of palette PNGs named as its frames.

        Raises:
            Failed: when it cannot be segmented for no known reason.
        """
        clip, held = read_clip(data, self._limits), Held(self._clock())

        def count(found: int) -> None:
            held.bytes = len(data) + found
            self._holding.check_memory(held, 0, "clip")

        try:
            with self._holding.clip(held):
                answers = segment_clip(self._shelf.current, clip, self._limits, self._batcher, count)
        except UserError:
            raise
        except Exception as error:
            logger.exception("a clip failed")
            raise Failed("clip: could not be segmented; the server's log says why") from error
        self._count("clips")
        self._count("frames", len(answers))
        return write_masks(clip.names, answers)

    def refresh(self) -> None:
        """Give new sessions the newest model, if it is another one by now; to be called now and then."""
        if self._shelf.refresh():
            self._count("roll_overs")

    def expire(self) -> None:
        """Close sessions that are idle; to be called now and then."""
        for name, held in self._holding.sessions():
            # One that is in use is not idle.
            if held.lock.acquire(blocking=False):
                try:
                    if not held.closed and self._clock() - held.used > self._limits.idle_seconds:
                        self._drop(name, held)
                        self._count("expired")
                finally:
                    held.lock.release()

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and what is held now."""
        counted = ("opened", "expired", "frames", "rounds", "clips", "replayed", "differing", "roll_overs")
        return {
            **{name: self._counts[name] for name in counted},
            "batches": self._batcher.batches,
            "steps": self._batcher.steps,
            "sessions": len(self._holding),
            "bytes": self._holding.bytes,
            "model": self._shelf.current.name,
            "versions": self._shelf.versions,
        }

    def stop(self) -> None:
        """End the store's thread; sessions stay in the journal."""
        self._batcher.close()

    def _count(self, what: str, more: int = 1) -> None:
        with self._lock:
            self._counts[what] += more

    def _begin(self, description: dict[str, Any]) -> Stream | Interactive:
        served = self._shelf.get(description["model"])
        if description["kind"] == "stream":
            return Stream(served, self._limits, self._batcher, description["short_side"])
        return Interactive(served, self._limits, description["short_side"])

    def _find(self, name: str) -> Held:
        if slot_of(name) != self._slot:
            raise NotFound(f"session {name}: is not held here")
        held = self._holding.get(name)
        if held is None:
            raise NotFound(
                f"session {name}: no such session; it was closed, or had no request for "
                f"{self._limits.idle_seconds:g} seconds"
            )
        return held

    @contextmanager
    def _use(self, name: str, kinds: tuple[type, ...], request: str) -> Iterator[Any]:
        """A session for one request, replayed when it is not in memory; equal requests have equal names."""
        held = self._find(name)
        with self._holding.turn(held):
            if held.closed:
                raise NotFound(f"session {name}: was closed")
            if held.failed == (request, _TRIES):
                raise Failed(f"session {name}: this request failed {_TRIES} times; the server's log says why")
            if held.session is None:
                self._replay(name, held)
            if not isinstance(held.session, kinds):
                raise Refused(f"session {name}: is {held.session.kind}, and has no such requests")
            held.used = self._clock()
            try:
                yield held
                held.failed = ("", 0)
                if held.session is not None:
                    held.bytes = held.session.bytes
            except UserError:
                raise
            except Exception as error:
                # Half a step may be in it; the journal has the whole ones.
                held.leave_memory()
                held.failed = (request, held.failed[1] + 1 if held.failed[0] == request else 1)
                logger.exception("a request of session %s failed", name)
                raise Unready(f"session {name}: the request failed; try again") from error
            finally:
                held.used = self._clock()

    def _enter(self, name: str, held: Held, entry: Entry) -> None:
        """Write down what was done, or forget it and have the client ask again."""
        try:
            self._journal.add(name, held.entries, entry)
        except (UserError, OSError) as error:
            held.leave_memory()
            logger.warning("the journal of session %s cannot be written: %s", name, error)
            raise Unready(f"session {name}: the journal cannot be written; try again") from error
        held.entries += 1
        held.written += len(entry.data)

    def _replay(self, name: str, held: Held) -> None:
        """Bring a session back from its journal; answers that came out otherwise are counted."""
        with bringing_back(name):
            opened = self._journal.opened(name)
            if opened is None:
                self._drop(name, held)
                raise NotFound(f"session {name}: was closed")
            session, held.entries, held.written = self._reload(name, opened), 0, 0
            for entry, same in replay(session, self._journal.entries(name)):
                self._count("differing", int(not same))
                held.entries += 1
                held.written += len(entry.data)
                held.used = self._clock()
        held.session, held.bytes = session, session.bytes
        self._count("replayed")

    def _reload(self, name: str, opened: dict[str, Any]) -> Stream | Interactive:
        """The session as it was opened; its model may be out of reach for a while."""
        try:
            return self._begin(opened)
        except UserError as error:
            logger.warning("the model of session %s cannot be loaded: %s", name, error)
            raise Unready(f"session {name}: its model cannot be loaded; try again") from error

    def _drop(self, name: str, held: Held) -> None:
        held.closed = True
        held.leave_memory()
        self._holding.remove(name)
        try:
            self._journal.forget(name)
        except (UserError, OSError) as error:
            logger.warning("the journal of session %s cannot be deleted: %s", name, error)
