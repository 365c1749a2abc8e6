from __future__ import annotations

import json
from dataclasses import replace
from math import isnan

import mlflow
import pytest

from vosforge.errors import UserError
from vosforge.registry import read_report
from vosforge.registry.evaluations import chosen, compare_kept, keep, keep_report, kept


def objects(mean: float | None) -> dict:
    return {"1": {measure: {"mean": mean, "recall": mean, "decay": None, "frames": [mean]} for measure in "JF"}}


@pytest.fixture
def report(tmp_path):
    """A report on two sets of a baseline and two models, as jobs/evaluate.py writes it."""
    methods = {name: {"scores": {"a": objects(0.5), "b": objects(None)}} for name in ("DIS flow", "old", "new")}
    content = {
        "protocol": "davis2017",
        "short_side": None,
        "settings": {"flip": False, "scales": [1.0], "memory_every": 2},
        "models": {"old": {"uri": "o", "sha256": "aaaa"}, "new": {"uri": "n", "sha256": "bbbb"}},
        "truths": {"held-out": {"uri": "t", "digest": "cccc"}},
        "sets": {"held-out": methods, "s3://bucket/other": methods},
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    return path


def test_the_method_of_a_models_digest_is_found(report):
    held_out, other = read_report(report, model="bbbb")
    assert (held_out.on, held_out.method, held_out.model, held_out.truth) == ("held-out", "new", "bbbb", "cccc")
    assert other.truth is None
    assert set(other.metrics) == {f"s3-bucket-other/{name}" for name in ("J_mean", "F_mean", "JF_mean")}
    # Settings that are the usual ones say nothing.
    assert held_out.how == {"memory_every": 2}
    assert isnan(held_out.scores["b"][1]["J"]["mean"])
    assert held_out.metrics["held-out/JF_mean"] == 0.5


def test_a_report_of_several_models_without_a_known_digest_tells_nothing(report):
    assert read_report(report, model="dddd") == []
    assert [found.on for found in read_report(report, "old", "aaaa")] == ["held-out", "s3://bucket/other"]


def test_the_only_method_that_is_no_baseline_is_the_model(report):
    content = json.loads(report.read_text())
    del content["models"], content["truths"]
    for methods in content["sets"].values():
        del methods["old"]
    report.write_text(json.dumps(content))
    assert [found.method for found in read_report(report, model="dddd")] == ["new", "new"]


def test_reports_that_cannot_be_of_the_model_are_refused(report, tmp_path):
    with pytest.raises(UserError, match=r"its old is another model \(aaaa, this one is bbbb\); evaluate this one"):
        read_report(report, "old", "bbbb")
    with pytest.raises(UserError, match="no method 'mine'; there are: DIS flow, new, old"):
        read_report(report, "mine")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match=r"expected a report of jobs/evaluate\.py --json, found other JSON"):
        read_report(tmp_path / "other.json")
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        read_report(tmp_path / "other.json")
    (tmp_path / "curve.json").write_text(json.dumps({"protocol": "interactive", "sets": {"x": {"m": {"auc": 1}}}}))
    with pytest.raises(UserError, match="expected scores of every video, found none"):
        read_report(tmp_path / "curve.json")


@pytest.mark.parametrize(
    "change",
    [
        {"models": None},
        {"models": {"new": None}},
        {"models": {"new": {"sha256": 5}}},
        {"truths": None},
        {"truths": {"held-out": None}},
        {"settings": []},
        {"sets": {"held-out": ["new"]}},
        {"protocol": None},
    ],
)
def test_reports_with_parts_of_another_kind_are_refused(report, change):
    report.write_text(json.dumps({**json.loads(report.read_text()), **change}))
    with pytest.raises(UserError, match="expected a report of jobs/evaluate"):
        read_report(report, model="bbbb")


@pytest.mark.parametrize("value", [9.0, -0.1, 1.001, float("inf")])
def test_scores_outside_0_to_1_are_refused(report, value):
    content = json.loads(report.read_text())
    content["sets"]["held-out"]["new"]["scores"]["b"]["1"]["F"]["mean"] = value
    report.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"new on held-out, video b, object 1, F: expected 0 to 1, found"):
        read_report(report, model="bbbb")


def test_the_same_scores_again_are_nothing_new_and_others_contradict(report):
    known = read_report(report, model="bbbb")
    assert compare_kept(known, read_report(report, model="bbbb")) == ([], [])
    assert compare_kept(known[:1], known) == (known[1:], [])
    for changes in (
        {"scores": {"a": known[0].scores["a"]}},
        {"protocol": "youtube"},
        {"how": {}},
        {"truth": "other"},
        {"model": "other"},
    ):
        other = replace(known[0], **changes)
        assert compare_kept(known, [other]) == ([other], ["held-out"])
    less = replace(known[0], truth=None, model=None)
    assert compare_kept(known, [less]) == ([], [])
    assert compare_kept([less], known[:1]) == (known[:1], [])


def test_a_set_is_named_where_there_are_several(report):
    found = read_report(report, model="aaaa")
    assert chosen(found, "held-out") is found[0]
    assert chosen(found[:1], None) is found[0]
    assert chosen([], None) is None
    with pytest.raises(UserError, match="--set: expected one of held-out, s3://bucket/other"):
        chosen(found, None)
    with pytest.raises(UserError, match="--set elsewhere: expected a set that the model was evaluated on"):
        chosen(found, "elsewhere")


def test_kept_evaluations_are_what_was_read_and_newer_ones_replace_older(report, tmp_path):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    place = client.create_experiment("one", artifact_location=(tmp_path / "artefacts").as_uri())
    run = client.create_run(place).info.run_id
    assert kept(client, run) == []
    keep(client, run, read_report(report, model="aaaa"))
    keep(client, run, read_report(report, model="bbbb")[:1])
    assert client.get_run(run).data.metrics["s3-bucket-other/JF_mean"] == 0.5
    found = {evaluation.on: evaluation for evaluation in kept(client, run)}
    assert {on: evaluation.method for on, evaluation in found.items()} == {
        "held-out": "new",
        "s3://bucket/other": "old",
    }
    assert found["held-out"].scores["a"] == {1: {"J": {"mean": 0.5}, "F": {"mean": 0.5}}}
    assert isnan(found["held-out"].scores["b"][1]["F"]["mean"])


def test_files_of_reports_stand_side_by_side(report, tmp_path):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.create_run(client.create_experiment("one", artifact_location=(tmp_path / "a").as_uri())).info.run_id
    first = report.read_bytes()
    for content in (first, b"{}", first, b"{}"):
        report.write_bytes(content)
        keep_report(client, run, report)
    names = sorted(file.path for file in client.list_artifacts(run))
    assert names == ["report-44136fa3.json", "report.json"]
    assert [(tmp_path / "a" / run / "artifacts" / name).read_bytes() for name in names] == [b"{}", first]
