"""Several methods under the interactive protocol, over the same videos."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vosforge.errors import UserError
from vosforge.evaluation.interactive import OFFICIAL, Row, Rules, summarise_interactions


def skipped_videos(results: Mapping[str, Mapping[str, Any]], names: Collection[str]) -> list[dict[str, str]]:
    """The videos that one method or more could not do, `[{"video", "reason"}]`, the first method's reason.

    Args:
        results: method -> answer of `evaluate_interactive`.
        names: of the videos, in order.
    """
    reasons = [reason for result in results.values() for reason in result["skipped"]]
    first = {name: next((r for r in reasons if r.startswith(f"video {name}: ")), None) for name in names}
    return [{"video": name, "reason": reason} for name, reason in first.items() if reason]


def without_videos(
    results: Mapping[str, Mapping[str, Any]], videos: Collection[str], rules: Rules = OFFICIAL
) -> dict[str, dict[str, Any]]:
    """The results as they are without some videos, so that those of methods that failed on others stay comparable.

    Args:
        results: method -> answer of `evaluate_interactive`.
        videos: names of those that do not count.
        rules: under which they were played.

    Returns:
        method -> its result over the other videos; `skipped` as it was.

    Raises:
        UserError: when none is left.
    """
    kept = {}
    for method, result in results.items():
        rows = [Row(**row) for row in result["rows"] if row["sequence"] not in videos]
        if not rows:
            reasons = [reason for other in results.values() for reason in other["skipped"]]
            raise UserError(f"no video is left that every method can do; the first: {reasons[0]}")
        kept[method] = {**summarise_interactions(rows, rules), "skipped": result["skipped"]}
    return kept
