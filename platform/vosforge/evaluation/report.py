"""What a report says: the averages over objects, and tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from math import isnan, nan
from numbers import Integral, Real
from typing import Any

from vosforge.evaluation.protocols import Scores
from vosforge.evaluation.quality import mean_quality
from vosforge.evaluation.youtube import video_objects


def summarise(scores: Mapping[str, Scores]) -> dict[str, float | int]:
    """The averages over all objects of a data set: every object weighs the same, however few its video has.

    Objects without a counted frame (their mean is NaN) have no part in any number below, and neither have videos
    in which no object is left. This is the official DAVIS 2017 aggregation wherever every object has a frame.

    Args:
        scores: `{video: answer of vosforge.evaluation.score}`.

    Returns:
        `{"J", "F", "J&F", "objects", "videos"}`: mean J, mean F and the mean of the two, in [0, 1], NaN when nothing
        was scored; and how many objects and videos they stand for.
    """
    counted = {video: [s for s in objects.values() if not isnan(s["J"]["mean"])] for video, objects in scores.items()}
    objects = [s for kept in counted.values() for s in kept]
    j, f = (sum(s[measure]["mean"] for s in objects) / len(objects) if objects else nan for measure in ("J", "F"))
    return {
        "J": j,
        "F": f,
        "J&F": (j + f) / 2,
        "objects": len(objects),
        "videos": sum(bool(kept) for kept in counted.values()),
    }


def recall_and_decay(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Recall and decay as the official DAVIS table gives them: means over all objects that have a counted frame.

    Args:
        scores: as in `summarise`.

    Returns:
        `{"J recall", "J decay", "F recall", "F decay"}`, NaN when nothing was scored.
    """
    counted = [s for objects in scores.values() for s in objects.values() if not isnan(s["J"]["mean"])]
    return {
        f"{measure} {name}": sum(s[measure][name] for s in counted) / len(counted) if counted else nan
        for measure in ("J", "F")
        for name in ("recall", "decay")
    }


def columns(protocol: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a table of methods shows under a protocol, in the field's order.

    Args:
        protocol: one of those of `score`.
        rows: of the table; where no object of any is told to be seen or unseen, these columns are left out.
    """
    measured = {
        "youtube": ["G", "J seen", "J unseen", "F seen", "F unseen", "J", "F"],
        "all-frames": ["J&F", "J", "F"],
    }.get(protocol, ["J&F", "J", "J recall", "J decay", "F", "F recall", "F decay"])
    if protocol == "youtube" and not any(row["objects seen"] or row["objects unseen"] for row in rows):
        measured = ["G", "J", "F"]
    last = ["fps", "frames/s"] if protocol == "youtube" else ["frames/s"]
    return ["set", "method", *measured, "objects", "videos", *last]


def worst_videos(scores: Mapping[str, Scores], most: int) -> list[dict[str, Any]]:
    """The videos with the lowest J&F, worst first.

    Args:
        scores: as in `summarise`, of objects with their `frame_ids`.
        most: how many.

    Returns:
        `[{"video", "J&F", "J", "F", "objects", "worst object", "worst frame", "its J"}]`.
    """
    rows = []
    for video, objects in scores.items():
        summary = summarise({video: objects})
        if not summary["objects"]:
            continue
        places = [
            (value, k, frame)
            for k, s in objects.items()
            for value, frame in zip(s["J"]["frames"], s["frame_ids"], strict=True)
        ]
        value, k, frame = min(places)
        rows.append({"video": video, **summary, "worst object": k, "worst frame": frame, "its J": value})
    return sorted(rows, key=lambda row: (row["J&F"], row["video"]))[:most]


def csv_rows(protocol: str, sets: Mapping[str, Mapping[str, Any]], metas: Mapping[str, Any]) -> str:
    """One line an object, for spreadsheets: comma-separated, with a heading, numbers in full, nothing for NaN.

    Args:
        protocol: under which it was scored.
        sets: set -> method -> result with `scores`.
        metas: set -> `meta.json` as `read_meta` gives it, for the categories; sets without one are left out.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    measured = [f"{measure} {name}" for measure in ("J", "F") for name in ("mean", "recall", "decay")]
    writer.writerow(["protocol", "set", "method", "video", "object", "category", "frames", "J&F", *measured, "quality"])
    for name, methods in sets.items():
        for method, result in methods.items():
            for video, objects in result["scores"].items():
                entries = video_objects(metas.get(name, {}), video)
                for k, s in objects.items():
                    values = [s[measure][value] for measure in ("J", "F") for value in ("mean", "recall", "decay")]
                    both = (s["J"]["mean"] + s["F"]["mean"]) / 2
                    numbers = ["" if isnan(v) else repr(float(v)) for v in (both, *values, mean_quality(s))]
                    category = entries.get(str(k), {}).get("category", "")
                    frames = len(s["J"]["frames"])
                    writer.writerow([protocol, name, method, video, k, category, frames, *numbers])
    return stream.getvalue()


def without_nan(value: Any) -> Any:
    """The value with None for every NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and isnan(value) else value


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A Markdown table whose columns also line up as plain text.

    Fractions get 3 decimals and numbers are flush right; a value that is missing, None or NaN becomes `-`.

    Args:
        rows: one mapping a row, from column to value; keys outside `columns` are left out.
        columns: the columns in order, which are the headings too.

    Returns:
        Lines joined by newlines, without one at the end: heading, rule, one line a row.
    """
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    right = [
        bool(rows) and all(_is_number(row.get(column)) or row.get(column) is None for row in rows) for column in columns
    ]
    headings = [_cell(column) for column in columns]
    widths = [max(3, *(len(line[i]) for line in [headings, *cells])) for i in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if flush else v.ljust(w) for v, w, flush in zip(values, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + (":" if flush else "-") for width, flush in zip(widths, right, strict=True)]
    return "\n".join([line(headings), line(rule), *map(line, cells)])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, Real) and isnan(value)):
        return "-"
    if _is_number(value) and not isinstance(value, Integral):
        return f"{float(value):.3f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
