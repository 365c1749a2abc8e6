"""Score models, masks and baselines on annotated videos, by the field's measures.

python jobs/evaluate.py --truth shards/held-out --model runs/stm-nano/network.safetensors
python jobs/evaluate.py --truth DAVIS --split val --model models:/demo@champion --short-side 240 --json report.json
python jobs/evaluate.py --truth DAVIS --split val --masks ours=masks/ theirs=theirs.zip --sheet sheet.png --worst 5
python jobs/evaluate.py --truth YouTube/valid --masks predictions/ --protocol youtube --seen YouTube/train/meta.json
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import numpy as np
import tyro

from vosforge import pictures
from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation import report as reports
from vosforge.evaluation.paired import paired_difference
from vosforge.evaluation.predictions import Masks, open_masks
from vosforge.evaluation.protocols import PROTOCOLS
from vosforge.evaluation.quality import attach_quality, correlation
from vosforge.evaluation.running import Predicted, predict
from vosforge.evaluation.scoring import Scoring, score_set
from vosforge.evaluation.sheets import Drawn, time_sheet, worst_sheet
from vosforge.evaluation.submission import Gathering, write_submission
from vosforge.evaluation.truth import Truth
from vosforge.evaluation.youtube import LABEL, RATES, Meta, categories, read_meta
from vosforge.outputs import lasting, lasting_file
from vosforge.settings import AS_SAVED, Settings
from vosforge.storage import check_writable, is_local, local_path, write_bytes

Models = dict[str, Callable[[Clip], tuple[np.ndarray, list[dict[int, float]]]]]
INTERACTIVE = "interactive"
_SHEET_FRAMES, _SHEET_VIDEOS = 8, 3
# Skipped videos that are told by name on the terminal.
_LISTED = 20
# Of fewer videos an interval says little.
_FEWEST_VIDEOS = 5
_WORST = ["video", "J&F", "J", "F", "objects", "worst object", "worst frame", "its J"]


@dataclasses.dataclass
class Options:
    """Score models, masks and baselines on annotated videos."""

    truth: list[str]
    """Shards (folder or s3:// URI); folders in a layout that ingest knows; folders or zips of <video>/<frame>.png."""
    model: list[str] = dataclasses.field(default_factory=list)
    """Network files, model folders or models:/name@alias; NAME=MODEL gives a name for the table."""
    masks: list[str] = dataclasses.field(default_factory=list)
    """Predicted masks: folders or zips of <video>/<frame>.png, or shards; NAME=MASKS gives a name for the table."""
    protocol: str = "davis2017"
    """davis2017, davis2016, youtube or all-frames; or interactive, where a robot draws scribbles round after round."""
    split: str | None = None
    """List in ImageSets/ of a folder."""
    limit: int | None = None
    """Most videos of each set."""
    frames: Path | None = None
    """Folder of <video>/<frame>.jpg to segment and show in place of the truth's own frames."""
    meta: Path | None = None
    """YouTube-VOS meta.json of the truth, where it does not lie in the truth's folder."""
    seen: Path | None = None
    """YouTube-VOS meta.json of the training set: its categories are the seen ones."""
    fps: int | None = None
    """Frames a second that the method of --masks was given, 6 or 30; noted in reports of protocol youtube."""
    baselines: bool = True
    """Score copying the first mask and warping it by DIS flow beside everything else, where there are frames."""
    scribbles: Path | None = None
    """DAVIS scribbles of the first round, for protocol interactive; by default the truth's own, or the robot's."""
    interactions: int = 8
    """Rounds of protocol interactive."""
    short_side: int | None = None
    """Pixels to which models see frames reduced, by default as the model says, else whole; baselines see them whole,
    and scores are at full size."""
    worst: int | None = None
    """Print this many worst videos of each method."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json")] = None
    """Write the report, with every frame's scores, to this file or URI."""
    csv_file: Annotated[str | None, tyro.conf.arg(name="csv")] = None
    """Write one line an object to this file or URI."""
    sheet: Path | None = None
    """Draw the worst frames to this PNG; for several models or masks also NAME-over-time.png beside it."""
    submission: Path | None = None
    """Write the masks as a zip for an evaluation server."""
    submission_folder: str = ""
    """Folder around all videos in that zip; YouTube-VOS wants Annotations, DAVIS none."""
    max_bad: float = 0.0
    """Largest share of videos that may be skipped before the exit status says so."""
    workers: int | None = None
    """Processes that score; by default one a core where the work is worth it."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = AS_SAVED
    device: str = "cpu"
    """Where networks run: cpu or cuda."""
    verbose: bool = False
    """Show tracebacks and library messages."""


@dataclasses.dataclass
class Evaluated:
    """One set's results.

    What was scored, by method; the videos that were skipped; the methods that were asked for; and why the submission
    could not be written.
    """

    truth: Truth
    results: dict[str, dict[str, Any]]
    skipped: list[dict[str, str]]
    meta: Meta | None
    asked: list[str]
    failure: str = ""


def main(options: Options) -> None:
    """Score everything asked for and print the tables."""
    console.verbosity(options.verbose)
    if options.protocol == INTERACTIVE:
        evaluate_interactively(options)
        return
    check(options)
    masks = {name: open_masks(uri) for name, uri in named(options.masks).items()}
    for entry in masks.values():
        if entry.note:
            print(f"note: {entry.note}")
    models = load_models(options)
    sets: dict[str, Evaluated] = {}
    for number, uri in enumerate(options.truth, 1):
        truth = Truth(uri, options.split, options.limit, options.frames)
        name = truth.name if truth.name not in sets else uri
        with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
            sets[name] = evaluate_set(options, truth, models, masks, Path(folder), sheet_path(options, number))
    print_tables(options, sets)
    write_files(options, sets)
    judge(options, sets)


def check(options: Options) -> None:
    """Refuse options that do not go together before anything is read."""
    if options.protocol not in PROTOCOLS:
        valid = ", ".join([*PROTOCOLS, INTERACTIVE])
        raise UserError(f"--protocol: expected one of {valid}, found {options.protocol!r}")
    if not options.model and not options.masks:
        raise UserError("give --model, --masks with predicted masks, or both; one or several")
    names = [*named(options.model), *named(options.masks)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"--model and --masks name {twice[0]} twice; give names as NAME=MODEL")
    if options.submission and (len(names) > 1 or len(options.truth) > 1):
        raise UserError("--submission: expected one --truth and one --model or --masks, found more")
    if options.fps not in (None, *RATES):
        raise UserError(f"--fps: expected 6 or 30, found {options.fps}")
    check_outputs(options)


def check_outputs(options: Options) -> None:
    """Refuse numbers out of range, and what cannot be written."""
    for flag in ("limit", "worst", "workers", "interactions"):
        number = getattr(options, flag)
        if number is not None and number < 1:
            raise UserError(f"--{flag}: expected at least 1, found {number}")
    if options.short_side is not None and options.short_side < 16:
        raise UserError(f"--short-side: expected at least 16 pixels, found {options.short_side}")
    if not 0 <= options.max_bad <= 1:
        raise UserError(f"--max-bad: expected a share from 0 to 1, found {options.max_bad}")
    if len(set(options.truth)) < len(options.truth):
        raise UserError("--truth: expected every set once, found one twice")
    for flag, uri in (("json", options.json_file), ("csv", options.csv_file)):
        if uri is not None:
            check_file(flag, uri)
            lasting(uri, f"--{flag}")
    for flag, path in (("submission", options.submission), ("sheet", options.sheet)):
        if path is not None:
            check_file(flag, str(lasting_file(path, f"--{flag}")))
    if options.sheet is not None:
        for number in range(1, len(options.truth) + 1):
            check_file("sheet", str(sheet_path(options, number)))


def check_file(flag: str, path: str) -> None:
    """Refuse a path that cannot be that of a file."""
    if not path or path.endswith("/") or (is_local(path) and local_path(path).is_dir()):
        raise UserError(f"--{flag}: expected a file to write, found the folder {path or repr(path)}; name a file in it")
    check_writable(path.rpartition("/")[0] or ("/" if path.startswith("/") else "."))


def sheet_path(options: Options, number: int) -> Path | None:
    """Where the sheet of the number-th set goes, counted from 1; with the set's name where there are several."""
    if options.sheet is None:
        return None
    path = options.sheet.with_suffix(".png")
    if len(options.truth) == 1:
        return path
    names = [Path(uri.rstrip("/")).name for uri in options.truth]
    name = names[number - 1]
    return path.with_stem(f"{path.stem}-{name}" if names.count(name) == 1 else f"{path.stem}-{number}-{name}")


def named(entries: list[str]) -> dict[str, str]:
    """NAME=URI or URI -> name -> URI."""
    pairs = [("", entry) if Path(entry).exists() else entry.rpartition("=")[::2] for entry in entries]
    found = {name or uri: uri for name, uri in pairs}
    if len(found) < len(entries):
        raise UserError("--model and --masks: two entries have one name; give names as NAME=MODEL")
    return found


def load_models(options: Options) -> Models:
    """Name -> what segments a clip and assesses its masks."""
    if not options.model:
        return {}
    # Processes that score import this program; only what segments needs torch and MLflow.
    from vosforge.evaluation.methods import segment_assessed
    from vosforge.registry import load_model
    from vosforge.tracking import default_store

    loaded = {name: load_model(uri, default_store()) for name, uri in named(options.model).items()}
    for model in loaded.values():
        # What does not suit the networks is refused before any video is read.
        model.start(options.device, options.settings)
    return {
        name: lambda clip, model=model: segment_assessed(
            model.start(options.device, options.settings), clip, options.short_side or model.short_side
        )
        for name, model in loaded.items()
    }


def evaluate_set(
    options: Options, truth: Truth, models: Models, given: dict[str, Masks], folder: Path, sheet: Path | None
) -> Evaluated:
    """Segment, score, draw and pack one set; `folder` takes the models' masks meanwhile."""
    scoring = Scoring(truth, given, options.protocol, read_meta(options.meta) if options.meta else truth.meta)
    scoring.meta_file = options.meta or truth.meta_file
    seen = categories(read_meta(options.seen)) if options.seen else None
    for name, masks in given.items():
        there = masks.videos()
        if set(truth.names).isdisjoint(there):
            found = f"{len(there)} others, the first {there[0]}" if there else "none"
            raise UserError(f"--masks {name}: expected a folder by video, {truth.names[0]} and so on, found {found}")
    predicted = Predicted({}, {})
    if models:
        with console.Progress(len(truth), f"segment {truth.name}", "videos") as progress:
            every = options.submission is not None
            predicted = predict(models, truth, folder / "masks", every, progress.update)
        scoring.masks, scoring.bad = {**predicted.masks, **given}, predicted.bad
    if options.baselines and truth.has_frames:
        from vosforge.evaluation.methods import BASELINES

        scoring.baselines = BASELINES
    with console.Progress(len(truth), f"evaluate {truth.name}", "videos") as progress:
        results, skipped = score_set(scoring, options.workers, progress.update, seen)
    merged = options.protocol == "davis2016"
    for name in models:
        results[name]["frames_per_second"] = predicted.frames_per_second[name]
    for name, quality in predicted.quality.items():
        attach_quality(results[name]["scores"], quality, merged)
        results[name]["quality"] = correlation(results[name]["scores"])
    if options.protocol == "youtube":
        # Masks do not tell which frames their method was given.
        for name in given:
            results[name]["fps"] = options.fps
    if sheet is not None:
        scores = {name: results[name]["scores"] for name in scoring.masks}
        draw(options, Drawn(truth, scoring.masks, scores, merged), sheet)
    evaluated = Evaluated(truth, results, skipped, scoring.meta, list(scoring.masks))
    if options.submission:
        try:
            submit(options, scoring, folder / "submission")
        except UserError as error:
            # The scores are still worth telling.
            evaluated.failure = str(error)
    return evaluated


def submit(options: Options, scoring: Scoring, folder: Path) -> None:
    """Write the zip for a server."""
    (masks,) = scoring.masks.values()
    gathering = Gathering(scoring.truth, masks, scoring.meta, folder)
    with console.Progress(len(scoring.truth), f"gather {scoring.truth.name}", "videos") as progress:
        count = write_submission(
            options.submission, gathering, options.submission_folder, options.workers, progress.update
        )
    print(f"submission: {options.submission}, {count} masks of {len(scoring.truth)} videos")


def draw(options: Options, drawn: Drawn, path: Path) -> None:
    """Write the sheets of one set."""
    first = next(iter(drawn.masks))
    pictures.write_png(path, worst_sheet(drawn, first, options.worst or _SHEET_FRAMES))
    print(f"worst frames of {first}: {path}")
    if len(drawn.masks) > 1:
        path = path.with_stem(f"{path.stem}-over-time")
        videos = reports.worst_videos(drawn.scores[first], min(options.worst or _SHEET_VIDEOS, _SHEET_VIDEOS))
        pictures.write_png(path, time_sheet(drawn, [row["video"] for row in videos]))
        print(f"methods over time: {path}")


def print_tables(options: Options, sets: dict[str, Evaluated]) -> None:
    """The field's table, what it rests on, and the worst videos where asked for."""
    rows = [
        {"set": name, "method": method, "frames/s": _rate(result), **result}
        for name, evaluated in sets.items()
        for method, result in evaluated.results.items()
    ]
    print(reports.table(rows, reports.columns(options.protocol, rows)))
    for name, evaluated in sets.items():
        if options.protocol == "youtube":
            grouping = next(iter(evaluated.results.values()))["grouping"]
            print(f"{name}: {LABEL}, not the server's number; {grouping}")
        for method, result in evaluated.results.items():
            if "quality" in result:
                told = ", ".join(f"{key} {result['quality'][key]:.3f}" for key in ("correlation", "rank correlation"))
                print(
                    f"{name}: quality that {method} predicts against true J: {told}, {result['quality']['masks']} masks"
                )
        for line in against_baselines(name, evaluated):
            print(line)
        for method in evaluated.asked if options.worst else ():
            print(f"\nworst videos of {method} on {name}")
            print(reports.table(reports.worst_videos(evaluated.results[method]["scores"], options.worst), _WORST))


def against_baselines(name: str, evaluated: Evaluated) -> list[str]:
    """By how much each method beats the baselines, and how sure that is, where there are videos enough to tell."""
    baselines = [method for method in evaluated.results if method not in evaluated.asked]
    lines = []
    for ours in evaluated.asked:
        for theirs in baselines:
            scores = (evaluated.results[method]["scores"] for method in (ours, theirs))
            found = paired_difference(*scores)
            if found.videos >= _FEWEST_VIDEOS:
                lines.append(
                    f"{name}: J&F of {ours} minus {theirs}: {found.mean:+.3f}, 95 % interval {found.low:+.3f} to "
                    f"{found.high:+.3f} over {found.videos} videos"
                )
    return lines


def write_files(options: Options, sets: dict[str, Evaluated]) -> None:
    """The report as JSON and CSV."""
    found = {name: evaluated.results for name, evaluated in sets.items()}
    if options.json_file:
        content = {
            "protocol": options.protocol,
            **({"label": LABEL} if options.protocol == "youtube" else {}),
            "short_side": options.short_side,
            "settings": dataclasses.asdict(options.settings),
            **identities(options, sets),
            "sets": found,
            "skipped": {name: evaluated.skipped for name, evaluated in sets.items()},
        }
        write_bytes(options.json_file, json.dumps(reports.without_nan(content), indent=1).encode())
        print(f"report: {options.json_file}")
    if options.csv_file:
        metas = {name: evaluated.meta for name, evaluated in sets.items() if evaluated.meta}
        write_bytes(options.csv_file, reports.csv_rows(options.protocol, found, metas).encode())
        print(f"objects: {options.csv_file}")


def identities(options: Options, sets: dict[str, Evaluated]) -> dict[str, Any]:
    """Which models and which videos were looked at, by their contents where those can be told."""
    told: dict[str, Any] = {"models": {}}
    if options.model:
        from vosforge.registry import digest_of
        from vosforge.tracking import default_store

        told["models"] = {
            name: {"uri": uri, "sha256": digest_of(uri, default_store())} for name, uri in named(options.model).items()
        }
    told["truths"] = {name: {"uri": found.truth.uri, "digest": found.truth.digest} for name, found in sets.items()}
    return told


def judge(options: Options, sets: dict[str, Evaluated]) -> None:
    """List what was skipped, and end with an error where the numbers do not stand for what was asked."""
    for name, evaluated in sets.items():
        for entry in evaluated.skipped[:_LISTED]:
            print(f"skipped {entry['video']} of {name}: {entry['reason']}")
        if len(evaluated.skipped) > _LISTED:
            print(f"skipped {len(evaluated.skipped) - _LISTED} more of {name}; --json lists all")
    for name, evaluated in sets.items():
        if evaluated.failure:
            raise UserError(evaluated.failure)
        skipped, count = len(evaluated.skipped), len(evaluated.truth)
        if skipped > options.max_bad * count:
            raise UserError(
                f"{skipped} of {count} videos of {name} skipped, more than --max-bad {options.max_bad:g} of all; "
                f"the first: {evaluated.skipped[0]['reason']}"
            )
        objects = max(result["objects"] for result in evaluated.results.values())
        if not objects and not options.submission:
            raise UserError(
                f"{name}: no frame of any object counts under protocol {options.protocol}; "
                "expected truth masks of more than the first frames"
            )


def evaluate_interactively(options: Options) -> None:
    """Play the DAVIS-interactive protocol with each model, and print area under the curve and J&F at 60 s."""
    from vosforge.evaluation.interactive import Rules, evaluate_interactive, find_scribbles
    from vosforge.evaluation.interactive_methods import skipped_videos, without_videos
    from vosforge.evaluation.methods import INTERACTIVE_BASELINES

    unused = [flag for flag in ("masks", "csv_file", "sheet", "submission", "worst", "meta") if getattr(options, flag)]
    if unused or not options.model or options.settings != AS_SAVED:
        raise UserError(
            "--protocol interactive plays --model, one or several; masks, sheets, zips and flags of the memory and of "
            "views do not go with it"
        )
    check_outputs(options)
    sessions = load_sessions(options) | (INTERACTIVE_BASELINES if options.baselines else {})
    rules = Rules(interactions=options.interactions)
    rows, sets = [], {}
    for uri in options.truth:
        truth = Truth(uri, options.split, options.limit, options.frames)
        called = truth.name if truth.name not in sets else uri
        own = Path(uri) / "Scribbles"
        # Those of shards lie nowhere.
        folder = options.scribbles or (own if is_local(uri) and own.is_dir() else None)
        scribbles = find_scribbles(folder) if folder else None
        results = {}
        for name, session in sessions.items():
            with console.Progress(len(truth), f"{name} on {called}", "videos") as progress:
                result = evaluate_interactive(session, truth.clips(), scribbles, rules, on_video=progress.update)
            results[name] = result
        skipped = skipped_videos(results, truth.names)
        results = without_videos(results, {entry["video"] for entry in skipped}, rules)
        for name, result in results.items():
            rows.append({"set": called, "method": name, "AUC": result["auc"], "J&F@60s": result["at"], **result})
        sets[called] = Evaluated(truth, results, skipped, None, list(results))
    print(reports.table(rows, ["set", "method", "AUC", "J&F@60s", "objects", "videos"]))
    write_files(options, sets)
    judge(options, sets)


def load_sessions(options: Options) -> dict[str, Callable[[Clip], Any]]:
    """Name -> what makes a clip's session, for every model."""
    from vosforge.propagation import Session
    from vosforge.propagation.user_memory import scribbled_networks, takes_scribbles
    from vosforge.registry import load_model
    from vosforge.tracking import default_store

    sessions = {}
    for name, uri in named(options.model).items():
        model = load_model(uri, default_store())
        members, side = model.members, options.short_side or model.short_side
        if len(members) > 1 or not takes_scribbles(members[0]):
            found = f"an ensemble of {len(members)}" if len(members) > 1 else "one that takes masks alone"
            raise UserError(
                f"--model {name}: expected a network that takes scribbles ({', '.join(scribbled_networks())}, or built "
                f"with memory_input='mask+scribbles'), found {found}"
            )
        sessions[name] = lambda clip, network=members[0], side=side: Session(
            network, clip.frames, side, device=options.device
        )
    return sessions


def _rate(result: dict[str, Any]) -> float | None:
    """Frames a second, whole where they are at least one; None for masks that were only read."""
    rate = result["frames_per_second"]
    return (round(rate) if rate >= 1 else rate) if rate else None


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)), resumes=False)
