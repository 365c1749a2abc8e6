from __future__ import annotations

import json

import mlflow
import pytest

from vosforge.errors import UserError
from vosforge.registry import roll_back
from vosforge.registry.champions import champion_of, crown
from vosforge.registry.promotion import Decision

YES = Decision(True, "better")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('champions') / 'mlflow.db'}"


@pytest.fixture
def client(store, tmp_path) -> mlflow.MlflowClient:
    """A store with four versions of a model "m" that nobody has looked at."""
    client = mlflow.MlflowClient(store)
    client.create_registered_model("m")
    for _ in range(4):
        client.create_model_version("m", source=tmp_path.as_uri())
    yield client
    client.delete_registered_model("m")


def history(client: mlflow.MlflowClient) -> str:
    return client.get_registered_model("m").tags["vosforge.champions"]


def test_rolling_back_goes_through_former_champions_one_by_one(client, store):
    for version in ("1", "3", "4"):
        crown(client, "m", version, YES)
    assert (champion_of(client, "m"), history(client)) == ("4", "1 3 4")
    assert roll_back("m", store, "flickers") == ("4", "3")
    assert roll_back("m", store) == ("3", "1")
    assert (champion_of(client, "m"), history(client)) == ("1", "1")
    told = json.loads(client.get_model_version("m", "4").tags["vosforge.rolled_back"])
    assert (told["to"], told["reason"]) == ("3", "flickers")
    with pytest.raises(UserError, match="no former champion of version 1 is left"):
        roll_back("m", store)


def test_a_champion_after_a_rollback_is_followed_by_the_one_that_was_put_back(client, store):
    for version in ("1", "2"):
        crown(client, "m", version, YES)
    roll_back("m", store)
    crown(client, "m", "3", YES)
    assert history(client) == "1 3"
    assert roll_back("m", store) == ("3", "1")


def test_an_alias_that_was_moved_by_hand_is_taken_as_it_is(client, store):
    client.set_registered_model_alias("m", "champion", "1")
    crown(client, "m", "2", YES)
    assert history(client) == "1 2"
    client.set_registered_model_alias("m", "champion", "4")
    assert roll_back("m", store) == ("4", "2")


def test_promotion_that_stopped_before_the_alias_moved_changes_nothing(client, store):
    for version in ("1", "2"):
        crown(client, "m", version, YES)
    client.set_registered_model_tag("m", "vosforge.champions", "1 2 3")
    assert roll_back("m", store) == ("2", "1")


def test_former_champions_that_were_deleted_are_passed_over(client, store):
    for version in ("1", "2", "3"):
        crown(client, "m", version, YES)
    client.delete_model_version("m", "2")
    assert roll_back("m", store) == ("3", "1")
    assert history(client) == "1"


def test_the_champion_crowned_again_has_itself_not_for_a_predecessor(client, store):
    crown(client, "m", "1", YES)
    crown(client, "m", "1", YES)
    assert history(client) == "1"


def test_reasons_are_tags_of_the_version(client):
    crown(client, "m", "1", Decision(True, "worse", "4", "held-out", forced="urgent"))
    tags = client.get_model_version("m", "1").tags
    assert tags["vosforge.forced"] == "urgent"
    assert json.loads(tags["vosforge.promotion"])["set"] == "held-out"


def test_a_model_without_champion_cannot_be_rolled_back(client, store):
    with pytest.raises(UserError, match="m: no champion in MLflow"):
        roll_back("m", store)
    with pytest.raises(UserError, match="nobody: no champion in MLflow"):
        roll_back("nobody", store)
