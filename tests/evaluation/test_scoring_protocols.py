from __future__ import annotations

import math

import numpy as np
import pytest

from vosforge.errors import UserError
from vosforge.evaluation import boundary_f, jaccard, score
from vosforge.evaluation.metrics import statistics
from vosforge.evaluation.protocols import PROTOCOLS


def video(frames: int = 6) -> np.ndarray:
    """Object 1 drifts right, object 2 stands still."""
    masks = np.zeros((frames, 24, 60), np.uint8)
    for t in range(frames):
        masks[t, 3:10, 4 + 2 * t : 14 + 2 * t] = 1
        masks[t, 14:20, 40:50] = 2
    return masks


def test_davis2017_scores_clips_as_the_official_code_does(formulas, golden):
    clips: dict[tuple, np.ndarray] = {}
    for case in golden("davis_visible.json"):
        key = tuple(case[k] for k in ("seed", "frames", "height", "width", "objects"))
        if key not in clips:
            clips[key] = formulas.clip(*key)[1]
        found = score(clips[key], formulas.prediction(clips[key], case["kind"]))
        assert [str(k) for k in found] == list(case["per_object"])
        for k, expected in case["per_object"].items():
            for measure in ("J", "F"):
                where = f"{key} {case['kind']} object {k} {measure}"
                got = found[int(k)][measure]
                assert got["frames"] == pytest.approx(expected[f"{measure}_frames"], abs=1e-9), where
                for name in ("mean", "recall", "decay"):
                    assert got[name] == pytest.approx(expected[measure][name], abs=1e-9), where


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perfect_masks_score_one(protocol):
    for measures in score(video(), video(), protocol).values():
        for measure in measures.values():
            assert (measure["mean"], measure["recall"], measure["decay"]) == (1, 1, 0)


def test_davis_drops_the_first_and_the_last_frame():
    prediction = video()
    prediction[[0, -1]] = 0
    for protocol in ("davis2017", "davis2016"):
        found = score(video(), prediction, protocol)[1]["J"]
        assert found["frames"] == [1, 1, 1, 1]
    assert score(video(), prediction, "all-frames")[1]["J"]["frames"] == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("protocol", ["davis2017", "davis2016"])
def test_two_frames_leave_nothing_to_score(protocol):
    found = score(video(2), video(2), protocol)[1]
    for measure in ("J", "F"):
        assert found[measure]["frames"] == []
        assert math.isnan(found[measure]["mean"])
    assert score(video(2), video(2), "all-frames")[1]["J"]["mean"] == 1


def test_object_that_was_not_predicted_scores_zero():
    prediction = video()
    prediction[prediction == 2] = 0
    found = score(video(), prediction)
    assert found[1]["J"]["mean"] == found[1]["F"]["mean"] == 1
    assert found[2]["J"]["mean"] == found[2]["F"]["mean"] == 0


def test_object_that_vanished_scores_one_where_the_prediction_drops_it_too():
    truth = video()
    truth[3:][truth[3:] == 1] = 0
    assert score(truth, truth)[1]["J"]["frames"] == [1, 1, 1, 1]
    assert score(truth, video())[1]["J"]["frames"] == [1, 1, 0, 0]


def test_davis2017_counts_objects_in_the_first_frame_only():
    truth = video()
    truth[2:, 0, 0] = 3
    assert list(score(truth, video())) == [1, 2]
    truth[0][truth[0] == 1] = 0
    assert list(score(truth, video())) == [1, 2], "ids below the highest are objects even when not drawn"


def test_davis2017_refuses_ids_that_it_would_not_score():
    prediction = video()
    prediction[2, 0, 0], prediction[3, 0, 0] = 7, 9
    with pytest.raises(UserError, match=r"ids 0 to 2.*found ids 7, 9"):
        score(video(), prediction)
    unscored = video()
    unscored[-1, 0, 0] = 7
    assert score(video(), unscored)[1]["J"]["mean"] == 1


def test_void_is_background():
    truth = video()
    truth[:, 20:, :] = 255
    for protocol in PROTOCOLS:
        assert score(truth, video(), protocol) == score(video(), video(), protocol)


def test_video_without_objects_has_no_scores():
    nothing = np.zeros_like(video())
    assert [score(nothing, nothing, protocol) for protocol in PROTOCOLS] == [{}] * len(PROTOCOLS)


def test_davis2016_merges_all_ids():
    swapped = np.array([0, 2, 1], np.uint8)[video()]
    assert score(video(), swapped)[1]["J"]["mean"] == 0
    assert list(score(video(), swapped, "davis2016")) == [1]
    assert score(video(), swapped, "davis2016")[1]["J"]["mean"] == 1


def test_davis2016_reads_masks_of_0_and_255():
    binary = np.where(video() > 0, 255, 0).astype(np.uint8)
    half = video()
    half[half == 2] = 0
    expected = score(video(), half, "davis2016")
    assert score(binary, half, "davis2016") == expected
    assert score(video(), np.where(half > 0, 255, 0).astype(np.uint8), "davis2016") == expected


def test_all_frames_counts_each_object_from_where_it_is_first_seen():
    truth = video()
    truth[:3][truth[:3] == 1] = 0
    late = truth.copy()
    late[3][late[3] == 1] = 0
    assert score(truth, late, "all-frames")[1]["J"]["frames"] == [0, 1, 1]
    early = truth.copy()
    early[1][video()[1] == 1] = 1
    assert score(truth, early, "all-frames")[1]["J"]["frames"] == [0, 1, 1, 1, 1]


def test_all_frames_ignores_ids_unknown_to_the_truth():
    prediction = video()
    prediction[:, 0, 0] = 9
    assert score(video(), prediction, "all-frames") == score(video(), video(), "all-frames")


def test_scores_are_the_metrics_of_the_object_s_masks():
    truth, prediction = video(), np.roll(video(), 1, axis=2)
    found = score(truth, prediction)[2]
    for name, metric in (("J", jaccard), ("F", boundary_f)):
        values = metric(truth[1:-1] == 2, prediction[1:-1] == 2)
        assert found[name] == {**statistics(values), "frames": values.tolist()}


def test_unknown_protocol_names_the_known_ones():
    with pytest.raises(UserError, match="davis2017, davis2016, youtube, all-frames, found 'davis'"):
        score(video(), video(), "davis")


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"\(6, 24, 60\).*found \(5, 24, 60\)"):
        score(video(), video()[:5])
    with pytest.raises(UserError, match=r"prediction: expected .* uint8.*int64"):
        score(video(), video().astype(np.int64))
    with pytest.raises(UserError, match="at least one frame"):
        score(video()[:0], video()[:0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[[1]]], r"expected an array, \(T, H, W\) uint8 index masks of at least one frame, found list"),
        (np.ones((1, 2, 2), np.int64), r"expected masks of dtype uint8, found int64; convert with astype\(np\.uint8\)"),
        (np.ones((2, 2), np.uint8), r".*, found \(2, 2\) uint8; read palette PNGs without converting them to RGB"),
    ],
)
def test_masks_of_another_kind_are_told_what_is_expected(wrong, message):
    with pytest.raises(UserError, match=f"^truth: {message}"):
        score(wrong, np.ones((1, 2, 2), np.uint8))
    if not isinstance(wrong, list) and wrong.ndim == 3:
        with pytest.raises(UserError, match=f"^prediction: {message}"):
            score(np.ones((1, 2, 2), np.uint8), wrong)
