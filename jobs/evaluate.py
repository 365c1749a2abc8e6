"""Score models and baselines on annotated videos, by the field's measures.

python jobs/evaluate.py --truth shards/held-out --model runs/stm-nano/network.safetensors
python jobs/evaluate.py --truth DAVIS --split val --model models:/demo@champion --short-side 240 --json report.json
python jobs/evaluate.py --truth DAVIS --split val --masks predictions/
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Annotated

try:
    from vosforge import console
except ModuleNotFoundError:
    raise SystemExit("error: this Python has no vosforge; run `make demo` once, then use .venv/bin/python") from None

import numpy as np
import tyro

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.evaluation.report import table
from vosforge.evaluation.running import Truth, evaluate, score_masks
from vosforge.propagation import CopyFirstMask, Model, OpticalFlow, segment_clip
from vosforge.registry import load_model
from vosforge.storage import write_bytes
from vosforge.tracking import default_store

_COLUMNS = ["set", "method", "J", "F", "J&F", "objects", "videos", "frames/s"]


@dataclasses.dataclass
class Options:
    """Score models and baselines on annotated videos."""

    truth: list[str]
    """Shards (folder or s3:// URI), or folders in a layout that ingest knows."""
    model: list[str] = dataclasses.field(default_factory=list)
    """Network files, model folders or models:/name@alias; NAME=MODEL gives a name for the table."""
    masks: Path | None = None
    """Folder of predicted masks, <video>/<frame>.png, to score instead of models."""
    protocol: str = "davis2017"
    """davis2017, davis2016 or all-frames."""
    split: str | None = None
    """List in ImageSets/ of a folder."""
    limit: int | None = None
    """Most videos of each set."""
    short_side: int | None = None
    """Pixels to which models see frames reduced; baselines see them whole, and scores are at full size."""
    json_file: Annotated[str | None, tyro.conf.arg(name="json")] = None
    """Write the report, with every video's scores, to this file or URI."""
    device: str = "cpu"
    """Where networks run: cpu or cuda."""
    verbose: bool = False
    """Show tracebacks and library messages."""


def main(options: Options) -> None:
    """Score everything asked for and print the table."""
    console.verbosity(options.verbose)
    if bool(options.model) == (options.masks is not None):
        raise UserError("give either --model, one or several, or --masks with predicted masks")
    methods = {
        "copy first mask": lambda clip: segment_clip(CopyFirstMask(), clip),
        "DIS flow": lambda clip: segment_clip(OpticalFlow(), clip),
    }
    for entry in options.model:
        name, _, uri = entry.rpartition("=")
        methods[name or uri] = partial(_segment, load_model(uri, default_store()), options)
    rows, report = [], {}
    for uri in options.truth:
        truth = Truth(uri, options.split, options.limit)
        with console.Progress(len(truth), f"evaluate {truth.name}", "videos") as progress:
            if options.masks is not None:
                found = {str(options.masks): score_masks(options.masks, truth, options.protocol)}
            else:
                found = evaluate(methods, truth, options.protocol, progress.update)
        report[truth.name] = found
        for method, result in found.items():
            rows.append({"set": truth.name, "method": method, "frames/s": _rate(result), **result})
    print(table(rows, _COLUMNS))
    if options.json_file:
        content = {"protocol": options.protocol, "short_side": options.short_side, "sets": report}
        write_bytes(options.json_file, json.dumps(content, indent=1).encode())
        print(f"report: {options.json_file}")


def _rate(result: dict) -> str:
    return f"{result['frames_per_second']:.0f}" if result["frames_per_second"] else "-"


def _segment(model: Model, options: Options, clip: Clip) -> np.ndarray:
    return segment_clip(model.start(options.device), clip, options.short_side)


if __name__ == "__main__":
    console.run(lambda: main(tyro.cli(Options)))
