"""MLflow runs that never stop what they track."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from vosforge.tracking.journal import Journal
from vosforge.tracking.sending import Outbox
from vosforge.tracking.stores import first_line, redacted

_LOGGER = logging.getLogger(__name__)
_CLOSING_SECONDS = 30.0
# While a run is tracked, what fails is kept and tried again; waiting for it would only hold up the rest.
_RETRIES, _TIMEOUT = "1", "10"
_LONGEST_PARAM = 500
_LONGEST_TAG = 5000


class Entry:
    """One MLflow run of a tree: the parent, or one nested in it. Nothing here waits, and nothing raises."""

    def __init__(self, outbox: Outbox, child: str | None):
        self._outbox, self._child = outbox, child

    def params(self, values: dict[str, Any]) -> None:
        """Log parameters; a resumed run keeps those that it has. Long values are cut."""
        self._put("params", values={key: _cut(redacted(str(value)), _LONGEST_PARAM) for key, value in values.items()})

    def metrics(self, step: int, values: dict[str, Any], once: bool = False) -> None:
        """Log numbers at a step; values that are no numbers are left out.

        Args:
            step: x of the curves.
            values: by name.
            once: leave the step out when the run has it, or a later one, from a call with `once`: a resumed run
                computes some steps again.
        """
        numbers = {key: float(value) for key, value in values.items() if _is_number(value)}
        self._put("metrics", step=step, values=numbers, once=once)

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        self._put("tags", values={key: _cut(redacted(str(value)), _LONGEST_TAG) for key, value in values.items()})

    def artefact(self, uri: str | Path, folder: str = "") -> None:
        """Log a file, which must stay where it is, into a folder of the run's artefacts."""
        self._put("artefact", uri=str(uri), folder=folder, tries=0)

    def text(self, content: str, name: str) -> None:
        """Log a text as an artefact of that name."""
        self._put("text", content=redacted(content), name=name, tries=0)

    def begin(self) -> None:
        """Begin the run, or go on with it."""
        self._put("begin")

    def end(self, status: str = "FINISHED") -> None:
        """End the run, if it was ever begun and is not finished: "FINISHED", "FAILED" or "KILLED"."""
        self._put("end", status=status)

    def _put(self, kind: str, **content: Any) -> None:
        self._outbox.put({"kind": kind, "child": self._child, "time": time.time_ns() // 1_000_000, **content})


class Run(Entry):
    """One MLflow run and those nested in it, found again by name when a job resumes.

    What is logged goes into a file, and from there to the store by a thread: a store that is slow or away holds
    nothing up. What is not sent stays in the file until the store is back, for this process or, when it is killed, the
    next that tracks a run of this name. The first failure is logged.

    Args:
        name: of the run; a run of this name and experiment that exists is continued.
        store: tracking URI.
        folder: local folder or `s3://` URI for artefacts of a local store.
        experiment_name: of the experiment.
        unsent: file for what is not sent yet, local or `s3://`; None keeps it until this process ends.
    """

    def __init__(
        self,
        name: str,
        store: str,
        folder: str | Path = ".",
        experiment_name: str = "vosforge",
        unsent: str | None = None,
    ):
        # MLflow takes seconds to import, which programs that only refuse what they are given need not wait for.
        from vosforge.tracking.delivery import Delivery

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _TIMEOUT)
        # It would be printed with the user's name and password in it.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self.name, self._complained = name, False
        delivery = Delivery(name, store, folder, experiment_name, self._complain)
        super().__init__(Outbox(delivery.send, Journal(unsent), self._complain), None)
        self.begin()

    def child(self, name: str) -> Entry:
        """The run of that name nested in this one; it begins with what is first logged to it."""
        return Entry(self._outbox, name)

    def close(self, status: str = "FINISHED") -> None:
        """End the run and send what is left, at most half a minute: "FINISHED", "FAILED" or "KILLED"."""
        self.end(status)
        self._outbox.close(_CLOSING_SECONDS)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(status_after(kind))

    def _complain(self, reason: object) -> None:
        if not self._complained:
            self._complained = True
            told = first_line(reason) if isinstance(reason, BaseException) else reason
            _LOGGER.warning("tracking of run %s is incomplete: %s", self.name, told)


def status_after(kind: type[BaseException] | None) -> str:
    """The status of a run that ended with an exception of this type, or with none."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "FAILED"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
