"""MLflow runs that never stop what they track."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from vosforge.errors import UserError

_LOGGER = logging.getLogger(__name__)
_RUN_TAG = "vosforge.run"
# Without it MLflow's page opens an experiment as one of language models.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_QUEUE_LENGTH = 1000
_CLOSING_SECONDS = 30.0
_RETRIES = "3"
_LONGEST_PARAM = 500
_LONGEST_REASON = 200


def default_store(folder: str | Path = "runs") -> str:
    """The tracking URI: `MLFLOW_TRACKING_URI`, else a SQLite file `mlflow.db` in the folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(folder).resolve() / 'mlflow.db'}"


def connect(store: str) -> MlflowClient:
    """A client of the store, which gives a server that is away up after seconds; MLflow's default is minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    return MlflowClient(store)


def experiment(client: MlflowClient, name: str, artefacts: str | Path) -> str:
    """Id of the experiment of that name, made when there is none.

    Args:
        client: of the store.
        name: of the experiment.
        artefacts: local folder for artefacts, used when the store is a local file; a server decides itself.

    Raises:
        UserError: when the store does not answer.
    """
    try:
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        local = client.tracking_uri.startswith("sqlite:")
        location = (Path(artefacts).resolve() / "mlartifacts").as_uri() if local else None
        return client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS)
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow at {client.tracking_uri} does not answer: {first_line(error)}") from error


class Run:
    """One MLflow run, found again by name when a job resumes.

    Everything is sent by a thread from a bounded queue: a store that is slow or away costs metrics, never training.
    Failures are logged once.

    Args:
        name: of the run; a run of this name and experiment that exists is continued.
        experiment_name: of the experiment.
        store: tracking URI.
        folder: for artefacts of a local store.
    """

    def __init__(
        self,
        name: str,
        store: str,
        folder: str | Path = ".",
        experiment_name: str = "vosforge",
    ):
        self.name, self.store, self.experiment_name, self.folder = name, store, experiment_name, folder
        self.run_id: str | None = None
        self._client = connect(store)
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_QUEUE_LENGTH)
        self._complained = False
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()
        self._put(self._open)

    def params(self, values: dict[str, Any]) -> None:
        """Log parameters; a resumed run keeps those that it has."""
        entries = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in values.items()]

        def send() -> None:
            known = self._client.get_run(self.run_id).data.params
            self._client.log_batch(self.run_id, params=[p for p in entries if p.key not in known])

        self._put(send)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """Log numbers at a step; values that are no numbers are left out."""
        now = get_current_time_millis()
        entries = [Metric(key, float(value), now, step) for key, value in values.items() if _is_number(value)]
        self._put(lambda: self._client.log_batch(self.run_id, metrics=entries))

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        entries = [RunTag(key, value) for key, value in values.items()]
        self._put(lambda: self._client.log_batch(self.run_id, tags=entries))

    def close(self, status: str = "FINISHED") -> None:
        """Send what is left, at most half a minute, and end the run: "FINISHED", "FAILED" or "KILLED"."""
        self._put(lambda: self._client.set_terminated(self.run_id, status))
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSING_SECONDS)
        self._thread.join(timeout=_CLOSING_SECONDS)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _open(self) -> None:
        identifier = experiment(self._client, self.experiment_name, self.folder)
        wanted = f"tags.`{_RUN_TAG}` = '{self.name}'"
        found = self._client.search_runs([identifier], wanted, max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        tags = {_RUN_TAG: self.name}
        self.run_id = self._client.create_run(identifier, run_name=self.name, tags=tags).info.run_id

    def _put(self, action: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(action)
        except queue.Full:
            self._complain("MLflow is too slow")

    def _send(self) -> None:
        while (action := self._queue.get()) is not None:
            try:
                if self.run_id is None and action != self._open:
                    self._open()
                action()
            except Exception as error:
                # Whatever goes wrong with tracking, what is tracked must go on.
                self._complain(first_line(error))

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            _LOGGER.warning("tracking of run %s is incomplete: %s", self.name, reason)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut where it becomes a report."""
    return (str(error).splitlines() or [type(error).__name__])[0][:_LONGEST_REASON]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
