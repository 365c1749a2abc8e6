"""Bad input to training: one clear line each, before anything is computed."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import boto3
import numpy as np
import pytest
from faulty_s3 import s3_server

from vosforge.clip import Clip
from vosforge.errors import UserError
from vosforge.networks import build, save
from vosforge.outputs import lasting, lasting_file
from vosforge.storage import check_writable
from vosforge.training import curricula
from vosforge.training.plan import claim_run, note_execution, read_plan
from vosforge.training.stages import Loss
from vosforge.training.steps import Execution

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """jobs/train.py."""
    spec = importlib.util.spec_from_file_location("train_program", ROOT / "jobs" / "train.py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the module that they are made in.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def refusal(action, *arguments: object) -> str:
    """What is said of it, which is one line."""
    with pytest.raises(UserError) as told:
        action(*arguments)
    assert "\n" not in str(told.value)
    return str(told.value)


def planned(program: ModuleType, monkeypatch, data: object, *flags: object):
    """The plan that the program makes of a command line."""
    command = ["train.py", "--network", "stm", "--size", "nano", "--stages", "videos", "--data", data, *flags]
    monkeypatch.setattr("sys.argv", [*map(str, command)])
    plan = program.make_plan(*program.parse_flags())
    plan.samplers()
    return plan


@pytest.fixture
def films(tmp_path, build_shards) -> Path:
    """Videos of the data set tiny."""
    masks = np.zeros((4, 32, 32), np.uint8)
    masks[:, 8:20, 8:20] = 1
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    build_shards(tmp_path / "films", [Clip("a", frames, masks)], kind="videos")
    return tmp_path / "films"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--network", "emm"], "unknown network 'emm'; valid: camn"),
        (["--size", "huge"], "unknown size 'huge'; valid: nano, small, paper"),
        (["--stages", "video"], "expected some of images, bl30k, videos, found 'video'"),
        (["--stages", "images"], "stage images needs shards of kind images or pseudo_video in --data; found"),
        (["--steps", "0"], "steps, batch and learning rate must be positive, found 0,"),
        (["--learning-rate", "nan"], "must be positive, found 250, 8 and nan"),
        (["--learning-rate", "inf"], "must be positive, found 250, 8 and inf"),
        (["--batch", "-4"], "must be positive, found 250, -4"),
        (["--images.steps", "7"], "--images...: stage images is not in --stages videos"),
        (["--videos.repeats", "DAVSI", "5"], "stage videos: repeats of DAVSI, but the data sets in --data are tiny"),
        (["--videos.repeats", "tiny", "0"], "repeats must be at least 0 and leave something to draw"),
        (["--seed", "-1"], "seed must be from 0 to"),
        (["--checkpoint-every", "0"], "checkpoint_every must be at least 1, found 0"),
        (["--parts", "raeder=topk"], "unknown part 'raeder'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_mean_nothing_are_refused_by_name(program, monkeypatch, films, flags, told):
    assert told in refusal(planned, program, monkeypatch, films, *flags)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, found -0.0001"),
        ({"power": math.nan}, "power must be at least 0, found nan"),
        ({"warm_up": -5}, "warm_up must be at least 0, found -5"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0, found 0.0"),
        ({"repeats": (("DAVIS", -1.0),)}, "repeats must be at least 0, found"),
    ],
    ids=str,
)
def test_numbers_of_a_stage_that_mean_nothing_are_refused(change, told):
    (stage,) = curricula.stages("stm", "nano", ["videos"])
    assert f"stage videos: {told}" in refusal(lambda: replace(stage, **change))


def test_weights_of_losses_and_shares_that_mean_nothing_are_refused():
    assert "weight of dice must be at least 0, found -1" in refusal(lambda: Loss(dice=-1))
    assert "shares must be at least 1, found 0" in refusal(lambda: Execution(shares=0))


def test_repeats_of_a_curriculum_hold_where_its_data_set_is_given(program, monkeypatch, films, tmp_path, build_shards):
    build_shards(tmp_path / "davis", [Clip("b", np.zeros((4, 32, 32, 3), np.uint8), np.ones((4, 32, 32), np.uint8))],
                 dataset="DAVIS")  # fmt: skip
    small = ["--size", "small"]
    assert planned(program, monkeypatch, films, *small).stages[0].repeats == ()
    both = planned(program, monkeypatch, films, tmp_path / "davis", *small)
    assert both.stages[0].repeats == (("DAVIS", 5.0),)
    assert both.samplers()[0].shares()["DAVIS"][1] == pytest.approx(5 / 6)


def test_shards_of_another_schema_are_refused_with_the_way_out(program, monkeypatch, films):
    manifest = json.loads((films / "manifest.json").read_text())
    (films / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    told = refusal(planned, program, monkeypatch, films)
    assert told == f"{films}: shards of schema 1, expected {manifest['schema_version']}; build them again"


def test_shards_that_are_not_there_or_hold_no_object_are_refused(program, monkeypatch, tmp_path, build_shards):
    assert "nowhere: no manifest.json" in refusal(planned, program, monkeypatch, tmp_path / "nowhere")
    empty = Clip("a", np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 32, 32), np.uint8))
    build_shards(tmp_path / "empty", [empty])
    told = refusal(planned, program, monkeypatch, tmp_path / "empty")
    assert told == f"stage videos: no video with an object in {tmp_path / 'empty'}"


@pytest.mark.parametrize(("network", "size"), [("stcn", "nano"), ("stm", "small")])
def test_initial_network_of_another_kind_or_size_is_refused_with_both(make_plan, tmp_path, network, size):
    save(build(network, size), tmp_path / "first.safetensors")
    told = refusal(make_plan(initial=str(tmp_path / "first.safetensors")).build_network)
    assert told.startswith(f"initial network {network} {size} cannot start stm nano: {tmp_path}/first.safetensors: ")


def test_run_of_another_network_or_size_is_refused_with_the_fields(make_plan, tmp_path):
    claim_run(str(tmp_path), make_plan(), "local")
    other = replace(make_plan(), network="kmn", size="small")
    told = refusal(claim_run, str(tmp_path), other, "local")
    assert "run run in" in told
    assert "was started with another network, size; choose another name, or delete" in told


def test_weights_of_a_backbone_are_known_by_their_contents(make_plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("backbone.safetensors").write_bytes(b"one")
    plan = make_plan(parts={"pretrained": "backbone.safetensors"})
    # Workers run in other directories.
    assert plan.parts["pretrained"] == str(tmp_path / "backbone.safetensors")
    claim_run(str(tmp_path), plan, "local")
    Path("backbone.safetensors").write_bytes(b"another")
    assert "was started with another file_digests.pretrained" in refusal(claim_run, str(tmp_path), plan, "local")


@pytest.fixture
def kept(make_plan, tmp_path) -> Path:
    """The folder of a run that was begun."""
    claim_run(str(tmp_path), make_plan(), "ray")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "plan.json: expected JSON, found something else"),
        ("[]", "plan.json: expected a JSON object, found list"),
        ('{"name": "run"}', "plan.json: expected the plan of a run of this version, found another"),
    ],
)
def test_plan_that_cannot_be_read_is_refused_by_file(kept, content, told):
    (kept / "plan.json").write_text(content)
    assert told in refusal(read_plan, str(kept))


def test_plan_of_another_version_is_refused_by_file(kept):
    content = json.loads((kept / "plan.json").read_text())
    content["stages"][0]["learning_rate"] = "fast"
    (kept / "plan.json").write_text(json.dumps(content))
    assert f"{kept}/plan.json: expected the plan of a run of this version" in refusal(read_plan, str(kept))


def test_folder_of_a_run_under_another_name_is_not_begun_anew(kept):
    moved = kept.rename(kept.parent / "archived")
    assert f"{moved}: the folder holds run run; give it that name again" in refusal(read_plan, str(moved))


def test_resumption_is_computed_as_the_run_was_unless_flags_say_otherwise(program, monkeypatch, kept):
    execution = Execution(precision="bf16", clips_at_once=2, shares=4)
    settings = {"workers": 4, "gpu": True, "feeders": 3, "threads": 2, "execution": asdict(execution)}
    note_execution(str(kept.parent), kept.name, settings)
    monkeypatch.setattr("sys.argv", ["train.py", "--resume", str(kept)])
    found = program.parse_resumption()
    assert (found.workers, found.gpu, found.feeders, found.threads, found.execution) == (4, True, 3, 2, execution)
    monkeypatch.setattr("sys.argv", ["train.py", f"--resume={kept}", "--workers", "2", "--no-gpu"])
    found = program.parse_resumption()
    assert (found.resume, found.workers, found.gpu, found.execution) == (str(kept), 2, False, execution)


def test_resumption_of_nothing_is_refused(program, tmp_path):
    told = refusal(program.resume, program.Resumption(str(tmp_path / "none")))
    assert told == f"{tmp_path}/none: no run, plan.json is missing"


@pytest.fixture
def s3(monkeypatch) -> Iterator[str]:
    with s3_server() as address:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        yield address


def test_bucket_that_is_not_there_is_refused(s3):
    assert "s3://none/runs: cannot be written (" in refusal(check_writable, "s3://none/runs")
    assert refusal(read_plan, "s3://none/run") == "s3://none/run: no run, plan.json is missing"


def test_bucket_without_rights_is_refused(make_plan, s3, monkeypatch):
    boto3.client("s3").create_bucket(Bucket="theirs")
    # The server then asks who it is, and knows nobody.
    monkeypatch.setattr("moto.core.responses.ActionAuthenticatorMixin.request_count", 0)
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    assert "s3://theirs/runs: cannot be written (" in refusal(check_writable, "s3://theirs/runs")
    assert "s3://theirs/runs/run" in refusal(claim_run, "s3://theirs/runs", make_plan(), "ray")


def test_relative_storage_of_a_submitted_job_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert "--storage runs: a submitted job needs an absolute path" in refusal(lasting, "runs", "--storage")
    assert "--sheet sheet.png: a submitted job needs" in refusal(lasting_file, Path("sheet.png"), "--sheet")


def test_what_is_written_here_alone_takes_no_uri():
    told = refusal(lasting_file, Path("s3://bucket/sheet.png"), "--sheet")
    assert told == "--sheet s3:/bucket/sheet.png: expected a path, found an s3:// URI; copy it there afterwards"
