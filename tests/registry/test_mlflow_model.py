"""The MLflow model as a client sees it: tables in, tables out."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import cv2
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from faulty_s3 import s3_server
from mlflow.exceptions import MlflowException

from vosforge import networks, pictures
from vosforge.data.image_files import decode_mask, encode_frame, encode_mask
from vosforge.propagation import save_model
from vosforge.registry import register
from vosforge.registry.packing import requirements


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """A store of two models: "pair", an ensemble, and "qpm", which assesses its masks."""
    folder = tmp_path_factory.mktemp("models")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    files = []
    for i, name in enumerate(("stm", "stm", "qpm")):
        torch.manual_seed(i)
        files.append(folder / f"{i}.safetensors")
        networks.save(networks.build(name, "nano"), files[-1])
    register(save_model(folder / "model", files[:2], memory_every=[2, 3]), "pair", store, folder)
    register(files[2], "qpm", store, folder)
    return store


@pytest.fixture(scope="module")
def model(store):
    mlflow.set_tracking_uri(store)
    return mlflow.pyfunc.load_model("models:/pair@challenger")


def clip() -> tuple[np.ndarray, np.ndarray]:
    frames = np.random.default_rng(3).integers(0, 256, (4, 40, 48, 3), dtype=np.uint8)
    mask = np.zeros((40, 48), np.uint8)
    mask[4:20, 6:30], mask[22:36, 10:40] = 3, 7
    return frames, mask


def coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def table() -> pd.DataFrame:
    frames, mask = clip()
    return pd.DataFrame(
        {"frame": [coded(encode_frame(f)) for f in frames], "mask": [coded(encode_mask(mask)), *[""] * 3]}
    )


def masks_of(answer: pd.DataFrame) -> np.ndarray:
    return np.stack([decode_mask(base64.b64decode(mask), "answer") for mask in answer["mask"]])


@pytest.fixture
def videos(tmp_path, monkeypatch) -> Path:
    """A folder that is open for videos, with one of them in it as frames."""
    folder = tmp_path / "videos"
    (folder / "clip").mkdir(parents=True)
    for t, frame in enumerate(clip()[0]):
        (folder / "clip" / f"f{t}.jpg").write_bytes(encode_frame(frame))
    monkeypatch.setenv("VOSFORGE_VIDEOS", f"{folder} s3://open/here")
    return folder


def named(uri: object, **columns: object) -> pd.DataFrame:
    return pd.DataFrame([{"video": str(uri), "mask": coded(encode_mask(clip()[1])), **columns}])


def test_every_frame_gets_a_palette_mask_of_the_ids_given(model):
    answer = model.predict(table())
    found = masks_of(answer)
    assert found.shape == (4, 40, 48)
    assert np.array_equal(found[0], clip()[1])
    assert set(np.unique(found)) <= {0, 3, 7}
    assert list(answer["frame"]) == ["00000", "00001", "00002", "00003"]
    assert list(answer["quality"]) == [{}] * 4


def test_pictures_may_be_bytes_and_cells_without_mask_may_be_missing(model):
    frames, mask = clip()
    rows = pd.DataFrame({"frame": [encode_frame(f) for f in frames], "mask": [encode_mask(mask), None, None, None]})
    assert np.array_equal(masks_of(model.predict(rows)), masks_of(model.predict(table())))


def test_objects_may_enter_at_later_frames(model):
    rows = table()
    rows["mask"] = ["", rows["mask"][0], "", ""]
    found = masks_of(model.predict(rows))
    assert not found[0].any()
    assert np.array_equal(found[1], clip()[1])


def test_parameters_are_those_of_the_memory(model):
    usual = masks_of(model.predict(table()))
    assert not np.array_equal(masks_of(model.predict(table(), {"short_side": 16})), usual)
    assert masks_of(model.predict(table(), {"memory_every": 1, "budget": "2"})).shape == usual.shape
    with pytest.raises(MlflowException, match="budget must be a number of frames, or bytes"):
        model.predict(table(), {"budget": "plenty"})
    with pytest.raises(MlflowException, match="memory_every must be a whole number of at least 1"):
        model.predict(table(), {"memory_every": 0})


def test_networks_that_assess_their_masks_tell_quality_by_object(store):
    mlflow.set_tracking_uri(store)
    quality = mlflow.pyfunc.load_model("models:/qpm@challenger").predict(table())["quality"]
    assert [set(told) for told in quality] == [{"3", "7"}] * 4
    assert quality[0] == {"3": 1.0, "7": 1.0}


def test_video_in_an_open_folder_is_segmented_by_its_path(model, videos):
    answer = model.predict(named(videos / "clip"))
    assert np.array_equal(masks_of(answer), masks_of(model.predict(table())))
    assert list(answer["frame"]) == ["f0", "f1", "f2", "f3"]
    later = model.predict(named(videos / "clip", position=2))
    assert not masks_of(later)[:2].any()


def test_video_on_s3_is_segmented_where_its_prefix_is_open(model, videos, monkeypatch):
    with pictures.Film(videos / "clip.mp4", 10) as film:
        for frame in clip()[0]:
            film.add(frame)
    with s3_server() as address:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="open")
        for key in ("here/clip.mp4", "elsewhere/clip.mp4"):
            s3.upload_file(str(videos / "clip.mp4"), "open", key)
        found = masks_of(model.predict(named("s3://open/here/clip.mp4")))
        assert np.array_equal(found, masks_of(model.predict(named(videos / "clip.mp4"))))
        for closed in ("elsewhere/clip.mp4", "here/../elsewhere/clip.mp4", "hereafter/clip.mp4"):
            with pytest.raises(MlflowException, match="expected in one of the folders opened for videos"):
                model.predict(named(f"s3://open/{closed}"))
        with pytest.raises(MlflowException, match=r"s3://open/here/none\.mp4: no such file"):
            model.predict(named("s3://open/here/none.mp4"))
        s3.put_object(Bucket="open", Key="here/list.m3u8", Body=b"#EXTM3U\n")
        with pytest.raises(MlflowException, match="found another kind of file"):
            model.predict(named("s3://open/here/list.m3u8"))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/clip.mp4", "ftp://host/clip.mp4", "rtsp://host/live"])
def test_nothing_is_fetched_from_elsewhere(model, videos, uri):
    with pytest.raises(MlflowException, match="nothing is fetched from elsewhere"):
        model.predict(named(uri))


def test_no_path_and_no_link_leads_out_of_the_open_folders(model, videos, tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "0.jpg").write_bytes(encode_frame(clip()[0][0]))
    (videos / "link").symlink_to(tmp_path / "secret")
    (videos / "linked").mkdir()
    (videos / "linked" / "0.jpg").symlink_to(tmp_path / "secret" / "0.jpg")
    for uri in (
        tmp_path / "secret", videos / ".." / "secret", videos / "link", videos / "linked", f"file://{tmp_path}/secret"
    ):  # fmt: skip
        with pytest.raises(MlflowException, match="expected in one of the folders opened for videos"):
            model.predict(named(uri))
    monkeypatch.delenv("VOSFORGE_VIDEOS")
    with pytest.raises(MlflowException, match="expected none, as no folder is opened for videos"):
        model.predict(named(videos / "clip"))


def test_frames_that_are_links_within_the_open_folders_are_segmented(model, videos):
    (videos / "again").mkdir()
    for path in (videos / "clip").iterdir():
        (videos / "again" / path.name).symlink_to(path)
    found = masks_of(model.predict(named(videos / "again")))
    assert np.array_equal(found, masks_of(model.predict(named(videos / "clip"))))


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
def test_no_playlist_leads_out_of_the_open_folders(model, videos, tmp_path, name):
    secret = tmp_path / "secret.mp4"
    write_video(secret)
    (videos / "link").symlink_to(secret)
    lines = {
        "list.m3u8": ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:0.4,", secret.as_uri(), "#EXT-X-ENDLIST"],
        "list.mp4": ["ffconcat version 1.0", "file link", "duration 0.4"],
    }[name]
    (videos / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(MlflowException, match=r"expected a video file .* found another kind of file"):
        model.predict(named(videos / name))
    # A link to it that is called otherwise is no way round either.
    (videos / "other.mp4").symlink_to(videos / name)
    with pytest.raises(MlflowException, match="found another kind of file"):
        model.predict(named(videos / "other.mp4"))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.avi", "clip.mkv", "clip.mpg"])
def test_usual_containers_are_opened(model, videos, name):
    write_video(videos / name)
    assert masks_of(model.predict(named(videos / name))).shape == (4, 40, 48)


def write_video(path: Path) -> None:
    codec = "PIM1" if path.suffix == ".mpg" else "mp4v" if path.suffix != ".avi" else "MJPG"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (48, 40))
    for frame in clip()[0]:
        writer.write(frame)
    writer.release()


def test_base64_may_have_line_breaks(model):
    broken = table().map(lambda text: base64.encodebytes(base64.b64decode(text)).decode())
    assert "\n" in broken["frame"][0].strip()
    assert np.array_equal(masks_of(model.predict(broken)), masks_of(model.predict(table())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": [""] * 4}, "mask: expected one with an object's id in at least one row, found none"),
        ({"frame": ["", *["x"] * 3]}, "row 0, frame: expected a JPEG or PNG, found none"),
        ({"frame": ["eHh4"] * 4}, "row 0, frame: expected a JPEG or PNG image, found 3 bytes that do not decode"),
        ({"mask": ["x", "", "", ""]}, "row 0, mask: expected base64, found something else"),
        ({"frame": ["e!Hh4"] * 4}, "row 0, frame: expected base64, found something else"),
        (
            {"video": ["a.mp4", "", "", ""]},
            "a request is one clip: expected frames, one a row, or one video, found more",
        ),
    ],
)
def test_what_cannot_be_segmented_is_one_error(model, change, message):
    with pytest.raises(MlflowException, match=message):
        model.predict(table().assign(**change))


def test_masks_beyond_the_end_of_a_video_are_refused(model, videos):
    with pytest.raises(MlflowException, match="position 9: the video has 4 frames, the last at 3"):
        model.predict(pd.concat([named(videos / "clip", position=0), named(videos / "clip", position=9)]))
    with pytest.raises(
        MlflowException, match="row 1: expected a mask, of a frame that no other row has, found another"
    ):
        model.predict(pd.concat([named(videos / "clip"), named(videos / "clip")], ignore_index=True))


def test_nothing_is_pickled_and_all_requirements_are_pinned(store):
    mlflow.set_tracking_uri(store)
    folder = Path(mlflow.artifacts.download_artifacts("models:/pair@challenger"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".pyc")]
    assert sorted(path.name for path in files if path.suffix == ".safetensors") == [
        f"member-{i}.safetensors" for i in range(2)
    ]
    lines = (folder / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert "vosforge" not in (folder / "requirements.txt").read_text()
    described = mlflow.models.Model.load(folder)
    assert [spec.name for spec in described.signature.params] == ["memory_every", "budget", "short_side"]
    assert set(json.loads((folder / "input_example.json").read_text())) == {"frame", "mask"}


def test_pinned_requirements_and_what_they_need_are_all_that_it_imports(store, tmp_path):
    table().to_json(tmp_path / "clip.json")
    allowed = {name.lower().replace("-", "_") for name in closure(requirements())}
    code = f"""
import importlib.machinery, importlib.metadata, sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in type(f).__module__ and "editable" not in str(f)]
sys.path = [p for p in sys.path if not p.endswith("/platform")]
names = importlib.metadata.packages_distributions()
names.pop("vosforge", None)
allowed = {sorted(allowed)!r}
class Required(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owners = names.get(name.split(".")[0], ())
        known = not owners or any(owner.lower().replace("-", "_") in allowed for owner in owners)
        return super().find_spec(name, path, target) if known else None
sys.meta_path = [Required if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
import mlflow, pandas as pd
mlflow.set_tracking_uri({store!r})
print(len(mlflow.pyfunc.load_model("models:/pair@challenger").predict(pd.read_json({str(tmp_path / "clip.json")!r}))))
import vosforge; print(vosforge.__file__)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    count, where = done.stdout.split()
    assert count == "4"
    assert "artifacts/code" in where


def closure(required: list[str]) -> set[str]:
    """Names of packages that pip would install for these."""
    found, waiting = set(), [re.split(r"[=<>!~ ;\[(]", line)[0] for line in required]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [re.split(r"[=<>!~ ;\[(]", line)[0] for line in needs if "extra ==" not in line]
    return found
