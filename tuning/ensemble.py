"""Make one model of what sweeps found: select members, merge them, and say what that gains.

    python tuning/ensemble.py --sweeps runs/stm-sweep runs/emn-sweep --members 3 --out runs/ensemble
    python tuning/ensemble.py --sweeps runs/stm-sweep --seconds-per-frame 0.1 --out runs/ensemble --register team

Members are selected on half of the sweeps' validation videos (A), the stacking network is trained on a quarter (B), and
what is reported was measured on the last quarter (C), which nothing saw before.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import tyro

from vosforge.errors import UserError
from vosforge.evaluation.report import table, without_nan
from vosforge.outputs import lasting, lasting_file
from vosforge.propagation.model import DESCRIPTION, model_digest
from vosforge.registry import Candidacy, Evaluation, register
from vosforge.registry.lineage import of_model
from vosforge.search.ensembles import Building, Row, take_videos, verdict
from vosforge.search.members import SWEEP_FILE, gather
from vosforge.search.selecting import Budget
from vosforge.storage import check_writable, is_local, join, local_path, upload_file, write_bytes
from vosforge.tracking import Run, default_store
from vosforge.tracking.clients import network_of

REPORT_FILE = "ensemble.json"
_COLUMNS = ["way", "members", "J&F on A", "gain on A", "J&F on C", "gain on C", "frames/s"]
_KEPT = {"single": "best single", "uniform": "uniform average", "selected": "selected average"}


@dataclass
class Options:
    """Make one model of what sweeps found."""

    sweeps: list[str]
    """Folders of finished sweeps, folders of runs, network files, here or on s3://, or ids of MLflow runs."""
    out: str
    """Folder or s3:// URI of the model."""
    members: int = 3
    """Most different networks; any two differ in at least one part."""
    seconds_per_frame: float | None = None
    """Most time of all members together, as measured here on A."""
    keep: Literal["auto", "single", "uniform", "selected", "vote", "stacking"] = "auto"
    """Which way becomes the model; auto takes the best on A whose gain there is above 0 by its whole 95 % interval,
    and the best single network where none is."""
    validation: str | None = None
    """Shards that are split into A, B and C; the sweeps' own when left out."""
    stack: str | None = None
    """Shards to train the stacking network on, in place of B."""
    report: str | None = None
    """Shards to report on, in place of C."""
    protocol: str | None = None
    """Which objects and frames count; the sweeps' when left out."""
    short_side: int | None = None
    """Pixels to which frames are reduced; the sweeps' when left out."""
    storage: Path | None = None
    """Folder, not on s3://, for MLflow's store and stored probabilities; that of the first sweep's folder when left
    out, else runs."""
    register: str | None = None
    """Register the model under this name."""
    alias: str | None = None
    """Moved to the registered version; champion only if J&F on C is shown to be no worse than the champion's."""
    device: str = "cpu"
    """Where networks run: cpu or cuda."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def main(options: Options) -> None:
    """Select, merge, report, and keep the winner."""
    console.verbosity(options.verbose)
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
        make(options, Path(folder))


def make(options: Options, scratch: Path) -> None:
    """Make the model; networks that are not here are copied to `scratch`."""
    uri = lasting(options.out, "--out")
    storage = options.storage or storage_of(options.sweeps)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        lasting_file(storage, "--storage")
    store = default_store(storage)
    sources = gather([network_of(source, store) for source in options.sweeps], scratch)
    validation = options.validation or sources.validation
    if validation is None:
        raise UserError("--validation: networks and runs do not say by which videos to choose; name shards")
    budget = Budget(options.members, options.seconds_per_frame)
    videos = take_videos(validation, options.stack, options.report, sources.trained_on, sources.validation)
    check_writable(uri)
    building = Building(
        sources.candidates,
        videos,
        budget,
        storage / "probabilities",
        options.protocol or sources.protocol or "davis2017",
        options.short_side or sources.short_side,
        options.device,
    )
    counts = ", ".join(
        f"{name} {len(getattr(videos, part)[1])}" for name, part in zip("ABC", vars(videos), strict=True)
    )
    print(f"{len(sources.candidates)} candidates; videos: {counts}", flush=True)
    building.choose(lambda line: print(line, flush=True))
    kept = building.winner() if options.keep == "auto" else named(building, options.keep)
    building.report()
    out = local_path(uri) if is_local(uri) else scratch / "model"
    building.save(kept.team, out)
    tell(building, kept, out)
    if not is_local(uri):
        # What makes it a model comes last.
        for path in sorted(out.iterdir(), key=lambda path: path.name == DESCRIPTION):
            upload_file(path, join(uri, path.name))
    print(f"kept: {kept.way}, chosen on A; model: {options.out}")
    track(building, kept, uri, storage, store)
    if options.register:
        scores = {"JF_mean": kept.reported, "gain": kept.gain.mean}
        candidacy = Candidacy([evaluation(building, kept, out)])
        version = register(
            out, options.register, store, storage, options.alias, scores, [out / REPORT_FILE],
            candidacy=candidacy, lineage=of_model(out, uri),
        )  # fmt: skip
        print(f"registered {version}")


def storage_of(sweeps: list[str]) -> Path:
    """Where the first sweep that is a folder here was run."""
    folders = [Path(source).absolute() for source in sweeps if (Path(source) / SWEEP_FILE).is_file()]
    return folders[0].parent if folders else Path("runs")


def named(building: Building, keep: str) -> Row:
    """The row of a way that was asked for."""
    wanted = _KEPT.get(keep, keep)
    found = [row for row in building.rows if row.way == wanted]
    if not found:
        raise UserError(f"--keep {keep}: there is no second member that differs and fits; take auto or single")
    return found[0]


def tell(building: Building, kept: Row, out: Path) -> None:
    """Print the table and write it, in full, beside the model."""
    rows = [
        {
            "way": row.way,
            "members": members(building, row),
            "J&F on A": row.chosen_by,
            "gain on A": interval(row.gain_there),
            "J&F on C": row.reported,
            "gain on C": interval(row.gain),
            "frames/s": f"{row.frames_per_second:.1f}",
        }
        for row in building.rows
    ]
    print(f"\n{table(rows, _COLUMNS)}\n")
    for row in building.rows[1:]:
        print(f"{row.way} on C, against the best single: {verdict(row)}")
    content = {"kept": kept.way, "ways": [building.told(row) for row in building.rows]}
    write_bytes(out / REPORT_FILE, json.dumps(without_nan(content), indent=1).encode())


def members(building: Building, row: Row) -> str:
    """Names of a way's members, with how often each counts."""
    pairs = zip(row.team.members, row.team.counts, strict=True)
    return " + ".join(f"{count}x " * (count > 1) + building.candidates[c].name for c, count in pairs)


def interval(gain: object) -> str:
    """A gain with its 95 % interval."""
    return f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def evaluation(building: Building, kept: Row, out: Path) -> Evaluation:
    """What was measured on C, for the comparison with a champion."""
    truth, _ = building.videos.report
    digest = model_digest(out)
    return Evaluation(truth.name, kept.way, building.protocol, kept.scores, truth=truth.digest, model=digest)


def track(building: Building, kept: Row, uri: str, storage: Path, store: str) -> None:
    """Log the ways and the winner to MLflow."""
    with Run(f"ensemble {uri.rpartition('/')[2]}", store, storage) as run:
        run.tags({"vosforge.kind": "ensemble", "vosforge.kept": kept.way, "vosforge.model": uri})
        run.params({f"member.{i}": building.candidates[c].name for i, c in enumerate(kept.team.members)})
        for row in building.rows:
            name = row.way.replace(" ", "_")
            measured = {"JF_mean": row.reported, "gain": row.gain.mean, "gain_low": row.gain.low,
                        "gain_high": row.gain.high, "frames_per_second": row.frames_per_second}  # fmt: skip
            run.metrics(0, {f"{name}/{key}": value for key, value in measured.items()})
        run.artefact(join(uri, REPORT_FILE))


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)))
