"""What a person sees of a program: progress, one-line errors, logging."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn

from tqdm import tqdm

from vosforge.errors import UserError

_SECONDS_BETWEEN_LINES = 10.0
# Time left follows from the speed over this many lines, so that it tells soon when work becomes slower.
_LINES_OF_SPEED = 30
_verbose = False
_heard_sigterm = False


def verbosity(verbose: bool) -> None:
    """Whether errors show their traceback and libraries their information messages."""
    global _verbose
    _verbose = verbose
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("vosforge").setLevel(logging.INFO)


def run(program: Callable[[], object], resumes: bool = True) -> None:
    """Run a program's main function and end the process with its status.

    0 on success; 2 with one line on stderr for a `UserError`; 130 after Ctrl-C and 143 after SIGTERM, saying what
    became of the work. Both end what is under way as an error does, so that nothing half written is left.

    Args:
        program: the main function.
        resumes: whether the same command goes on where it stopped; otherwise it writes nothing before it has finished.
    """
    heed_sigterm()
    try:
        program()
    except UserError as error:
        if _verbose:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        left = "the same command goes on from the last finished piece of work" if resumes else "nothing was written"
        print(f"stopped; {left}", file=sys.stderr)
        sys.exit(143 if _heard_sigterm else 130)


def heed_sigterm() -> None:
    """End on SIGTERM as on Ctrl-C; to be said again after Ray was started, which aborts the process instead."""
    # Python hears signals in the main thread alone.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    # An exception of our own would not reach `run`: Ray makes it a plain KeyboardInterrupt.
    global _heard_sigterm
    _heard_sigterm = True
    raise KeyboardInterrupt


class Progress:
    """A progress line with rate and time left: a bar on a terminal, a line now and then in a log.

    Args:
        total: units of work.
        label: what is done.
        unit: one unit's name.
    """

    def __init__(self, total: int, label: str, unit: str = "it"):
        self.total, self.label, self.unit = total, label, unit
        self._done, self._shown = 0, 0.0
        self._marks = [(time.monotonic(), 0)]
        self._bar = tqdm(total=total, desc=label, unit=unit, dynamic_ncols=True) if sys.stderr.isatty() else None

    def resume(self, done: int) -> None:
        """Count from here on: `done` units were finished before, and say nothing about the speed."""
        self._done, self._marks = done, [(time.monotonic(), done)]
        if self._bar is not None:
            self._bar.reset()
            self._bar.initial = self._bar.n = self._bar.last_print_n = done

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` units in all are finished."""
        advanced, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.update(advanced)
            self._bar.set_postfix_str(note, refresh=False)
            return
        now = time.monotonic()
        if now - self._shown >= _SECONDS_BETWEEN_LINES or done >= self.total:
            self._shown = now
            since, before = self._marks[0]
            self._marks = [*self._marks[-_LINES_OF_SPEED + 1 :], (now, done)]
            rate = (done - before) / (now - since) if now > since else 0.0
            left = f"{_duration((self.total - done) / rate)} left" if rate > 0 else "starting"
            print(f"{self.label}: {done}/{self.total} {self.unit}, {rate:.1f}/s, {left} {note}".rstrip(), flush=True)

    def say(self, line: str) -> None:
        """Print a line without spoiling the bar."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line)

    def close(self) -> None:
        """End the line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 5 h 10 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
