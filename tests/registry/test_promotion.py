from __future__ import annotations

import json
from dataclasses import replace
from math import nan

import numpy as np
import pytest

from vosforge.errors import UserError
from vosforge.registry.evaluations import Evaluation
from vosforge.registry.promotion import decide


def evaluation(values: list[float], **changes: object) -> Evaluation:
    """Of videos with one object each, whose J and F are the same."""
    scores = {f"v{i}": {1: {measure: {"mean": value} for measure in "JF"}} for i, value in enumerate(values)}
    return replace(Evaluation("held-out", "mine", "davis2017", scores, truth="t", model="m"), **changes)


BEFORE = [0.5, 0.6, 0.7, 0.4, 0.55, 0.65, 0.3, 0.8]


def test_first_champion_needs_no_comparison():
    decision = decide(None, None, None)
    assert (decision.allowed, decision.champion, decision.difference) == (True, None, None)


def test_better_on_every_video_is_allowed_and_told():
    decision = decide("3", evaluation([value + 0.02 for value in BEFORE]), evaluation(BEFORE))
    assert decision.allowed
    assert decision.difference.mean == pytest.approx(0.02)
    told = "J&F +0.0200, 95 % interval +0.0200 to +0.0200 over 8 videos against version 3 on held-out"
    assert decision.reason == told
    assert json.loads(decision.as_json())["difference"]["videos"] == 8


def test_missing_digests_are_told_with_the_decision():
    ours, theirs = evaluation(BEFORE, model=None), evaluation(BEFORE, truth=None)
    assert decide("1", ours, theirs).reason.endswith(
        "against version 1 on held-out (reports give no digest of the new version, the videos of held-out)"
    )
    assert "no digest of version 1)" in decide("1", evaluation(BEFORE), evaluation(BEFORE, model=None)).reason


def test_equal_scores_are_allowed():
    assert decide("1", evaluation(BEFORE), evaluation(BEFORE)).allowed


def test_slightly_worse_on_average_is_refused():
    decision = decide("1", evaluation([value - 0.001 for value in BEFORE]), evaluation(BEFORE))
    assert not decision.allowed
    assert decision.reason.endswith("worse on average")


@pytest.mark.parametrize(("spread", "allowed"), [(0.004, True), (0.2, False)])
def test_better_on_average_is_allowed_only_where_the_interval_stays_above_the_margin(spread, allowed):
    signs = np.array([1, -1, 1, -1, 1, -1, 1, -1])
    ours = [value + 0.001 + spread * sign for value, sign in zip(BEFORE, signs, strict=True)]
    decision = decide("1", evaluation(ours), evaluation(BEFORE))
    assert decision.difference.mean == pytest.approx(0.001)
    assert (decision.difference.low > -0.005) is allowed
    assert decision.allowed is allowed


def test_fewer_than_five_videos_are_refused_however_good():
    decision = decide("1", evaluation([0.9] * 4), evaluation([0.1] * 4))
    assert not decision.allowed
    assert "fewer than 5 videos" in decision.reason


def test_videos_in_which_no_frame_counts_are_no_videos():
    ours, theirs = ([value] * 4 + [nan] * 4 for value in (0.9, 0.1))
    assert "over 4 videos" in decide("1", evaluation(ours), evaluation(theirs)).reason


def test_forced_promotion_keeps_what_was_measured_and_the_reason():
    decision = decide("1", evaluation([0.1] * 8), evaluation(BEFORE), force="the old one leaks")
    assert decision.allowed
    assert decision.forced == "the old one leaks"
    assert "worse on average" in decision.reason
    without = decide("1", None, None, force="no data")
    assert without.allowed
    assert "--report" in without.reason


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (None, evaluation(BEFORE), "--report: a new champion needs a report"),
        (evaluation(BEFORE), None, "champion version 1 has no evaluation on held-out"),
        (evaluation(BEFORE), evaluation(BEFORE[:6]), "version 1 was not evaluated on 2 of 8 videos, the first v6"),
        (
            evaluation(BEFORE[:6]),
            evaluation(BEFORE),
            "the new version was not evaluated on 2 of 8 videos, the first v6",
        ),
        (
            evaluation(BEFORE, protocol="youtube"),
            evaluation(BEFORE),
            r"another --protocol \(davis2017 there, youtube here\)",
        ),
        (
            evaluation(BEFORE, how={"flip": True}),
            evaluation(BEFORE),
            r"another setting \(flip None there, True here\)",
        ),
        (
            evaluation(BEFORE, truth="aa"),
            evaluation(BEFORE, truth="bb"),
            r"another content of its shards \(bb there, aa here\)",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_error(ours, theirs, message):
    with pytest.raises(UserError, match=message):
        decide("1", ours, theirs)


def test_other_objects_of_the_same_videos_are_refused():
    ours, theirs = evaluation(BEFORE), evaluation(BEFORE)
    ours.scores["v3"][2] = ours.scores["v3"][1]
    with pytest.raises(UserError, match=r"video v3 has objects \[1, 2\] here, \[1\] in version 1's evaluation"):
        decide("1", ours, theirs)
