"""Models as folders: descriptions of another form, and digests of what they hold."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from vosforge import networks
from vosforge.errors import UserError
from vosforge.networks import build, save
from vosforge.networks.stacking import StackingNetwork
from vosforge.propagation import Model, save_model
from vosforge.propagation.model import model_digest

WHOLE = {"members": ["member-0.safetensors"], "memory_every": 5, "budget": 24}


@pytest.fixture
def folder(nano, tmp_path):
    """A model of one network."""
    networks.save(nano(), tmp_path / "stm.safetensors")
    return save_model(tmp_path / "model", [tmp_path / "stm.safetensors"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected JSON, found something else"),
        ("{", "expected JSON, found something else"),
        ("[]", "expected members, memory_every and budget, found a list"),
        ("{}", "members: expected file names, at least one, found none"),
        (json.dumps({**WHOLE, "members": []}), r"members: expected file names, at least one, found \[\]"),
        (json.dumps({**WHOLE, "members": [1]}), r"members: expected file names, at least one, found \[1\]"),
        (
            json.dumps({**WHOLE, "memory_every": 0}),
            "memory_every: expected a whole number from 1, or one a member, found 0",
        ),
        (json.dumps({**WHOLE, "memory_every": [5, 5]}), r"memory_every: expected a whole .* found \[5, 5\]"),
        (json.dumps({**WHOLE, "how": "best"}), "how: expected average, vote, stacking, found 'best'"),
        (
            json.dumps({**WHOLE, "counts": [0]}),
            r"counts: expected a whole number from 1 for each of 1 members, found \[0",
        ),
        (json.dumps({**WHOLE, "counts": 2}), "counts: expected a whole number from 1 for each of 1 members, found 2"),
        (json.dumps({**WHOLE, "memory_every": "5"}), "memory_every: expected a whole number from 1, or .* found '5'"),
        (json.dumps({"members": WHOLE["members"], "memory_every": 5}), "budget: expected a limit or null, found none"),
        (json.dumps({**WHOLE, "short_side": 8}), "short_side: expected pixels from 16 or null, found 8"),
        (json.dumps({**WHOLE, "budget": [1]}), r"budget: expected a limit or null, found \[1\]"),
        (json.dumps({**WHOLE, "budget": "much"}), "budget must be a number of frames, or bytes"),
    ],
)
def test_description_of_another_form_is_an_error_that_names_file_and_field(folder, content, message):
    (folder / "model.json").write_text(content)
    for read in (Model.load, model_digest):
        with pytest.raises(UserError, match=rf"^{folder}/model\.json: {message}"):
            read(folder)


def test_description_with_any_budget_is_read(folder):
    for budget in (None, 7, "7", "512MiB", "unlimited"):
        (folder / "model.json").write_text(json.dumps({**WHOLE, "budget": budget}))
        assert Model.load(folder).budget == budget
        Model.load(folder).start()


def test_digest_follows_weights_and_settings_and_no_names(folder, nano, tmp_path):
    digest = model_digest(folder)
    assert model_digest(shutil.copytree(folder, tmp_path / "copy")) == digest
    (folder / "model.json").write_text(json.dumps({**WHOLE, "memory_every": 6}))
    changed = model_digest(folder)
    networks.save(nano(seed=1), folder / "member-0.safetensors")
    assert len({digest, changed, model_digest(folder), model_digest(tmp_path / "stm.safetensors")}) == 4
    (folder / "member-0.safetensors").unlink()
    with pytest.raises(UserError, match=r"member-0\.safetensors: no such network file"):
        model_digest(folder)
    with pytest.raises(UserError, match=r"expected a network's \.safetensors file or a folder with model\.json"):
        model_digest(tmp_path / "gone")


def test_how_members_are_merged_travels_with_the_model(tmp_path):
    members = []
    for name, reader in (("a", "dense"), ("b", "topk")):
        members.append(tmp_path / f"{name}.safetensors")
        save(build("stm", "nano", reader=reader), members[-1])
    plain = save_model(tmp_path / "plain", members, counts=[1, 1])
    assert set(json.loads((plain / "model.json").read_text())) == {"members", "memory_every", "budget", "short_side"}
    vote = Model.load(save_model(tmp_path / "vote", members, [3, 5], how="vote", counts=[2, 1]))
    assert (vote.memory_every, vote.how, vote.counts) == ([3, 5], "vote", [2, 1])
    assert vote.start().counts == (2, 1)
    network = StackingNetwork(2)
    folder = save_model(tmp_path / "stacked", members, how=network)
    stacked = Model.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(stacked.how.parameters(), network.parameters(), strict=True))
    digest = model_digest(folder)
    with torch.no_grad():
        network.correction.bias.fill_(1.0)
    save_model(folder, members, how=network)
    assert model_digest(folder) != digest
    frame = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    mask = np.zeros((32, 40), np.uint8)
    mask[4:20, 4:20] = 1
    segmenter = stacked.start()
    segmenter.step(frame, mask)
    assert segmenter.step(frame).shape == (2, 32, 40)
    (folder / "stacking.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="expected a stacking network, found something else"):
        Model.load(folder)
