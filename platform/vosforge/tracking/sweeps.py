"""A sweep as MLflow shows it: the whole under its name, and each trial nested in it."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

from vosforge.storage import join
from vosforge.tracking.code_version import versions
from vosforge.tracking.runs import Run, status_after

UNSENT_FILE = "unsent.jsonl"
_MOST_POINTS = 200
_STATES = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}


class SweepRun:
    """Tracks a sweep in MLflow; nothing that goes wrong here stops it.

    The parent run has what trials share, the best scores and the plots; each trial's run, nested in it, has its
    choices, its loss and its scores at rungs. A sweep that goes on goes on in the same MLflow runs.

    Args:
        name: of the sweep.
        storage: folder of runs.
        store: tracking URI.
        settings: what trials share.
        steps: of a trial.
    """

    def __init__(self, name: str, storage: str, store: str, settings: dict[str, Any], steps: int):
        self._every = max(1, steps // _MOST_POINTS)
        self._run = Run(name, store, storage, unsent=join(storage, name, UNSENT_FILE))
        self._run.params({**settings, **{f"code.{key}": value for key, value in versions().items()}})
        self._run.tags({"vosforge.kind": "sweep", "vosforge.sweep": join(storage, name)})

    def progress(self, news: dict[str, Any]) -> None:
        """Hear what `run_sweep` tells of a trial."""
        if "trial" not in news:
            return
        entry = self._run.child(news["trial"])
        if "rung" in news:
            scores = {key: value for key, value in news.items() if key not in ("trial", "rung")}
            entry.metrics(news["rung"], scores)
        elif "loss" in news and news["step"] % self._every == 0:
            entry.metrics(news["step"], {"loss": news["loss"], "J": news["J"]}, once=True)

    def finish(self, trials: list[dict[str, Any]], metric: str, pictures: list[str]) -> None:
        """Hear how all trials ended, best first, and of URIs of pictures of the sweep."""
        for trial in trials:
            entry = self._run.child(trial["trial"])
            entry.params(trial["config"])
            told = {"vosforge.state": trial["state"], "vosforge.network": trial["network"], "reason": trial["error"]}
            entry.tags({key: value for key, value in told.items() if value})
            scores = {key: trial[key] for key in ("JF_mean", "J_mean", "F_mean")}
            entry.metrics(trial["step"], {key: value for key, value in scores.items() if value is not None})
            entry.end(_STATES[trial["state"]])
        done = [trial for trial in trials if trial["state"] != "failed"]
        best = {f"best_{metric}": done[0][metric]} if done else {}
        self._run.metrics(0, {**best, "trials": len(trials), "failed": len(trials) - len(done)})
        self._run.metrics(0, {"saved_steps": sum(trial["saved_steps"] for trial in trials)})
        self._run.text(json.dumps(trials, indent=1), "trials.json")
        for picture in pictures:
            self._run.artefact(picture)

    def __enter__(self) -> SweepRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.close(status_after(kind))
