from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vosforge.data.shards import ShardSet
from vosforge.errors import UserError
from vosforge.evaluation.paired import Difference
from vosforge.evaluation.truth import Truth
from vosforge.networks import build, save
from vosforge.propagation import Model, segment_clip
from vosforge.search.ensembles import Building, Row, take_videos, verdict
from vosforge.search.members import gather
from vosforge.search.probabilities import Predictions
from vosforge.search.selecting import Budget, Team

PROGRAM = Path(__file__).resolve().parent.parent.parent / "tuning" / "ensemble.py"


@pytest.fixture
def validation(tmp_path, build_shards, moving) -> str:
    build_shards(tmp_path / "validation", [moving(f"v{i}", i) for i in range(8)])
    return str(tmp_path / "validation")


@pytest.fixture
def sweep(tmp_path, validation) -> Path:
    """A finished sweep of three trials, one of which failed."""
    folder = tmp_path / "runs" / "sweep"
    folder.mkdir(parents=True)
    trials = []
    for name, reader in (("a", "dense"), ("b", "topk")):
        network = folder / f"{name}.safetensors"
        save(build("stm", "nano", reader=reader), network)
        trials.append({"trial": name, "state": "finished", "config": {"memory_every": 3}, "network": str(network)})
    trials.append({"trial": "c", "state": "failed", "config": {}, "network": None, "error": "out of memory"})
    (folder / "trials.json").write_text(json.dumps(trials))
    digest = ShardSet(validation).digest
    settings = {"protocol": "davis2017", "short_side": None, "data_digests": ["of training"]}
    content = {"validation": {"uri": validation, "digest": digest}, **settings}
    (folder / "sweep.json").write_text(json.dumps(content))
    return folder


def test_candidates_are_networks_of_sweeps_runs_and_files_each_once(sweep, tmp_path, validation):
    run = tmp_path / "runs" / "run"
    save(build("emn", "nano"), run / "network.safetensors")
    found = gather([str(sweep), str(run), str(sweep / "a.safetensors"), str(sweep)], tmp_path)
    assert [(one.name, one.memory_every) for one in found.candidates] == [("a", 3), ("b", 3), ("run", 5), ("a", 5)]
    assert (found.validation, found.protocol) == (validation, "davis2017")
    assert found.trained_on == {"of training"}
    (run / "plan.json").write_text(json.dumps({"data_digests": ["of the run"]}))
    assert gather([str(run)], tmp_path).trained_on == {"of the run"}
    a, b, emn, again = found.candidates
    assert a.differs(b)
    assert a.differs(emn)
    assert not a.differs(again)


def test_a_network_of_a_trial_is_what_the_trial_was(sweep, tmp_path):
    """As MLflow's run of a trial leads to its file; of a checkpoint the run's folder is one up."""
    run = sweep / "sweep-d"
    save(build("stm", "nano"), run / "step_00000004" / "network.safetensors")
    (run / "plan.json").write_text(json.dumps({"data_digests": ["of the trial"]}))
    trial = {"trial": "d", "state": "stopped", "config": {"memory_every": 2}, "network": None}
    trials = [*json.loads((sweep / "trials.json").read_text()), trial]
    trial["network"] = str(run / "step_00000004" / "network.safetensors")
    (sweep / "trials.json").write_text(json.dumps(trials))
    found = gather([trial["network"]], tmp_path)
    assert [(one.name, one.memory_every) for one in found.candidates] == [("d", 2)]
    assert found.trained_on == {"of the trial"}


def test_sources_that_give_no_candidate_are_refused(sweep, tmp_path, validation, build_shards, moving):
    with pytest.raises(UserError, match="expected a finished sweep's folder, a run's folder or a network file"):
        gather([str(tmp_path)], tmp_path)
    with pytest.raises(UserError, match="at least one sweep, run or network file"):
        gather([], tmp_path)
    trials = json.loads((sweep / "trials.json").read_text())
    (sweep / "trials.json").write_text(json.dumps(trials[2:]))
    with pytest.raises(UserError, match="no trial succeeded"):
        gather([str(sweep)], tmp_path)
    (sweep / "trials.json").unlink()
    with pytest.raises(UserError, match=r"no finished sweep, trials\.json is missing"):
        gather([str(sweep)], tmp_path)
    (sweep / "trials.json").write_text(json.dumps(trials))
    build_shards(validation, [moving(f"v{i}", i + 20) for i in range(8)])
    with pytest.raises(UserError, match="whose shards changed since; run the sweep again under another --name"):
        gather([str(sweep)], tmp_path)


