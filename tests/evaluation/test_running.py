from __future__ import annotations

import numpy as np
import pytest

from vosforge.clip import Clip
from vosforge.data.image_files import encode_mask
from vosforge.errors import UserError
from vosforge.evaluation.running import Truth, evaluate, predict, score_masks
from vosforge.propagation import CopyFirstMask, segment_clip


def moving(name: str, annotated: tuple[bool, ...] = (True,) * 5) -> Clip:
    frames, masks = np.zeros((5, 40, 60, 3), np.uint8), np.zeros((5, 40, 60), np.uint8)
    for t in range(5):
        masks[t, 10:30, 5 + 6 * t : 25 + 6 * t] = annotated[t]
    return Clip(name, frames, masks, np.array(annotated))


def test_truth_as_prediction_scores_one_and_copying_less(build_shards, tmp_path):
    build_shards(tmp_path / "set", [moving("a"), moving("b")])
    truth = Truth(str(tmp_path / "set"))
    methods = {"truth": lambda clip: clip.masks, "copy": lambda clip: segment_clip(CopyFirstMask(), clip)}
    heard = []
    found = evaluate(methods, truth, on_video=heard.append)
    assert (truth.name, len(truth), heard) == ("set", 2, [1, 2])
    assert found["truth"]["J&F"] == 1.0
    assert 0.2 < found["copy"]["J"] < 0.6
    assert set(found["copy"]["scores"]) == {"a", "b"}


def test_frames_without_truth_are_segmented_but_not_scored():
    clip = moving("sparse", (True, False, True, True, True))
    found = evaluate({"truth": lambda clip: clip.masks}, [clip])
    (frames,) = (scores["J"]["frames"] for scores in found["truth"]["scores"]["sparse"].values())
    assert len(frames) == 2


def test_masks_on_disk_score_like_the_method_that_made_them(tmp_path):
    clip = moving("a")
    (tmp_path / "a").mkdir()
    for frame, mask in zip(clip.frame_ids, clip.masks, strict=True):
        (tmp_path / "a" / f"{frame}.png").write_bytes(encode_mask(mask))
    assert score_masks(tmp_path, [clip])["J&F"] == 1.0


def test_missing_and_misshapen_masks_on_disk_are_named(tmp_path):
    clip = moving("a")
    with pytest.raises(UserError, match=r"/a: no predicted masks of this video"):
        score_masks(tmp_path, [clip])
    (tmp_path / "a").mkdir()
    for t in (1, 3):
        (tmp_path / "a" / f"0000{t}.png").write_bytes(encode_mask(clip.masks[t, :20]))
    with pytest.raises(UserError, match=r"00001\.png: expected the frame's size \(40, 60\), found \(20, 60\)") as error:
        score_masks(tmp_path, [clip])
    assert "00002.png: no predicted mask for this frame" in str(error.value)


def test_predictions_are_written_with_what_methods_think_of_them(build_shards, tmp_path):
    build_shards(tmp_path / "set", [moving("a"), moving("b", (True, False, True, True, True))])
    truth = Truth(str(tmp_path / "set"))
    methods = {"sure": lambda clip: (clip.masks, [{1: 0.9}] * 5), "silent": lambda clip: (clip.masks, [{}] * 5)}
    found = predict(methods, truth, tmp_path / "out")
    assert found.masks["silent"].frames("b") == ["00000", "00002", "00003", "00004"]
    assert score_masks(found.masks["sure"].folder, truth)["J&F"] == 1
    assert set(found.quality) == {"sure"}
    assert found.quality["sure"]["a"]["00003"] == {1: 0.9}
    assert found.frames_per_second["sure"] > 0
    every = predict(methods, truth, tmp_path / "every", every_frame=True)
    assert len(every.masks["sure"].frames("b")) == 5


def test_video_that_cannot_be_segmented_does_not_stop_the_others(build_shards, tmp_path):
    build_shards(tmp_path / "set", [moving("a"), moving("b")])

    def picky(clip: Clip) -> tuple[np.ndarray, list[dict[int, float]]]:
        if clip.name == "a":
            raise UserError("frame 3: too dark")
        return clip.masks, [{}] * 5

    found = predict({"picky": picky}, Truth(str(tmp_path / "set")), tmp_path / "out")
    assert found.bad == {0: "video a: frame 3: too dark"}
    assert found.masks["picky"].videos() == ["b"]


def test_object_that_enters_later_is_followed_but_not_scored_under_davis_2017():
    clip = moving("late")
    clip.masks[2:, :8, 40:] = 2
    found = evaluate({"truth": lambda clip: clip.masks}, [clip])["truth"]
    assert (found["J&F"], found["objects"]) == (1.0, 1)


def test_error_of_a_score_names_the_video():
    with pytest.raises(UserError, match=r"video odd: prediction: expected ids 0 to 1"):
        evaluate({"wrong": lambda clip: clip.masks * 9}, [moving("odd")])
