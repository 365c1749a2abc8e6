"""Runs of two workers that are killed: they go on to the same losses and weights, with whatever number of workers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from faulty_s3 import s3_server
from machines import descendants, farthest, weights

from vosforge.training.plan import TrainingPlan, claim_run, noted_execution

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
FIT = """
import json, sys
from vosforge import cluster
from vosforge.training.on_ray import fit
from vosforge.training.plan import read_plan

run, workers = sys.argv[1], int(sys.argv[2])
tell = lambda metrics: print(json.dumps([metrics["step"], metrics["loss"]]), flush=True)
cluster.connect()
fit(read_plan(run)[0], run.rpartition("/")[0], tell, workers, threads=1)
"""


@pytest.fixture
def plan(make_plan) -> TrainingPlan:
    """40 steps in two stages, of a network with batch norm and dropout."""
    made = replace(make_plan(steps=20), checkpoint_every=5, probe_clips=0, network="emn")
    changes = {"batch": 4, "ema": 0.9, "optimizer": "sgd", "learning_rate": 1e-2}
    return replace(made, stages=[replace(stage, **changes) for stage in made.stages])


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    with s3_server() as address:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="runs")
        yield "s3://runs"


def start(*command: object) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        start_new_session=True,
    )


def follow(process: subprocess.Popen[str], until: int = 0) -> dict[int, float]:
    """The losses that a run tells, up to a step or its end."""
    losses, printed = {}, []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("["):
            step, loss = json.loads(line)
            losses[step] = loss
            if step == until:
                return losses
    assert process.wait(300) == 0, "".join(printed)
    return losses


def begin(plan: TrainingPlan, storage: str, workers: int) -> subprocess.Popen[str]:
    claim_run(storage, plan, "ray")
    return start("-c", FIT, f"{storage}/{plan.name}", workers)


@pytest.mark.timeout(1500)
def test_two_workers_of_which_one_is_killed_or_whose_driver_dies_end_in_the_same_weights(plan, bucket, tmp_path):
    """Killed at random steps: one worker; the driver, whose run two workers, and then one worker, go on with."""
    drawn = random.SystemRandom().randrange(1 << 32)
    dice = random.Random(drawn)
    first, second = dice.randrange(6, 24), dice.randrange(26, 38)
    told = f"killed after steps {first} and {second}, drawn by seed {drawn}"
    straight = follow(begin(plan, str(tmp_path), 2))
    expected = weights(f"{tmp_path}/{plan.name}")
    assert set(straight) == set(range(1, 41))

    process = begin(plan, bucket, 2)
    losses = follow(process, first)
    os.kill(dice.choice(descendants(process.pid, "RayTrainWorker")), signal.SIGKILL)
    losses |= follow(process, second)
    process.kill()
    process.communicate()
    assert losses.keys() >= set(range(1, second + 1)), told
    assert losses == {step: pytest.approx(straight[step], abs=1e-6) for step in losses}, told

    # From its URI alone, and with one worker: no other flag.
    again = start(ROOT / "jobs" / "train.py", "--resume", f"{bucket}/{plan.name}", "--workers", 1, "--verbose")
    printed, _ = again.communicate(timeout=400)
    assert again.returncode == 0, f"{told}\n{printed}"
    assert f"trained network: {bucket}/{plan.name}/network.safetensors" in printed
    assert f"{plan.name}: 1/40" not in printed
    # The one worker computes the two shares apart.
    assert noted_execution(f"{bucket}/{plan.name}")["execution"]["shares"] == 2
    difference = farthest(weights(f"{bucket}/{plan.name}"), expected)
    print(f"{told}: weights differ by {difference:.1e}")
    assert difference < 1e-5, told
    names = [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="runs")["Contents"]]
    folders = {name.split("/")[1] for name in names if "/step_" in name}
    assert folders == {"step_00000035", "step_00000040"}, "orphans of replayed steps are left"


def test_damaged_checkpoint_ends_a_run_on_ray_in_one_line_that_names_its_file(plan, tmp_path):
    process = begin(plan, str(tmp_path), 1)
    follow(process, 12)
    # Its cluster too, whose processes would train on for a moment and keep another checkpoint.
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    folder = tmp_path / plan.name
    registered = json.loads((folder / "checkpoint_manager_snapshot.json").read_text())["latest_checkpoint_result"]
    latest = folder / registered["checkpoint_dir_name"]
    whole = (latest / "optimizer.pt").read_bytes()
    (latest / "optimizer.pt").write_bytes(whole[:1000])
    again = start(ROOT / "jobs" / "train.py", "--resume", folder)
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 2, printed
    (error,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert f"{latest}/optimizer.pt: the checkpoint is damaged (expected {len(whole)} bytes, found 1000)" in error
    assert "Traceback" not in printed
