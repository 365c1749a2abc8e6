"""Sweeps whose driver is killed, and trials whose process dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vosforge.training.plan import TrainingPlan, claim_run

pytestmark = pytest.mark.cluster
SWEEP = """
import json, sys
from ray import tune
from vosforge import cluster
from vosforge.search.sweeps import run_sweep
from vosforge.search.trials import Sweep
from vosforge.training.plan import read_plan

storage, concurrency = sys.argv[1], int(sys.argv[2])
plan = read_plan(f"{storage}/base")[0]
space = {"last.learning_rate": tune.choice([1e-3, 1.1e-3]), "memory_every": 5}
sweep = Sweep("sweep", plan, f"{storage}/validation", storage, 2, concurrency, search="grid", rungs=4)
cluster.connect()
found = run_sweep(sweep, space, lambda news: print(json.dumps(news), flush=True))
print(json.dumps({"found": found}), flush=True)
"""


@pytest.fixture
def plan(make_plan) -> TrainingPlan:
    return make_plan("base", steps=24, probe_clips=0, checkpoint_every=4)


@pytest.fixture
def storage(build_shards, moving, tmp_path) -> Path:
    build_shards(tmp_path / "validation", [moving(f"v{i}", i) for i in range(4)])
    return tmp_path


def start(storage: Path, concurrency: int) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(storage), str(concurrency)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def told(process: subprocess.Popen[str], stop=lambda news: False) -> list[dict]:
    """What a sweep tells, up to a piece of news or its end."""
    heard, printed = [], []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("{"):
            heard.append(json.loads(line))
            if stop(heard[-1]):
                return heard
    assert process.wait(300) == 0, "".join(printed)
    return heard


@pytest.mark.timeout(900)
def test_a_killed_sweep_goes_on_finished_trials_stay_and_running_ones_resume(plan, storage):
    """Killed when the second trial has done some of its last stage; the first one is finished by then."""
    claim_run(str(storage), plan, "ray")
    process = start(storage, 1)
    steps: dict[str, list[int]] = {}

    def second_is_under_way(news: dict) -> bool:
        if "loss" in news and news["stage"] == "videos":
            steps.setdefault(news["trial"], []).append(news["step"])
        return len(steps) == 2 and min(max(own) for own in steps.values()) > 34

    told(process, second_is_under_way)
    first, second = steps
    # Tune writes its state down every other second.
    time.sleep(3)
    process.kill()
    process.communicate()

    again = start(storage, 1)
    heard = told(again)
    found = {trial["trial"]: trial for trial in heard[-1]["found"]}
    assert set(found) == {first, second}
    assert {trial["state"] for trial in found.values()} == {"finished"}
    resumed = {news["trial"] for news in heard if "loss" in news}
    assert resumed <= {second}
    assert min([news["step"] for news in heard if "loss" in news], default=48) > 32
    assert not any("warm_start" in news and not news["reused"] for news in heard)
    # The second trial's first stage was the first one's.
    assert [found[first]["saved_steps"], found[second]["saved_steps"]].count(24) <= 1


def trial_actors(process: subprocess.Popen[str]) -> list[int]:
    """Processes of Tune's trials that a process started, at whatever distance."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue

    def comes_from(pid: int) -> bool:
        while pid in parents and pid != process.pid:
            pid = parents[pid]
        return pid == process.pid

    return [pid for pid in parents if names[pid].startswith("ray::ImplicitFunc") and comes_from(pid)]


@pytest.mark.timeout(600)
def test_a_trial_whose_process_dies_fails_with_a_reason_and_the_others_go_on(plan, storage):
    claim_run(str(storage), replace(plan, stages=plan.stages[1:]), "ray")
    process = start(storage, 2)
    under_way: set[str] = set()

    def both_are_under_way(news: dict) -> bool:
        if "loss" in news:
            under_way.add(news["trial"])
        return len(under_way) == 2

    told(process, both_are_under_way)
    os.kill(trial_actors(process)[0], signal.SIGKILL)
    found = told(process)[-1]["found"]
    assert [trial["state"] for trial in found] == ["finished", "failed"]
    assert found[1]["error"]
    assert "\n" not in found[1]["error"]
    assert found[0]["step"] == 24
