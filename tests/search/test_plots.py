from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vosforge.search.plots import ABSENT, comparable, draw_sweep, importance, varied


def trial(score: float | None, **config: object) -> dict:
    return {"JF_mean": score, "config": config, "rungs": []}


TRIALS = [
    trial(0.1 + 0.2 * (i % 2) + 0.001 * i, reader=("dense", "topk")[i % 2], rate=10.0 ** -(i % 5), same=1,
          **({"top_k": 20 + i} if i % 2 else {}))
    for i in range(12)
]  # fmt: skip


def test_choices_that_some_trials_lack_are_told_as_words():
    columns = varied(TRIALS)
    assert set(columns) == {"reader", "rate", "top_k"}
    assert columns["top_k"][:2] == [ABSENT, "21"]
    assert columns["rate"][:2] == [1.0, 0.1]


def test_what_decides_the_score_is_most_important():
    shares = importance([trial(score["JF_mean"], **{k: v for k, v in score["config"].items() if k != "top_k"})
                         for score in TRIALS], "JF_mean")  # fmt: skip
    assert shares["reader"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert importance(TRIALS[:2], "JF_mean") == {}


def test_trials_are_compared_after_the_steps_that_all_of_them_have_done():
    long = {**trial(0.4, reader="dense"), "rungs": [{"step": 10, "JF_mean": 0.1}, {"step": 20, "JF_mean": 0.4}]}
    short = {**trial(0.2, reader="topk"), "rungs": [{"step": 10, "JF_mean": 0.2}]}
    scored, at = comparable([long, short], "JF_mean")
    assert ([one["JF_mean"] for one in scored], at) == ([0.1, 0.2], 10)
    assert comparable([long, trial(0.3)], "JF_mean") == ([long, trial(0.3)], None)


def test_pictures_show_trials_that_have_a_score(tmp_path):
    paths = draw_sweep([*TRIALS, trial(None, reader="kernel")], "JF_mean", str(tmp_path))
    assert [Path(path).name for path in paths] == ["parallel-coordinates.png", "importance.png"]
    assert all(min(Image.open(path).size) > 100 for path in paths)
    assert draw_sweep([trial(0.5, reader="dense")], "JF_mean", str(tmp_path)) == []
