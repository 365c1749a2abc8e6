"""What records become in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis

from vosforge.storage import download_file, exists
from vosforge.tracking.clients import connect, experiment
from vosforge.tracking.journal import Record

_RUN_TAG = "vosforge.run"
_CHILD_TAG = "vosforge.stage"
_STEP_TAG = "vosforge.step"
# What MLflow takes in one call.
_MOST_PARAMS, _MOST_METRICS = 100, 900
_MOST_TRIES = 3


@dataclass
class _Known:
    """A run in the store, and the last step that it has of those logged once."""

    run_id: str
    step: int


class Delivery:
    """Says to MLflow what records say. Used by one thread alone."""

    def __init__(
        self, name: str, store: str, folder: str | Path, experiment_name: str, complain: Callable[[object], None]
    ):
        self.name, self.store, self.folder, self.experiment_name = name, store, folder, experiment_name
        self._complain = complain
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._known: dict[str | None, _Known] = {}
        self._metrics: dict[str | None, list[Record]] = {}

    def send(self, records: list[Record]) -> list[Record]:
        """Send records, in order within each run; return those to try later.

        Raises:
            Exception: when the store is away; some of the records may then have been sent.
        """
        later: list[Record] = []
        self._metrics = {}
        if self._client is None:
            self._client = connect(self.store)
        for record in records:
            if record["kind"] == "metrics":
                self._metrics.setdefault(record["child"], []).append(record)
                continue
            self._send_metrics(record["child"])
            try:
                getattr(self, f"_{record['kind']}")(record)
            except _NotNow as error:
                self._complain(error.__cause__)
                later += [{**record, "tries": record["tries"] + 1}] if record["tries"] + 1 < _MOST_TRIES else []
            except MlflowException as error:
                self._refused(error)
            except (AttributeError, KeyError, TypeError) as error:
                # A record that another version left.
                self._complain(error)
        for child in list(self._metrics):
            self._send_metrics(child)
        return later

    def _refused(self, error: MlflowException) -> None:
        """Go on where the store answers, but does not want what it was told; it never will."""
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise error
        self._complain(error)

    def _send_metrics(self, child: str | None) -> None:
        records = self._metrics.pop(child, [])
        if not records:
            return
        known = self._find(child, records[0]["time"])
        entries, last = [], known.step
        for record in records:
            step = record["step"]
            if record["once"] and step <= last:
                continue
            last = max(last, step) if record["once"] else last
            entries += [Metric(key, value, record["time"], step) for key, value in record["values"].items()]
        for first in range(0, len(entries), _MOST_METRICS):
            part = entries[first : first + _MOST_METRICS]
            # In one transaction with what it speaks of.
            tags = [RunTag(_STEP_TAG, str(last))] if last > known.step and first + _MOST_METRICS >= len(entries) else []
            try:
                self._client.log_batch(known.run_id, metrics=part, tags=tags)
            except MlflowException as error:
                self._refused(error)
        known.step = last

    def _begin(self, record: Record) -> None:
        known = self._find(record["child"], record["time"])
        self._client.update_run(known.run_id, status="RUNNING")

    def _end(self, record: Record) -> None:
        known = self._find(record["child"])
        # One that is finished keeps the time when it was.
        if known is not None and self._client.get_run(known.run_id).info.status != "FINISHED":
            self._client.set_terminated(known.run_id, record["status"], end_time=record["time"])

    def _params(self, record: Record) -> None:
        run_id = self._find(record["child"], record["time"]).run_id
        there = self._client.get_run(run_id).data.params
        entries = [Param(key, value) for key, value in record["values"].items() if key not in there]
        for first in range(0, len(entries), _MOST_PARAMS):
            self._client.log_batch(run_id, params=entries[first : first + _MOST_PARAMS])

    def _tags(self, record: Record) -> None:
        run_id = self._find(record["child"], record["time"]).run_id
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record["values"].items()])

    def _artefact(self, record: Record) -> None:
        run_id = self._answering(record)
        uri = record["uri"]
        with tempfile.TemporaryDirectory() as scratch:
            try:
                if exists(uri):
                    path = download_file(uri, Path(scratch) / uri.rsplit("/", 1)[-1])
                    self._client.log_artifact(run_id, str(path), record["folder"] or None)
            except Exception as error:
                raise _NotNow from error

    def _text(self, record: Record) -> None:
        run_id = self._answering(record)
        try:
            self._client.log_text(run_id, record["content"], record["name"])
        except Exception as error:
            raise _NotNow from error

    def _answering(self, record: Record) -> str:
        """The record's run, once the store has answered: what then fails is the place of artefacts."""
        run_id = self._find(record["child"], record["time"]).run_id
        self._client.get_run(run_id)
        return run_id

    def _find(self, child: str | None, began: int | None = None) -> _Known | None:
        """The run that is nested under that name, or the parent; made when there is none and it began some time."""
        if child not in self._known:
            found = self._look_up(child) or (self._create(child, began) if began is not None else None)
            if found is None:
                return None
            self._known[child] = found
        return self._known[child]

    def _look_up(self, child: str | None) -> _Known | None:
        if child is None:
            self._experiment = experiment(self._client, self.experiment_name, self.folder)
            wanted = f"tags.`{_RUN_TAG}` = '{self.name}'"
        else:
            parent = self._find(None, get_current_time_millis()).run_id
            wanted = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and tags.`{_CHILD_TAG}` = '{child}'"
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        if not found:
            return None
        return _Known(found[0].info.run_id, int(found[0].data.tags.get(_STEP_TAG, -1)))

    def _create(self, child: str | None, began: int) -> _Known:
        if child is None:
            tags = {_RUN_TAG: self.name}
        else:
            tags = {MLFLOW_PARENT_RUN_ID: self._find(None, began).run_id, _CHILD_TAG: child}
        name = self.name if child is None else f"{self.name} {child}"
        made = self._client.create_run(self._experiment, start_time=began, run_name=name, tags=tags)
        return _Known(made.info.run_id, -1)


class _NotNow(Exception):
    """An artefact could not be sent, though the store answers."""
