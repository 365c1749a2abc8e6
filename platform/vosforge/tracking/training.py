"""A training run as MLflow shows it: the whole under its name, and each stage nested in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any

from vosforge.errors import UserError
from vosforge.storage import join, list_sizes, sha256, write_bytes
from vosforge.tracking.code_version import versions
from vosforge.tracking.runs import Run, status_after
from vosforge.tracking.system import Watch
from vosforge.training.plan import TrainingPlan

_LOGGER = logging.getLogger(__name__)
PREVIEWS = "previews"
UNSENT_FILE = "unsent.jsonl"
_METRICS = ("loss", "J", "learning_rate", "clips_per_second", "data_wait", "probe_J")
# Of a stage's curve: a store takes a row for each metric and point, and a paper's stage has a million steps.
_MOST_POINTS = 2000
# A larger network is only named: it lies in the run's directory, and a second copy would cost a store its space.
_LARGEST_ARTEFACT = 100_000_000


class TrainingRun:
    """Tracks a training run in MLflow and keeps its previews; nothing that goes wrong here stops the training.

    The parent run has the network, data, code and the whole curve; each stage's run, nested in it, has the stage's
    resolved settings, its part of the curve, and its previews. A run that resumes goes on in the same MLflow runs.
    Nothing is written before the first step: a command that is refused leaves the run of that name as it is.

    Args:
        plan: of the run.
        storage: local folder or `s3://` URI of runs.
        store: tracking URI.
        how: it is run, beside the plan, such as the number of workers; may change when it resumes.
    """

    def __init__(self, plan: TrainingPlan, storage: str, store: str, how: dict[str, Any] | None = None):
        self.plan, self.storage, self.store, self.how = plan, storage, store, how or {}
        self._run: Run | None = None
        self._watch: Watch | None = None
        self._stage: str | None = None
        self._step = 0

    def progress(self, metrics: dict[str, Any]) -> None:
        """Hear a step's metrics, as the loop tells them."""
        run = self._opened()
        stage, self._step = metrics["stage"], metrics["step"]
        if stage != self._stage:
            self._begin_stage(run, stage)
        values = {key: metrics[key] for key in _METRICS if key in metrics}
        if self._is_point(stage, values):
            for entry in (run, run.child(stage)):
                entry.metrics(self._step, values, once=True)
        if metrics.get("preview"):
            self._keep_preview(run, stage, metrics["preview"])

    def _is_point(self, stage: str, values: dict[str, Any]) -> bool:
        """Whether a step is one of the curve's points: all probes, and evenly spaced ones."""
        steps = next(s.steps for s in self.plan.stages if s.name == stage)
        return "probe_J" in values or self._step % max(1, steps // _MOST_POINTS) == 0

    def network(self, uri: str) -> None:
        """Hear where the trained network is."""
        run = self._opened()
        try:
            folder, _, name = str(uri).rpartition("/")
            run.tags({"vosforge.network": uri, "vosforge.network_sha256": sha256(uri)})
            if list_sizes(folder).get(name, 0) <= _LARGEST_ARTEFACT:
                run.artefact(uri)
        except (OSError, UserError) as error:
            _LOGGER.warning("the trained network is not tracked: %s", error)

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is None and kind is not None and issubclass(kind, UserError):
            return
        run, status = self._opened(), status_after(kind)
        self._watch.stop()
        if kind is None:
            for stage in self.plan.stages:
                run.child(stage.name).end()
        elif self._stage is not None:
            run.child(self._stage).end(status)
        run.close(status)

    def _opened(self) -> Run:
        if self._run is None:
            run = Run(self.plan.name, self.store, self.storage, unsent=join(self.storage, self.plan.name, UNSENT_FILE))
            self._run = run
            self._describe(run)
            self._watch = Watch(lambda values: run.metrics(self._step, values))
        return self._run

    def _describe(self, run: Run) -> None:
        plan, code = self.plan, versions()
        try:
            contents = plan.contents()
        except (OSError, UserError) as error:
            _LOGGER.warning("the data's digests are not tracked: %s", error)
            contents = {"data_digests": []}
        parameters = {"network": plan.network, "size": plan.size, "seed": plan.seed, "plan": plan.digest}
        parameters |= {"initial": plan.initial} if plan.initial else {}
        parameters |= {f"parts.{key}": value for key, value in plan.parts.items()}
        parameters |= {f"data.{i}": uri for i, uri in enumerate(plan.data)}
        parameters |= {f"data.{i}.digest": digest for i, digest in enumerate(contents["data_digests"])}
        parameters |= {"stages": " ".join(stage.name for stage in plan.stages), "steps": plan.total_steps}
        run.params(parameters | {f"code.{key}": value for key, value in code.items()})
        run.text(json.dumps({**asdict(plan), **contents}, indent=1), "plan.json")
        # Parameters keep what a run began with; this is what it goes on with.
        commit = {"mlflow.source.git.commit": code["commit"]} if "commit" in code else {}
        how = {f"vosforge.{key}": value for key, value in self.how.items()}
        run.tags({"vosforge.version": code["vosforge"], **commit, **how})

    def _begin_stage(self, run: Run, stage: str) -> None:
        """Describe a stage's run, and end those before it, which a process that was killed may have left open."""
        for earlier in self.plan.stages:
            if earlier.name == stage:
                run.child(stage).params(flattened(asdict(earlier)))
                run.child(stage).begin()
                break
            run.child(earlier.name).end()
        self._stage = stage

    def _keep_preview(self, run: Run, stage: str, picture: bytes) -> None:
        uri = join(self.storage, self.plan.name, PREVIEWS, f"step_{self._step:08d}.png")
        try:
            write_bytes(uri, picture)
        except (OSError, UserError) as error:
            _LOGGER.warning("a preview is not kept: %s", error)
            return
        run.child(stage).artefact(uri, PREVIEWS)


def flattened(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with names such as "sampling.still.shear"."""
    return dict(_flat(content, prefix))


def _flat(content: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
