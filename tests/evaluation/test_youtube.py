from __future__ import annotations

import json
import math

import numpy as np
import pytest

from vosforge.errors import UserError
from vosforge.evaluation import score
from vosforge.evaluation.protocols import needed, score_at
from vosforge.evaluation.youtube import categories, frame_rate, listed_frames, read_meta, summarise_youtube


def video() -> np.ndarray:
    """Object 1 from the start, object 4 from the third frame; ids as a data set without 2 and 3 has them."""
    masks = np.zeros((6, 20, 40), np.uint8)
    masks[:, 2:10, 2:12] = 1
    masks[2:, 2:10, 20:30] = 4
    return masks


def entry(category: str | None, frames: list[str] | None = None) -> dict:
    found = {} if category is None else {"category": category}
    return found if frames is None else {**found, "frames": frames}


def scored(*values: float) -> dict:
    return {k: {m: {"mean": value + bonus} for m, bonus in (("J", 0), ("F", 0.1))} for k, value in enumerate(values, 1)}


def test_late_object_counts_after_its_first_appearance():
    prediction = video()
    prediction[2] = 0
    scores, positions = score_at(video(), prediction, "youtube")
    assert positions == {1: [1, 2, 3, 4, 5], 4: [3, 4, 5]}
    assert scores[1]["J"]["frames"] == [1, 0, 1, 1, 1]
    assert scores[4]["J"]["frames"] == [1, 1, 1]


def test_what_is_predicted_before_an_object_appears_does_not_count():
    prediction = video()
    prediction[:2, 15:, :] = 4
    assert score(video(), prediction, "youtube")[4]["J"]["mean"] == 1


def test_last_frame_counts_and_given_frames_do_not():
    prediction = video()
    prediction[[0, -1]] = 0
    assert score(video(), prediction, "youtube")[1]["J"]["frames"] == [1, 1, 1, 1, 0]


def test_listed_frames_alone_count():
    names = [f"{5 * t:05d}" for t in range(6)]
    meta = {"v": {"objects": {"1": entry("cat", ["00000", "00010", "00020", "00099"]), "4": entry("dog", names[2:4])}}}
    listed = listed_frames(meta, "v", names)
    assert listed == {1: [0, 2, 4], 4: [2, 3]}
    assert score_at(video(), video(), "youtube", listed)[1] == {1: [2, 4], 4: [3]}
    assert needed(video(), "youtube", listed).tolist() == [False, False, True, True, True, False]
    only = {"v": {"objects": {"1": entry("cat")}}}
    assert list(score_at(video(), video(), "youtube", listed_frames(only, "v", names))[0]) == [1]
    with pytest.raises(UserError, match=r"^set/meta\.json: no video w"):
        listed_frames(meta, "w", names, "set/meta.json")


def test_g_is_the_mean_of_the_four_group_means():
    scores = {"a": scored(0.8, 0.6), "b": scored(0.2)}
    meta = {"a": {"objects": {"1": entry("cat"), "2": entry("dog")}}, "b": {"objects": {"1": entry("emu")}}}
    found = summarise_youtube(scores, meta, {"cat", "dog"})
    assert found["J seen"] == pytest.approx(0.7)
    assert found["F unseen"] == pytest.approx(0.3)
    assert found["G"] == pytest.approx((0.7 + 0.2 + 0.8 + 0.3) / 4)
    assert (found["objects seen"], found["objects unseen"]) == (2, 1)


def test_without_known_categories_all_objects_are_one_group():
    scores = {"a": scored(0.8, 0.6)}
    meta = {"a": {"objects": {"1": entry("cat"), "2": entry("dog")}}}
    for known, seen, why in ((meta, None, "seen categories are not known"), ({}, {"cat"}, "no object has a category")):
        found = summarise_youtube(scores, known, seen)
        assert found["G"] == pytest.approx(0.75)
        assert math.isnan(found["J seen"])
        assert why in found["grouping"]


def test_missing_group_and_objects_without_category_are_told():
    scores = {"a": scored(0.8, 0.6, math.nan)}
    found = summarise_youtube(scores, {"a": {"objects": {"1": entry("cat"), "2": entry(None)}}}, {"cat"})
    assert found["G"] == pytest.approx(0.85)
    assert "only seen categories" in found["grouping"]
    assert "1 objects without a category are left out" in found["grouping"]


def test_frame_rate_shows_in_the_numbering():
    assert frame_rate(["00000", "00005", "00010", "00020"]) == 6
    assert frame_rate(["00000", "00001", "00002"]) == 30
    assert frame_rate(["00000", "00003"]) is None
    assert frame_rate(["first"]) is None


def test_categories_are_those_of_all_objects(tmp_path):
    videos = {"a": {"objects": {"1": entry("cat"), "2": entry(None)}}, "b": {"objects": {"1": entry("emu", ["00000"])}}}
    (tmp_path / "meta.json").write_text(json.dumps({"videos": videos}))
    assert categories(read_meta(tmp_path / "meta.json")) == {"cat", "emu"}


BAD_METAS = ("{", "[]", '{"videos": []}', '{"videos": {"a": {}}}', '{"videos": {"a": {"objects": {"x": {}}}}}')


@pytest.mark.parametrize("content", BAD_METAS)
def test_meta_of_another_form_is_refused(content, tmp_path):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UserError, match=r'meta\.json: expected {"videos"'):
        read_meta(tmp_path / "meta.json")
    with pytest.raises(UserError, match="no such file"):
        read_meta(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_meta(tmp_path)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"category": ["cat", "dog"]}, r"videos\.a\.objects\.1\.category is a list, not text"),
        ({"category": 3}, r"videos\.a\.objects\.1\.category is a number, not text"),
        ({"frames": [0, 5]}, r"videos\.a\.objects\.1\.frames holds a number, not names as text"),
        ({"frames": ["00000", None]}, r"videos\.a\.objects\.1\.frames holds null, not names as text"),
        ({"frames": "00000"}, r"videos\.a\.objects\.1\.frames is text, not a list of names"),
        ([], r"videos\.a\.objects\.1 is a list"),
    ],
)
def test_field_of_meta_of_another_form_is_named(entry, told, tmp_path):
    (tmp_path / "meta.json").write_text(json.dumps({"videos": {"a": {"objects": {"1": entry}}}}))
    with pytest.raises(UserError, match=rf"meta\.json: expected .* \({told}\)$"):
        read_meta(tmp_path / "meta.json")
