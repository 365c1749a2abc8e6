from __future__ import annotations

from typing import Any

import pytest

from vosforge.ablation.measuring import TruthSource
from vosforge.ablation.report import markdown, results
from vosforge.ablation.study import Needs, Study
from vosforge.ablation.tables import tables

STUDY = Study(tables("skn"), "nano", ("shards/train",), (TruthSource("shards/val"),), "runs")


def measured(jf: float) -> dict[str, Any]:
    videos = {f"v{i}": jf + 0.01 * i for i in range(-2, 3)}
    return {"J": jf, "F": jf, "J&F": jf, "objects": 5, "frames_per_second": 10.0, "videos": videos}


def told(failing: dict[tuple[int, int], str]) -> list[dict[str, Any]]:
    """Rows that rise by 0.1, each seed by 0.001; those of (row, seed) failed."""
    found, scores, failed = Needs(), {}, {}
    for r in range(5):
        for s in range(3):
            name = f"m{r}{s}"
            found.places[name] = [(0, r, s, 0)]
            if (r, s) in failing:
                failed[name] = failing[r, s]
            else:
                scores[name] = measured(0.3 + 0.1 * r + 0.001 * s)
    return results(STUDY, found, scores, failed)


def test_rows_stand_in_the_papers_layout_with_its_figures_and_the_change():
    text = markdown(STUDY, told({}), "python jobs/ablate.py")
    line = next(line for line in text.splitlines() if "+ASPP" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["2", "+ASPP", "0.734 (+0.007)", "0.811 (+0.009)"]
    assert cells[4] == "0.401 ± 0.001"
    assert cells[5].startswith("+0.100 ± 0.00")
    assert "inside the noise" not in cells[5]


def test_seeds_that_failed_are_told_and_stay_in_their_place():
    (table,) = told({(1, 0): "the gradient is nan"})
    row = table["rows"][1]
    assert row["sets"]["val"]["J&F"] == [None, pytest.approx(0.401), pytest.approx(0.402)]
    assert row["reason"] == "the gradient is nan"
    text = markdown(STUDY, [table])
    line = next(line for line in text.splitlines() if "+ASPP" in line)
    assert "(2 of 3 seeds)" in line
    assert "over 2 seeds and 5 videos" in line
    assert "- +ASPP: the gradient is nan" in text


def test_row_of_which_every_seed_failed_reads_failed():
    (table,) = told({(4, s): "no room" for s in range(3)})
    line = next(line for line in markdown(STUDY, [table]).splitlines() if "Flip" in line and "|" in line)
    assert "| failed" in line
