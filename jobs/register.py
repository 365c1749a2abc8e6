"""Register a model in MLflow and give it an alias.

    python jobs/register.py --model runs/ensemble --name demo --alias champion --report report.json

The store is `MLFLOW_TRACKING_URI`, or `mlflow.db` in --store-folder.
"""

from __future__ import annotations

import json
from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge.errors import UserError
from vosforge.registry import register
from vosforge.storage import check_writable
from vosforge.tracking import default_store


def main(
    model: Path,
    name: str,
    alias: str | None = None,
    report: Path | None = None,
    method: str | None = None,
    store_folder: Path = Path("runs"),
    verbose: bool = False,
) -> None:
    """Register a model in MLflow and give it an alias.

    Args:
        model: Folder of a model, or one network's file.
        name: Of the registered model.
        alias: Moved to the new version, such as champion.
        report: JSON of jobs/evaluate.py, kept with the version.
        method: The model's name in that report; its scores become metrics.
        store_folder: Folder of the embedded store.
        verbose: Show tracebacks and library messages.
    """
    console.verbosity(verbose)
    if report is not None and not report.is_file():
        raise UserError(f"{report}: no such report; write one with jobs/evaluate.py --json")
    metrics = _metrics(report, method) if report and method else {}
    check_writable(store_folder)
    files = [report] if report else []
    uri = register(model, name, default_store(store_folder), store_folder, alias, metrics, files)
    print(f"registered {uri}" + (f", alias {alias}: models:/{name}@{alias}" if alias else ""))


def _metrics(report: Path, method: str) -> dict[str, float]:
    """The method's scores on each set, under names that MLflow accepts."""
    sets = json.loads(report.read_text())["sets"]
    found = {name: methods[method] for name, methods in sets.items() if method in methods}
    if not found:
        known = sorted({entry for methods in sets.values() for entry in methods})
        raise UserError(f"{report}: no method {method!r}; there are: {', '.join(known)}")
    short = {"J": "J_mean", "F": "F_mean", "J&F": "JF_mean"}
    return {f"{name}/{short[key]}": scores[key] for name, scores in found.items() for key in short}


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
