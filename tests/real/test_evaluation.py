"""Masks of a real method on real video, where `VOSFORGE_DATA` points at them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from vosforge.evaluation.predictions import open_masks
from vosforge.evaluation.scoring import Scoring, score_set
from vosforge.evaluation.truth import Truth

DATA = Path(os.environ.get("VOSFORGE_DATA", ""))
OSVOS = DATA / "video" / "osvos_predictions_davis2017val"
pytestmark = pytest.mark.skipif(
    not (DATA / "DAVIS" / "JPEGImages").is_dir() or not OSVOS.is_dir(),
    reason="VOSFORGE_DATA does not point at a folder with DAVIS and masks of OSVOS",
)


@pytest.fixture(scope="module")
def plain():
    """The official algorithm written plainly, as the benchmark has it."""
    path = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "metrics.py"
    spec = importlib.util.spec_from_file_location("plain_metrics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_errors_score_as_the_official_algorithm_says(plain):
    truth, masks = Truth(str(DATA / "DAVIS"), split="val"), open_masks(str(OSVOS))
    report, skipped = score_set(Scoring(truth, {"osvos": masks}, "davis2016"), workers=1)
    assert skipped == []
    for i, video in enumerate(truth.names):
        scores = report["osvos"]["scores"][video][1]
        wanted = truth.annotated(i).masks[10:13] > 0
        given = np.stack([masks.read(video, frame) > 0 for frame in scores["frame_ids"][9:12]])
        assert scores["J"]["frames"][9:12] == pytest.approx(plain.plain_jaccard(wanted, given), abs=1e-9), video
        assert scores["F"]["frames"][9:12] == pytest.approx(plain.plain_f(wanted, given), abs=1e-9), video
    if len(truth) == 8:
        assert report["osvos"]["J&F"] == pytest.approx(0.773, abs=0.001)
