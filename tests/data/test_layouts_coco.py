"""COCO instances: polygons, and run lengths plain and packed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trees import write_frame

from vosforge.data.layouts import find_videos
from vosforge.data.layouts.rle import decode_runs, draw_polygons, unpack_counts
from vosforge.errors import UserError

SIZE = (20, 30)


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return [0, *runs] if flat[0] else runs


def packed(counts: list[int]) -> str:
    """The other direction of `unpack_counts`, after the format's description."""
    text = ""
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        while True:
            digit, value = value & 31, value >> 5
            done = value == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if done else 32))
            if done:
                break
    return text


def blob(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]]
    rng = np.random.default_rng(seed)
    return np.hypot(y - rng.uniform(0, size[0]), x - rng.uniform(0, size[1])) < rng.uniform(3, 12)


def square_polygon(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def write_coco(path: Path, annotations: list[dict], images: int = 2, listed: list[dict] | None = None) -> None:
    listed = listed or [
        {"id": 10 + i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(images)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path.write_text(json.dumps(content))


def entry(number: int, segmentation: object, image: int = 10, **more: object) -> dict:
    return {"id": number, "image_id": image, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(2):
        write_frame(tmp_path / "train2017" / f"{i:012d}.jpg", seed=i, size=SIZE)
    return tmp_path


@pytest.mark.parametrize("seed", range(12))
def test_runs_come_back_plain_and_packed(seed):
    mask = blob(seed, (37, 300))
    for counts in (runs_of(mask), packed(runs_of(mask))):
        assert (decode_runs({"size": [37, 300], "counts": counts}) == mask).all()


def test_runs_go_down_the_columns_and_begin_with_background():
    assert decode_runs({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[False, True, False], [True, False, False]]
    assert decode_runs({"size": [2, 1], "counts": [0, 2]}).all()


def test_packed_string_of_known_runs():
    # By hand: 6 is "6"; 1 is "1"; 40 is 8 with more to follow, then 1; the fourth run 4 is 3 more than the second.
    assert unpack_counts("61X13") == [6, 1, 40, 4]


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        ({"size": [2, 2], "counts": [1, 2]}, "expected 4 pixels, found runs of 3"),
        ({"size": [2, 2], "counts": "X"}, "ends within one"),
        ({"size": [2, 2], "counts": "1 2"}, "found ' '"),
        ({"counts": [4]}, "expected size and counts"),
    ],
)
def test_damaged_runs_are_refused(runs, told):
    with pytest.raises(UserError, match=told):
        decode_runs(runs)


def test_polygon_holds_the_pixels_whose_centre_is_inside():
    drawn = draw_polygons([square_polygon(4.0, 2.0, 5.0), square_polygon(20.6, 10.6, 2.0)], SIZE)
    expected = np.zeros(SIZE, bool)
    expected[2:7, 4:9] = True
    expected[11:13, 21:23] = True
    assert (drawn == expected).all()
    assert draw_polygons([square_polygon(-5.0, -5.0, 8.0)], SIZE).sum() == 9
    with pytest.raises(UserError, match="at least 3 corners"):
        draw_polygons([[1.0, 2.0, 3.0, 4.0]], SIZE)


def test_instances_are_stills_with_the_smaller_object_on_top(root):
    mask = blob(3)
    write_coco(
        root / "annotations" / "instances_train2017.json",
        [
            entry(1, [square_polygon(2, 2, 4)]),
            entry(2, [square_polygon(0, 0, 10)]),
            entry(3, {"size": list(SIZE), "counts": packed(runs_of(mask))}, image=11),
            entry(4, {"size": list(SIZE), "counts": [0, 600]}, iscrowd=1),
        ],
    )
    found = find_videos(root)
    assert (found.layout, found.kind) == ("coco", "images")
    assert found.reason == f"instances in annotations/instances_train2017.json, photographs in {root}/train2017"
    first, second = (video.read() for video in found.videos)
    expected = np.zeros(SIZE, np.uint8)
    expected[:10, :10] = 2
    expected[2:6, 2:6] = 1
    assert (first.masks[0] == expected).all()
    assert (second.masks[0] == mask).all()
    table = found.videos[0].table()
    assert table.column("objects").to_pylist() == [[1, 2]]
    assert table.column("image")[0].as_py() == (root / "train2017" / "000000000000.jpg").read_bytes()


def test_photographs_without_an_object_are_left_out_and_lost_ones_named(root):
    path = root / "annotations" / "instances_train2017.json"
    write_coco(path, [entry(1, [square_polygon(2, 2, 4)]), entry(2, [square_polygon(2, 2, 4)], image=12)], images=3)
    found = find_videos(root)
    assert [v.video_id for v in found.videos] == ["000000000000"]
    assert found.notes == ["1 photographs without an object are left out"]
    assert [v.problem for v in found.unusable] == [
        f"{root}/train2017/000000000002.jpg: no such photograph, although instances_train2017.json lists it"
    ]


def test_one_of_several_files_is_chosen_by_split_or_by_name(root):
    for split in ("train2017", "val2017"):
        write_coco(root / "annotations" / f"instances_{split}.json", [entry(1, [square_polygon(2, 2, 4)])])
    with pytest.raises(UserError, match=r"several sets of instances: .*val2017\.json; choose one with --split"):
        find_videos(root)
    with pytest.raises(UserError, match="no split 'test2017'"):
        find_videos(root, split="test2017")
    assert len(find_videos(root, split="train2017").videos) == 1
    assert len(find_videos(root / "annotations" / "instances_train2017.json").videos) == 1


def test_damaged_segmentation_and_file_are_named(root):
    path = root / "annotations" / "instances_train2017.json"
    write_coco(path, [entry(1, {"size": [9, 9], "counts": [81]}), entry(2, [[1.0, 2.0]], image=11)])
    first, second = find_videos(root).videos
    with pytest.raises(UserError, match=r"instances_train2017\.json:10: expected run lengths of size"):
        first.table()
    with pytest.raises(UserError, match=r"json:11: polygon: expected at least 3 corners"):
        second.table()
    write_coco(path, [{"segmentation": []}])
    with pytest.raises(UserError, match=r"instances_train2017\.json: expected COCO instances"):
        find_videos(root)


def test_file_without_its_photographs_says_where_they_were_sought(tmp_path):
    path = tmp_path / "annotations" / "instances_val2017.json"
    write_coco(path, [entry(1, [square_polygon(2, 2, 4)])])
    with pytest.raises(UserError, match=r"none of its photographs .* found in .*val2017"):
        find_videos(tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ([["a", "b"]], 'expected polygons or run lengths, found [["a", "b"]]'),
        ("abc", 'expected polygons or run lengths, found "abc"'),
        ({"size": list(SIZE), "counts": None}, '"counts": null}'),
        ({"size": list(SIZE), "counts": ["x"]}, '"counts": ["x"]}'),
        ([[None] * 6], "polygon: expected finite numbers"),
        (5, "expected polygons or run lengths, found 5"),
    ],
)
def test_segmentation_that_is_none_rejects_its_photograph_alone(root, segmentation, told):
    path = root / "annotations" / "instances_train2017.json"
    write_coco(path, [entry(1, segmentation), entry(2, [square_polygon(2, 2, 4)], image=11)])
    bad, sound = find_videos(root).videos
    with pytest.raises(UserError) as error:
        bad.table()
    assert str(error.value).startswith(f"{path}:10: ")
    assert told in str(error.value)
    assert sound.table().num_rows == 1


@pytest.mark.parametrize(("key", "value"), [("height", None), ("width", "wide"), ("height", 0), ("file_name", None)])
def test_photograph_without_a_name_or_a_size_is_rejected_alone(root, key, value):
    path = root / "annotations" / "instances_train2017.json"
    images = [{"id": 10 + i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(2)]
    images[0][key] = value
    write_coco(path, [entry(i, [square_polygon(2, 2, 4)], image=10 + i) for i in range(2)], listed=images)
    found = find_videos(root)
    assert [video.video_id for video in found.videos] == ["000000000001"]
    (bad,) = found.unusable
    assert bad.problem == f"{path}:10: expected a name and a size in pixels, found {key} {json.dumps(value)}"
    with pytest.raises(UserError, match=r"json:10: "):
        bad.table()


def test_photographs_of_one_name_in_two_folders_are_two(tmp_path):
    images = []
    for i, name in enumerate(("a/000.jpg", "b/000.jpg", "001.jpg")):
        write_frame(tmp_path / "images" / name, seed=i, size=SIZE)
        images.append({"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
    path = tmp_path / "instances_default.json"
    write_coco(path, [entry(i, [square_polygon(2, 2, 4)], image=i) for i in range(3)], listed=images)
    found = find_videos(tmp_path)
    assert [video.video_id for video in found.videos] == ["a-000", "b-000", "001"]
    assert found.unusable == []
    assert [video.table().num_rows for video in found.videos] == [1, 1, 1]
