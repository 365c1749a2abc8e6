"""A study as MLflow shows it: every training as a run, and the tables as one run with a row in each child."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from vosforge.ablation.study import Needs, Study
from vosforge.storage import join
from vosforge.tracking import Run
from vosforge.tracking.training import UNSENT_FILE, TrainingRun
from vosforge.training.checkpoints import NETWORK_FILE

_NAME = str.maketrans({"&": "", "%": " percent", "(": "", ")": "", "+": "plus ", ",": ""})


class Recording:
    """Tracks a study's trainings while they run; nothing that goes wrong here stops them.

    Args:
        study: that is tracked.
        found: what it needs.
        store: tracking URI.
        how: it is run, beside the plans.
    """

    def __init__(self, study: Study, found: Needs, store: str, how: dict[str, Any]):
        self.study, self.found, self.store, self.how = study, found, store, how
        self._open: dict[str, TrainingRun] = {}

    def progress(self, name: str, metrics: dict[str, Any]) -> None:
        """Hear a run's step."""
        if name not in self._open:
            self._open[name] = TrainingRun(self.found.runs[name], self.study.runs, self.store, self.how)
        self._open[name].progress(metrics)

    def done(self, name: str, reason: str | None) -> None:
        """Hear that a run is done, or why it failed."""
        tracked = self._open.pop(name, None)
        if tracked is None:
            return
        if reason is None:
            tracked.network(join(self.study.runs, name, NETWORK_FILE))
        kind = None if reason is None else RuntimeError
        tracked.__exit__(kind, kind(reason) if kind else None, None)

    def close(self) -> None:
        """End what a stop left open; it goes on when the study does."""
        for name in list(self._open):
            self._open.pop(name).__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def record_tables(name: str, study: Study, told: list[dict[str, Any]], markdown: str, store: str) -> None:
    """Log finished tables: the parent run has them as text, each row's child its parts and figures, a step a seed."""
    with Run(name, store, study.storage, unsent=join(study.storage, name, UNSENT_FILE)) as run:
        run.params({"size": study.size, "seeds": " ".join(map(str, study.seeds)), "protocol": study.protocol})
        run.params({f"truth.{i}": truth.uri for i, truth in enumerate(study.truths)})
        run.params({f"data.{i}": uri for i, uri in enumerate(study.data)})
        run.text(markdown, "tables.md")
        run.text(json.dumps(told, indent=1), "tables.json")
        for t, (entry, table) in enumerate(zip(told, study.tables, strict=True)):
            for r, (row, of) in enumerate(zip(entry["rows"], table.rows, strict=True)):
                child = run.child(f"table-{t + 1}-row-{r + 1}")
                child.params(dict(zip(entry["headings"], (cell or "-" for cell in row["cells"]), strict=True)))
                child.params({f"member.{m}": json.dumps(asdict(member)) for m, member in enumerate(of.members)})
                settings = {f"settings.{key}": value for key, value in asdict(of.settings).items()}
                child.params({"table": entry["source"], "test_parts": of.test_parts, "merging": of.merging, **settings})
                for truth, found in row["sets"].items():
                    label = truth.rpartition("/")[2].translate(_NAME)
                    for seed, value in zip(study.seeds, found["J&F"], strict=True):
                        child.metrics(seed, {f"{label}/JF": value} if value is not None else {})
                    means = {"JF_mean": found["mean"], "JF_spread": found["spread"]}
                    child.metrics(0, {f"{label}/{key}": value for key, value in means.items()})
                child.end("FAILED" if row["reason"] else "FINISHED")
