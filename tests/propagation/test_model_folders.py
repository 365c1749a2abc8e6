"""Models as folders: descriptions of another form, and digests of what they hold."""

from __future__ import annotations

import json
import shutil

import pytest

from vosforge import networks
from vosforge.errors import UserError
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
        (json.dumps({**WHOLE, "memory_every": 0}), "memory_every: expected a whole number from 1, found 0"),
        (json.dumps({**WHOLE, "memory_every": "5"}), "memory_every: expected a whole number from 1, found '5'"),
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
