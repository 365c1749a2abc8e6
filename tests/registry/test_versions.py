from __future__ import annotations

import mlflow
import numpy as np
import pytest
import torch

from vosforge import networks
from vosforge.errors import UserError
from vosforge.propagation import Model, save_model
from vosforge.registry import load_model, register


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """An ensemble of two networks, registered once; its folder, store and version."""
    folder = tmp_path_factory.mktemp("registry")
    members = []
    for i in range(2):
        torch.manual_seed(i)
        members.append(folder / f"network-{i}.safetensors")
        networks.save(networks.build("stm", "nano"), members[-1])
    save_model(folder / "model", members)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    report = folder / "report.json"
    report.write_text("{}")
    uri = register(folder / "model", "pair", store, folder, "champion", {"test/JF_mean": 0.5}, [report])
    return folder, store, uri


def clip() -> tuple[np.ndarray, np.ndarray]:
    frames = np.random.default_rng(3).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    mask = np.zeros((40, 48), np.uint8)
    mask[4:20, 6:30], mask[22:36, 10:40] = 3, 7
    return frames, mask


def test_version_has_its_alias_scores_and_files(registered):
    _, store, uri = registered
    assert uri == "models:/pair/1"
    client = mlflow.MlflowClient(store)
    version = client.get_model_version_by_alias("pair", "champion")
    run = client.get_run(version.run_id)
    assert run.data.metrics == {"test/JF_mean": 0.5}
    assert [file.path for file in client.list_artifacts(version.run_id)] == ["lineage.json", "report.json"]


def test_registered_model_segments_as_the_folder_does(registered):
    folder, store, _ = registered
    frames, mask = clip()
    answers = []
    for model in (Model.load(folder / "model"), load_model("models:/pair@champion", store)):
        segmenter = model.start()
        assert len(model.members) == 2
        answers.append([segmenter.labels(segmenter.step(f, mask if t == 0 else None)) for t, f in enumerate(frames)])
    assert np.array_equal(*answers)


def test_unknown_model_is_one_error(registered):
    _, store, _ = registered
    with pytest.raises(UserError, match=r"models:/nobody@champion: not found in MLflow"):
        load_model("models:/nobody@champion", store)
    with pytest.raises(UserError, match=r"expected a network's \.safetensors file"):
        load_model("no/such/model")
