"""Register a model in MLflow, make it champion where it is no worse than the present one, or put the former one back.

    python jobs/register.py --model runs/stm-nano --name mine --report report.json
    python jobs/register.py --model runs/ensemble --name mine --alias champion --report report.json --set held-out
    python jobs/register.py --model models:/mine@challenger --name mine --alias champion --set held-out
    python jobs/register.py --rollback mine --reason "flickers on night videos"

The store is `MLFLOW_TRACKING_URI`, or `mlflow.db` in --store-folder.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge.errors import UserError
from vosforge.outputs import lasting
from vosforge.registry import Candidacy, Evaluation, digest_of, promote, read_report, register, roll_back, version_uri
from vosforge.registry.lineage import find
from vosforge.storage import check_writable, exists, local_copy
from vosforge.tracking import default_store

REGISTERED = "models:/"


@dataclass
class Options:
    """Register a model in MLflow, make it champion, or put the former champion back."""

    model: str | None = None
    """Folder of a run, a sweep, a checkpoint or an ensemble; a network's file; the id of an MLflow run; or
    models:/NAME@ALIAS or models:/NAME/VERSION, a version that is there already and gets --report and --alias."""
    name: str | None = None
    """Of the registered model. A new version of it is @challenger."""
    alias: str | None = None
    """Moved to the version. champion is moved only if J&F on --set is shown to be no worse than the champion's."""
    report: str | None = None
    """JSON of jobs/evaluate.py, or its s3:// URI, kept with the version; its scores become metrics, and are what
    champions are compared by."""
    method: str | None = None
    """The model's name in that report; by default the one that the report says is this model."""
    set: str | None = None
    """Set of the report on which to compare with the champion; needed where there are several."""
    force: str | None = None
    """Move champion whatever is measured, or let --report replace another evaluation that is kept with a registered
    version; the reason given here is kept as a tag of the version."""
    rollback: str | None = None
    """Name of a registered model whose former champion is put back."""
    reason: str | None = None
    """Of --rollback, kept as a tag of the version that was champion."""
    store_folder: Path = Path("runs")
    """Folder of the embedded store."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def main(options: Options) -> None:
    """Do what was asked for."""
    console.verbosity(options.verbose)
    check(options)
    store = os.environ.get("MLFLOW_TRACKING_URI") or default_store(lasting(options.store_folder, "--store-folder"))
    if options.rollback:
        was, now = roll_back(options.rollback, store, options.reason)
        print(f"models:/{options.rollback}@champion is version {now} again, not {was}")
    elif options.model.startswith(REGISTERED):
        change(options, store)
    else:
        add(options, store)


def check(options: Options) -> None:
    """Refuse options that do not go together."""
    if options.rollback:
        unused = [
            flag for flag in ("model", "name", "alias", "report", "method", "set", "force") if getattr(options, flag)
        ]
        if unused:
            raise UserError(f"--rollback puts the former champion back; --{unused[0]} does not go with it")
        return
    if not options.model or not options.name:
        raise UserError("expected --model and --name, or --rollback NAME")
    if options.reason is not None:
        raise UserError("--reason goes with --rollback; give the reason of --force behind it")
    if options.alias != "champion" and options.set:
        raise UserError("--set says how champion is moved; add --alias champion")
    replaces = options.report is not None and options.model.startswith(REGISTERED)
    if options.alias != "champion" and options.force is not None and not replaces:
        raise UserError("--force moves champion, or lets a registered version's --report replace another; add either")
    if options.force is not None and not options.force.strip():
        raise UserError("--force: expected a reason, found none")
    if options.report is not None and not exists(options.report):
        raise UserError(f"{options.report}: no such report; write one with jobs/evaluate.py --json")


def add(options: Options, store: str) -> None:
    """Register a new version."""
    check_writable(options.store_folder)
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder, local_copy(options.report or folder) as report:
        source = find(options.model, store, Path(folder))
        evaluations = evaluated(options, source.digest)
        candidacy = Candidacy(evaluations, options.set, options.force)
        files = [report] if options.report else []
        uri = register(
            source.model, options.name, store, options.store_folder, options.alias, files=files,
            candidacy=candidacy, lineage=source.lineage,
        )  # fmt: skip
    aliases = ", ".join(dict.fromkeys(["challenger", *([options.alias] if options.alias else [])]))
    print(f"registered {uri}, alias {aliases}")
    tell_unused(options, evaluations)


def change(options: Options, store: str) -> None:
    """Give a registered version a report, an alias, or both."""
    if options.model.removeprefix(REGISTERED).replace("@", "/").partition("/")[0] != options.name:
        raise UserError(
            f"--name {options.name}: {options.model} is a version of another model; give both the same name"
        )
    if not options.alias and not options.report:
        raise UserError(f"{options.model} is registered already; add --report, --alias or both")
    uri = version_uri(options.model, store) if "@" in options.model else options.model
    evaluations = evaluated(options, digest_of(uri, store))
    candidacy = Candidacy(evaluations, options.set, options.force)
    with local_copy(options.report or ".") as report:
        decision = promote(uri, store, options.alias, candidacy, report if evaluations else None)
    if evaluations:
        print(f"{options.report} is kept with {uri}, on {', '.join(evaluation.on for evaluation in evaluations)}")
    if decision is not None:
        print(decision.reason)
    if options.alias:
        print(f"{REGISTERED}{options.name}@{options.alias} is {uri}")
    tell_unused(options, evaluations)


def evaluated(options: Options, digest: str | None) -> list[Evaluation]:
    """What the report says of the model."""
    return read_report(options.report, options.method, digest) if options.report else []


def tell_unused(options: Options, evaluations: list[Evaluation]) -> None:
    """Say so where a report was given that says nothing of the model, or nothing by which it is known."""
    if options.report and not evaluations:
        print(f"note: {options.report} does not tell which method is this model; name it with --method")
    elif any(evaluation.model is None for evaluation in evaluations):
        print(f"note: {options.report} gives no digest of {evaluations[0].method}; that it is this model is trusted")


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)), resumes=False)
