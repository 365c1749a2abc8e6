"""The program as its user runs it, in this process but where its exit counts."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import mlflow
import pytest
import torch

from vosforge import networks
from vosforge.errors import UserError
from vosforge.propagation import save_model
from vosforge.registry import digest_of
from vosforge.serving.models import shelf
from vosforge.storage import sha256

PROGRAM = Path(__file__).resolve().parent.parent.parent / "jobs" / "register.py"
VALUES = [0.5, 0.6, 0.7, 0.4, 0.55, 0.65]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("register_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three networks as files; the store's folder is shared, names of models are not."""
    folder = tmp_path_factory.mktemp("program")
    for i in range(3):
        torch.manual_seed(i)
        networks.save(networks.build("stm", "nano"), folder / f"{i}.safetensors")
    return folder


@pytest.fixture
def call(program, folder, monkeypatch):
    """Runs the program with options by name."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return lambda **options: program.main(program.Options(**options, store_folder=folder / "runs"))


def client(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")


def report(
    folder: Path, i: int, gain: float, sets: tuple[str, ...] = ("held-out",), values: Sequence[float] = VALUES
) -> Path:
    """What jobs/evaluate.py would write of network i, as far as the gate looks at it."""
    scores = {f"v{n}": {"1": {measure: {"mean": value + gain} for measure in "JF"}} for n, value in enumerate(values)}
    methods = {"DIS flow": {"scores": scores}, "other": {"scores": scores}, "mine": {"scores": scores}}
    digest = sha256(folder / f"{i}.safetensors")
    content = {"protocol": "davis2017", "models": {"mine": {"sha256": digest}}, "sets": dict.fromkeys(sets, methods)}
    path = folder / f"report-{i}-{gain}.json"
    path.write_text(json.dumps(content))
    return path


def aliases(folder: Path, name: str) -> dict[str, str]:
    return {key: str(value) for key, value in client(folder).get_registered_model(name).aliases.items()}


def test_better_is_champion_worse_stays_challenger_and_rolling_back_undoes(call, folder, capsys):
    network = [str(folder / f"{i}.safetensors") for i in range(3)]
    call(model=network[0], name="m", alias="champion", report=report(folder, 0, 0.0))
    assert "registered models:/m/1, alias challenger, champion" in capsys.readouterr().out
    call(model=network[1], name="m", alias="champion", report=report(folder, 1, 0.1))
    assert aliases(folder, "m") == {"champion": "2", "challenger": "2"}
    with pytest.raises(UserError, match=r"models:/m/3 is registered, but version 2 stays champion: J&F -0\.2"):
        call(model=network[2], name="m", alias="champion", report=report(folder, 2, -0.1))
    assert aliases(folder, "m") == {"champion": "2", "challenger": "3"}
    call(model="models:/m@challenger", name="m", alias="champion", force="night videos")
    assert aliases(folder, "m")["champion"] == "3"
    version = client(folder).get_model_version("m", "3")
    assert version.tags["vosforge.forced"] == "night videos"
    assert version.tags["vosforge.sha256"] == sha256(folder / "2.safetensors")
    assert json.loads(version.tags["vosforge.promotion"])["difference"]["mean"] == pytest.approx(-0.2)
    call(rollback="m", reason="flickers")
    assert "models:/m@champion is version 2 again, not 3" in capsys.readouterr().out
    assert aliases(folder, "m")["champion"] == "2"
    run = client(folder).get_run(version.run_id)
    assert run.data.metrics["held-out/JF_mean"] == pytest.approx(sum(VALUES) / 6 - 0.1)
    files = {file.path for file in client(folder).list_artifacts(version.run_id)}
    assert files == {"lineage.json", "evaluations", "report-2--0.1.json"}


def test_what_cannot_be_compared_registers_nothing(call, folder):
    network = str(folder / "0.safetensors")
    call(model=network, name="n", alias="champion")
    for options, message in (
        ({}, "--report: a new champion needs a report"),
        ({"report": report(folder, 0, 0.1)}, "champion version 1 has no evaluation on held-out"),
        ({"report": report(folder, 0, 0.2, ("a", "b"))}, "--set: expected one of a, b"),
        ({"report": report(folder, 1, 0.1), "method": "mine"}, "its mine is another model"),
    ):
        with pytest.raises(UserError, match=message):
            call(model=network, name="n", alias="champion", **options)
    assert len(client(folder).search_model_versions("name='n'")) == 1


def test_a_registered_version_takes_a_report_later(call, folder, capsys):
    network = [str(folder / f"{i}.safetensors") for i in range(2)]
    call(model=network[0], name="later", alias="champion")
    call(model=network[1], name="later", report=report(folder, 1, 0.1))
    with pytest.raises(UserError, match="champion version 1 has no evaluation on held-out"):
        call(model="models:/later@challenger", name="later", alias="champion")
    call(model="models:/later@champion", name="later", report=report(folder, 0, 0.0))
    call(model="models:/later@challenger", name="later", alias="champion")
    told = capsys.readouterr().out
    assert "is kept with models:/later/1, on held-out" in told
    assert "95 % interval +0.1000 to +0.1000 over 6 videos against version 1 on held-out" in told
    assert "models:/later@champion is models:/later/2" in told
    assert digest_of("models:/later@champion", client(folder).tracking_uri) == sha256(folder / "1.safetensors")


def test_fewer_than_five_videos_are_no_comparison(call, folder):
    network = str(folder / "0.safetensors")
    call(model=network, name="few", alias="champion", report=report(folder, 0, 0.0, values=VALUES[:4]))
    with pytest.raises(UserError, match=r"version 1 stays champion: .* over 4 videos .*: fewer than 5 videos"):
        call(model=network, name="few", alias="champion", report=report(folder, 0, 0.2, values=VALUES[:4]))
    assert aliases(folder, "few") == {"champion": "1", "challenger": "2"}


def test_further_reports_add_sets_and_files_and_the_same_again_changes_nothing(call, folder):
    call(model=str(folder / "0.safetensors"), name="more", report=report(folder, 0, 0.0))
    for _ in range(2):
        call(model="models:/more/1", name="more", report=report(folder, 0, 0.1, ("night",)))
        call(model="models:/more/1", name="more", report=report(folder, 0, 0.0))
    version = client(folder).get_model_version("more", "1")
    assert version.tags["vosforge.evaluated_on"] == "held-out night"
    assert "vosforge.replaced" not in version.tags
    metrics = client(folder).get_run(version.run_id).data.metrics
    assert metrics["night/JF_mean"] == pytest.approx(metrics["held-out/JF_mean"] + 0.1)
    files = {file.path for file in client(folder).list_artifacts(version.run_id)}
    assert files == {"lineage.json", "evaluations", "report-0-0.0.json", "report-0-0.1.json"}


def test_other_scores_on_a_set_take_the_place_of_those_that_are_kept_only_by_force(call, folder):
    call(model=str(folder / "0.safetensors"), name="changed", alias="champion", report=report(folder, 0, 0.0))
    given = {"model": "models:/changed@champion", "name": "changed", "report": report(folder, 0, -0.1)}
    with pytest.raises(UserError, match=r"changed/1: another evaluation on held-out is kept .* --force REASON"):
        call(**given)

    def score() -> float:
        version = client(folder).get_model_version("changed", "1")
        return client(folder).get_run(version.run_id).data.metrics["held-out/JF_mean"]

    assert score() == pytest.approx(sum(VALUES) / 6)
    call(**given, force="the truth was mended")
    assert score() == pytest.approx(sum(VALUES) / 6 - 0.1)
    call(**{**given, "report": report(folder, 0, 0.0)}, force="once more")
    told = json.loads(client(folder).get_model_version("changed", "1").tags["vosforge.replaced"])
    assert [(entry["sets"], entry["reason"]) for entry in told] == [
        (["held-out"], "the truth was mended"),
        (["held-out"], "once more"),
    ]


def test_reports_that_no_digest_ties_to_the_model_are_noted(call, folder, capsys):
    content = json.loads(report(folder, 0, 0.0).read_text())
    del content["models"]
    path = folder / "unknown.json"
    path.write_text(json.dumps(content))
    call(model=str(folder / "0.safetensors"), name="unknown", report=path, method="mine")
    assert "gives no digest of mine; that it is this model is trusted" in capsys.readouterr().out


@pytest.mark.parametrize("alias", ["latest", "v1", "a b", "a@b"])
def test_aliases_that_cannot_be_register_nothing(call, folder, alias):
    with pytest.raises(UserError, match=f"--alias {alias}: expected letters"):
        call(model=str(folder / "0.safetensors"), name="alias", alias=alias)
    assert client(folder).search_model_versions("name='alias'") == []


@pytest.mark.parametrize("uri", ["models:/emn@champion@x", "models:/emn@", "models:/@x"])
def test_uris_with_another_number_of_aliases_are_one_error_where_a_server_is_started_too(folder, uri):
    with pytest.raises(UserError, match="expected models:/NAME@ALIAS"):
        shelf(uri, f"sqlite:///{folder / 'runs' / 'mlflow.db'}")


def test_other_aliases_move_freely_and_an_ensemble_is_one_version(call, folder):
    team = save_model(folder / "team", [folder / "0.safetensors", folder / "1.safetensors"])
    call(model=str(team), name="team", alias="canary")
    assert aliases(folder, "team") == {"challenger": "1", "canary": "1"}
    assert client(folder).get_model_version("team", "1").tags["vosforge.kind"] == "ensemble"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected --model and --name, or --rollback NAME"),
        ({"model": "x"}, "expected --model and --name"),
        ({"rollback": "m", "name": "m"}, "--rollback puts the former champion back; --name does not go with it"),
        ({"model": "x", "name": "m", "set": "s"}, "add --alias champion"),
        ({"model": "x", "name": "m", "force": "s"}, "--force moves champion, or lets a registered version's --report"),
        ({"model": "models:/m@a@b", "name": "m", "alias": "c"}, "expected models:/NAME@ALIAS with one @"),
        ({"model": "models:/m", "name": "m", "alias": "c"}, "expected models:/NAME/VERSION"),
        ({"model": "models:/m/1/2", "name": "m", "alias": "c"}, "expected models:/NAME/VERSION"),
        ({"model": "x", "name": "m", "alias": "champion", "force": " "}, "--force: expected a reason, found none"),
        ({"model": "x", "name": "m", "reason": "r"}, "--reason goes with --rollback"),
        ({"model": "x", "name": "m"}, "x: no model; expected a network's file"),
        ({"model": "x", "name": "m", "report": Path("none.json")}, r"none\.json: no such report"),
        ({"model": "models:/a/1", "name": "b", "alias": "c"}, "models:/a/1 is a version of another model"),
        ({"model": "models:/a/1", "name": "a"}, "is registered already; add --report, --alias or both"),
        ({"model": "models:/none@challenger", "name": "none", "alias": "c"}, "not found in MLflow"),
        ({"model": "models:/none/1", "name": "none", "alias": "c"}, "not found in MLflow"),
    ],
)
def test_options_that_cannot_be_are_one_error(call, options, message):
    with pytest.raises(UserError, match=message):
        call(**options)
