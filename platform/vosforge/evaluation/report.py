"""What a report says: the averages over objects, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from numbers import Integral, Real
from typing import Any

from vosforge.evaluation.protocols import Scores


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
