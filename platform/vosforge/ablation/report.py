"""The measured table in the paper's layout, beside the paper's figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from vosforge.ablation.comparing import Change, change
from vosforge.ablation.study import Needs, Study
from vosforge.ablation.tables import Row, Table
from vosforge.evaluation.report import table as as_table


def results(study: Study, found: Needs, scores: dict[str, Any], failed: dict[str, str]) -> list[dict[str, Any]]:
    """Every table with what was measured of each row.

    Returns:
        One a table: `{"source", "note", "headings", "rows": [{"cells", "against", "paper": {set: J&F}, "reason",
        "sets": {set: {"J&F": [one a seed, None where it failed], "mean", "spread", "frames_per_second", "change"}}}]}`.
        `spread` is the standard deviation over seeds, `change` a `Change` or None, `reason` why figures are missing.
    """
    at = {place: name for name, places in found.places.items() for place in places}
    names = set_names(study)
    told = []
    for t, table in enumerate(study.tables):
        rows = []
        for r, row in enumerate(table.rows):
            sets = {}
            for v, name in enumerate(names):
                own = [scores.get(at[t, r, s, v]) for s in range(len(study.seeds))]
                other = [scores.get(at[t, row.against or 0, s, v]) for s in range(len(study.seeds))]
                sets[name] = _measured(own, other if row.against is not None else None)
            own = [at[t, r, s, v] for s in range(len(study.seeds)) for v in range(len(names))]
            reasons = [failed[name] for name in own if name in failed]
            paper = dict(zip(table.sets, row.paper, strict=True))
            rows.append({"cells": row.cells, "against": row.against, "paper": paper, "sets": sets})
            rows[-1]["reason"] = reasons[0] if reasons else None
        told.append({"source": table.source, "note": table.note, "headings": table.headings, "rows": rows})
    return told


def set_names(study: Study) -> list[str]:
    """A name for each set of videos: the last part of its URI, or all of it where two end alike."""
    last = [truth.uri.rstrip("/").rpartition("/")[2] for truth in study.truths]
    return [name if last.count(name) == 1 else truth.uri for name, truth in zip(last, study.truths, strict=True)]


def _measured(own: list[Any], other: list[Any] | None) -> dict[str, Any]:
    there = [s for s in own if s is not None]
    values = [s["J&F"] for s in there]
    all_values = [s and s["J&F"] for s in own]
    pairs = [(a["videos"], b["videos"]) for a, b in zip(own, other or [], strict=False) if a and b]
    return {
        "J&F": all_values,
        "mean": float(np.mean(values)) if values else None,
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "frames_per_second": float(np.mean([s["frames_per_second"] for s in there])) if there else None,
        "change": change(*map(list, zip(*pairs, strict=True))) if pairs else None,
    }


def markdown(study: Study, told: list[dict[str, Any]], command: str = "") -> str:
    """The tables as Markdown, each with how it was read and what its numbers mean."""
    seeds = " ".join(map(str, study.seeds))
    lines = [f"`{command}`\n"] if command else []
    for entry, table in zip(told, study.tables, strict=True):
        lines += [f"## {entry['source']}, {study.size} size\n", _table(entry, table), ""]
        lines += [f"- {row['cells'][0] or 'a row'}: {row['reason']}" for row in entry["rows"] if row["reason"]]
        lines += [f"{entry['note']}\n"] if entry["note"] else []
    count = len(study.seeds)
    what = f"mean ± standard deviation over seeds {seeds}" if count > 1 else f"of seed {seeds} alone"
    lines.append(
        f"J&F under {study.protocol}, {what}. A change is that of the means over videos against the row named by its "
        f"number, with its 95 % interval over {'seeds and ' if count > 1 else ''}videos; one whose interval holds 0 "
        f"is inside the noise." + ("" if count > 1 else " What training again would change is unknown with one seed.")
    )
    return "\n".join(lines) + "\n"


def _table(entry: dict[str, Any], table: Table) -> str:
    rows = []
    for number, (told, row) in enumerate(zip(entry["rows"], table.rows, strict=True), 1):
        line: dict[str, Any] = {"row": number, **dict(zip(entry["headings"], told["cells"], strict=True))}
        for i, name in enumerate(table.sets):
            line[f"paper: {name}"] = f"{row.paper[i]:.3f}{_paper_change(row, table, i)}"
        for name, found in told["sets"].items():
            line[f"here: {name}"] = _value(found)
            line[f"change, {name}"] = _change(found["change"], row.against, len(found["J&F"]))
            line[f"frames/s, {name}"] = f"{found['frames_per_second']:.1f}" if found["mean"] is not None else "-"
        rows.append(line)
    return as_table(rows, list(rows[0]))


def _value(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return "failed"
    spread = f" ± {found['spread']:.3f}" if found["spread"] is not None else ""
    there, seeds = sum(value is not None for value in found["J&F"]), len(found["J&F"])
    return f"{found['mean']:.3f}{spread}" + (f" ({there} of {seeds} seeds)" if there < seeds else "")


def _change(found: Change | None, against: int | None, seeds: int) -> str:
    if found is None:
        return "-"
    verdict = ", inside the noise" if found.in_the_noise else ""
    over = f" over {found.seeds} seeds and {found.videos} videos" if found.seeds < seeds or found.videos < 2 else ""
    return f"{found.mean:+.3f} ± {found.half:.3f} vs {against + 1}{verdict}{over}"


def _paper_change(row: Row, table: Table, i: int) -> str:
    return "" if row.against is None else f" ({row.paper[i] - table.rows[row.against].paper[i]:+.3f})"