def test_the_three_parts_share_no_video_and_none_was_trained_on(validation, tmp_path, build_shards, moving):
    videos = take_videos(validation, None, None, frozenset())
    names = [clip.name for part in ("select", "stack", "report") for clip in videos.clips(part)]
    assert sorted(names) == [f"v{i}" for i in range(8)]
    other = build_shards(tmp_path / "other", [moving("w", 30), moving("copy of v1", 1)])
    with pytest.raises(UserError, match=r"--report: video copy of v1 is also in .*, as v1; the three parts"):
        take_videos(validation, None, other.uri, frozenset())
    with pytest.raises(UserError, match=r"is also in .*; the three parts must share none, nor one that scored trials"):
        take_videos(build_shards(tmp_path / "apart", [moving(f"x{i}", 40 + i) for i in range(4)]).uri, None, validation,
                    frozenset(), scored_on=validation)  # fmt: skip
    with pytest.raises(UserError, match="trained on these videos; --report needs others"):
        take_videos(validation, None, other.uri, frozenset([other.digest]))


def test_probabilities_are_computed_once_and_are_those_of_the_model(sweep, validation, tmp_path):
    (one, _), truth = gather([str(sweep)], tmp_path).candidates, Truth(validation)
    computed = []
    predictions = Predictions(one, truth, tmp_path / "cache")
    for _ in range(2):
        predictions.compute([0, 2], lambda: computed.append(1))
    assert len(computed) == 2
    assert predictions.seconds_per_frame > 0
    found = predictions.load(2)
    assert (found.shape, found.dtype) == ((4, 2, 32, 40), np.uint8)
    labels = segment_clip(Model.load(one.network).start(), truth.clip(2))
    assert (found.argmax(axis=1) == labels).mean() > 0.99
    reduced = Predictions(one, truth, tmp_path / "cache", short_side=16)
    reduced.compute([2])
    assert reduced.load(2).shape == (4, 2, 16, 20)
    assert reduced.folder != predictions.folder


def test_the_winner_gains_by_its_whole_interval_on_a_or_is_the_best_single():
    def row(way: str, score: float, low: float, videos: int = 9) -> Row:
        return Row(way, Team((0,), (1,)), score, Difference(low + 0.01, low, low + 0.02, videos))

    rows = [row("best single", 0.5, 0.0), row("vote", 0.6, -0.01), row("stacking", 0.55, 0.01)]
    building = Building([], None, Budget(), Path(), rows=rows)
    assert building.winner().way == "stacking"
    rows[2] = row("stacking", 0.55, 0.01, videos=3)
    assert building.winner().way == "best single"


def test_a_loss_is_called_a_loss():
    row = Row("vote", Team((0,), (1,)), 0.5, Difference(0.0, 0.0, 0.0, 9))
    row.gain = Difference(-0.02, -0.03, -0.01, 9)
    assert verdict(row) == "a loss of -0.020, -0.030 to -0.010 over 9 videos"
    row.gain = Difference(0.02, -0.01, 0.05, 9)
    assert verdict(row).endswith("a gain of +0.020, -0.010 to +0.050 over 9 videos, within its interval of none")


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_the_program_compares_all_ways_and_keeps_one_as_a_model(sweep, tmp_path):
    out = tmp_path / "team"
    done = program("--sweeps", sweep, "--out", out, "--keep", "uniform")
    assert done.returncode == 0, done.stderr
    assert "2 candidates; videos: A 4, B 2, C 2" in done.stdout
    for way in ("best single", "uniform average", "selected average"):
        assert f"| {way} " in done.stdout
    assert "uniform average on C, against the best single: " in done.stdout
    report = json.loads((out / "ensemble.json").read_text())
    assert report["kept"] == "uniform average"
    model = Model.load(out)
    assert (len(model.members), model.memory_every) == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds-per-frame", "1e-6"], "--seconds-per-frame 1e-06: no candidate fits, the fastest takes"),
        (["--members", "0"], "an ensemble needs at least one member, found --members 0"),
    ],
)
def test_the_program_refuses_a_budget_that_no_member_fits(sweep, tmp_path, arguments, message):
    done = program("--sweeps", sweep, "--out", tmp_path / "team", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "team" / "model.json").exists()
