"""A run that was killed goes on as if it had not been: the same losses, and in the end the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vosforge.errors import UserError
from vosforge.networks import build
from vosforge.training import checkpoints, curricula
from vosforge.training.batches import Batch
from vosforge.training.checkpoints import latest_whole
from vosforge.training.loop import fit_locally
from vosforge.training.plan import TrainingPlan, claim_run, noted_execution
from vosforge.training.stages import Corruption, Loss
from vosforge.training.steps import Execution, Optimization

FIT = """
import json, sys
from vosforge.training.loop import fit_locally
from vosforge.training.plan import read_plan

run = sys.argv[1]
tell = lambda metrics: print(json.dumps([metrics["step"], metrics["loss"]]), flush=True)
fit_locally(read_plan(run)[0], run.rpartition("/")[0], tell)
"""


class Stopped(Exception):
    """Stands for a process that ends in the middle."""


def losses_of(plan: TrainingPlan, storage: Path, execution: Execution | None = None, stop: int = 0) -> dict[int, float]:
    """Losses by step; the run is stopped after the step `stop`."""
    losses: dict[int, float] = {}

    def on_progress(metrics):
        losses[metrics["step"]] = metrics["loss"]
        if metrics["step"] == stop:
            raise Stopped

    if stop:
        with pytest.raises(Stopped):
            fit_locally(plan, str(storage), on_progress, execution)
    else:
        fit_locally(plan, str(storage), on_progress, execution)
    return losses


def state_of(run: Path) -> dict[str, object]:
    """Everything in a run's last checkpoint, by name, and the network that it left."""
    (folder,) = run.glob("step_*")
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    moments = {f"{i}.{k}": v for i, own in state["optimizer"]["state"].items() for k, v in own.items()}
    network = safetensors.torch.load_file(run / "network.safetensors")
    return {**moments, **{f"average.{k}": v for k, v in state["average"].items()}, **network, **state["scaler"]}


def assert_same(found: dict[str, object], expected: dict[str, object]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name


def shortened(plan: TrainingPlan, **changes: object) -> TrainingPlan:
    """Two stages of 3 and 4 steps, with a checkpoint every other step and at the end of each."""
    stages = [replace(stage, steps=steps, **changes) for stage, steps in zip(plan.stages, (3, 4), strict=True)]
    return replace(plan, stages=stages, checkpoint_every=2, probe_clips=0)


def lines_until(process: subprocess.Popen[str], last: int) -> dict[int, float]:
    """What a run tells, until it is killed in the step after `last`."""
    losses: dict[int, float] = {}
    for line in process.stdout:
        step, loss = json.loads(line)
        losses[step] = loss
        if step == last:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.communicate()
    return losses


@pytest.mark.cluster
def test_process_killed_at_a_random_step_goes_on_to_the_same_bits(make_plan, tmp_path):
    drawn = random.SystemRandom().randrange(1 << 32)
    stop = random.Random(drawn).randrange(3, 39)
    told = f"killed after step {stop}, drawn by seed {drawn}"
    plan = replace(make_plan(steps=20), checkpoint_every=6, probe_clips=0)
    plan = replace(plan, stages=[replace(stage, batch=1, ema=0.9) for stage in plan.stages])
    straight = losses_of(plan, tmp_path / "straight")
    claim_run(str(tmp_path / "killed"), plan, "local")
    command = [sys.executable, "-c", FIT, str(tmp_path / "killed" / plan.name)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    before = lines_until(killed, stop)
    assert killed.returncode == -signal.SIGKILL, told
    assert not (tmp_path / "killed" / plan.name / "network.safetensors").exists(), told
    after = losses_of(plan, tmp_path / "killed")
    # At most the steps since the last checkpoint are computed again; none of them otherwise.
    reached = max(done for done in (0, 6, 12, 18, 20, 24, 30, 36) if done <= stop)
    assert min(after) in (reached + 1, stop + 1, stop + 2), told
    assert {**before, **after} == straight, told
    assert all(after[step] == before[step] for step in set(before) & set(after)), told
    assert_same(state_of(tmp_path / "killed" / plan.name), state_of(tmp_path / "straight" / plan.name))


VARIANTS = {
    "running average": lambda plan: shortened(plan, ema=0.8),
    "sgd with momentum": lambda plan: shortened(plan, optimizer="sgd", learning_rate=1e-2, weight_decay=1e-3),
    "gaps by progress": lambda plan: gapped(shortened(plan, loss=Loss(hardest=0.3, hardest_between=(0.2, 0.8)))),
    "corruption": lambda plan: shortened(plan, corruption=Corruption(swap=0.9, morph=0.9)),
    "dropout": lambda plan: of_network(plan, "emn"),
    "scribbles": lambda plan: of_network(plan, "stm-interactive", rounds=2),
}


def gapped(plan: TrainingPlan) -> TrainingPlan:
    recipes = [replace(stage.sampling, gaps=((0.0, 1), (0.4, 2))) for stage in plan.stages]
    stages = [replace(stage, sampling=recipe) for stage, recipe in zip(plan.stages, recipes, strict=True)]
    return replace(plan, stages=stages)


def of_network(plan: TrainingPlan, network: str, **changes: object) -> TrainingPlan:
    return replace(shortened(plan, **changes), network=network)


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_a_stage_remembers_is_there_after_a_stop_in_its_middle(make_plan, tmp_path, variant):
    plan = VARIANTS[variant](make_plan())
    straight = losses_of(plan, tmp_path / "straight")
    first = losses_of(plan, tmp_path / "stopped", stop=6)
    second = losses_of(plan, tmp_path / "stopped")
    assert min(second) == 7
    assert {**first, **second} == straight
    assert_same(state_of(tmp_path / "stopped" / plan.name), state_of(tmp_path / "straight" / plan.name))


def test_accumulated_fp16_steps_and_their_scale_go_on(make_plan, tmp_path):
    plan, execution = shortened(make_plan()), Execution(precision="fp16", clips_at_once=1)
    straight = losses_of(plan, tmp_path / "straight", execution)
    first = losses_of(plan, tmp_path / "stopped", execution, stop=6)
    second = losses_of(plan, tmp_path / "stopped", execution)
    assert {**first, **second} == straight
    assert min(second) == 7
    found, expected = (state_of(tmp_path / storage / plan.name) for storage in ("stopped", "straight"))
    assert expected["_growth_tracker"] >= 0
    assert_same(found, expected)


def test_scaler_that_has_moved_is_restored():
    stage = replace(curricula.stages("stm", "nano", ["videos"])[0], steps=4)
    first, second = (Optimization(stage, build("stm", "nano"), Execution(precision="fp16"), "cpu") for _ in range(2))
    first.scaler.load_state_dict({**first.scaler.state_dict(), "scale": 96.0, "_growth_tracker": 11})
    second.restore(first.state())
    assert second.scaler.get_scale() == 96.0
    assert second.scaler.state_dict()["_growth_tracker"] == 11


@pytest.mark.parametrize("stop", [3, 7], ids=["at the end of a stage", "before the network is put in place"])
def test_run_stopped_on_the_last_step_of_a_stage_goes_on_exactly(make_plan, tmp_path, stop):
    plan = shortened(make_plan(), ema=0.8)
    straight = losses_of(plan, tmp_path / "straight")
    first = losses_of(plan, tmp_path / "stopped", stop=stop)
    assert not (tmp_path / "stopped" / plan.name / "network.safetensors").exists()
    second = losses_of(plan, tmp_path / "stopped")
    assert {**first, **second} == straight
    assert set(second) == set(range(stop + 1, 8))
    assert_same(state_of(tmp_path / "stopped" / plan.name), state_of(tmp_path / "straight" / plan.name))


def test_checkpoint_that_was_being_written_does_not_count(make_plan, tmp_path, monkeypatch):
    plan = shortened(make_plan())
    straight = losses_of(plan, tmp_path / "straight")
    run = tmp_path / "stopped" / plan.name
    # The process dies while its second checkpoint is written: at step 3.
    save, calls = torch.save, iter(range(9))

    def dying(state: object, path: Path) -> None:
        save(state, path)
        if next(calls) == 1:
            path.write_bytes(path.read_bytes()[:50])
            (run / ".step_00000003.1.aside").mkdir()
            (run / ".step_00000003.1.aside" / path.name).write_bytes(b"half")
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", dying)
        with pytest.raises(Stopped):
            fit_locally(plan, str(tmp_path / "stopped"), lambda metrics: None)
    assert [path.name for path in run.glob("step_*")] == ["step_00000002"]
    second = losses_of(plan, tmp_path / "stopped")
    assert second == {step: loss for step, loss in straight.items() if step > 2}
    assert_same(state_of(run), state_of(tmp_path / "straight" / plan.name))
    assert not list(run.glob(".*"))


@pytest.fixture
def stopped_run(make_plan, tmp_path) -> tuple[TrainingPlan, Path]:
    """A run stopped after its first checkpoint, and that checkpoint."""
    plan = shortened(make_plan())
    losses_of(plan, tmp_path, stop=2)
    return plan, tmp_path / plan.name / "step_00000002"


@pytest.mark.parametrize("name", ["network.safetensors", "optimizer.pt", "position.json"])
@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b""], ids=["cut off", "empty"])
def test_damaged_checkpoint_is_one_error_that_names_the_file(stopped_run, name, spoil):
    plan, folder = stopped_run
    path = folder / name
    path.write_bytes(spoil(path.read_bytes()))
    expected = rf"^{path}: the checkpoint is damaged \(.*\); delete {folder} to go on"
    with pytest.raises(UserError, match=expected) as told:
        fit_locally(plan, str(folder.parent.parent), lambda metrics: None)
    assert "\n" not in str(told.value)
    assert latest_whole(str(folder.parent)) is None


def test_bytes_changed_in_place_are_one_error_that_names_the_file(stopped_run):
    plan, folder = stopped_run
    path = folder / "optimizer.pt"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=r"optimizer\.pt: the checkpoint is damaged"):
        fit_locally(plan, str(folder.parent.parent), lambda metrics: None)


def test_latest_whole_checkpoint_is_found_beside_parts_of_later_ones(stopped_run):
    _, folder = stopped_run
    later = folder.parent / "step_00000004"
    later.mkdir()
    for name in ("network.safetensors", "position.json"):
        (later / name).write_bytes((folder / name).read_bytes())
    assert latest_whole(str(folder.parent)) == str(folder)
    (later / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes()[:-1])
    assert latest_whole(str(folder.parent)) == str(folder)


def test_weights_that_a_run_began_with_may_be_gone_when_it_goes_on(make_plan, tmp_path):
    checkpoints.networks.save(build("stm", "nano"), tmp_path / "first.safetensors")
    plan = replace(shortened(make_plan()), initial=str(tmp_path / "first.safetensors"))
    straight = losses_of(plan, tmp_path / "straight")
    losses_of(plan, tmp_path / "stopped", stop=2)
    (tmp_path / "first.safetensors").unlink()
    second = losses_of(plan, tmp_path / "stopped")
    assert second == {step: loss for step, loss in straight.items() if step > 2}
    checkpoints.networks.save(build("stm", "nano"), tmp_path / "first.safetensors")
    with pytest.raises(UserError, match=r"was started with another file_digests\.initial"):
        fit_locally(plan, str(tmp_path / "stopped"), lambda metrics: None)


def test_finished_run_needs_neither_checkpoint_nor_step(make_plan, tmp_path):
    plan = shortened(make_plan())
    losses_of(plan, tmp_path)
    (folder,) = (tmp_path / plan.name).glob("step_*")
    folder.rename(tmp_path / "elsewhere")
    assert losses_of(plan, tmp_path) == {}


def clips(count: int, objects: int) -> Batch:
    torch.manual_seed(0)
    masks = torch.zeros(count, 3, 32, 32, dtype=torch.long)
    for k in range(1, objects + 1):
        # Every other clip lacks the last object.
        masks[:: 1 + (k == objects > 1), :, 8 * k : 8 * k + 7, 4 : 20 + 2 * k] = k
    first = torch.stack([(masks[:, 0] == k).float() for k in range(1, objects + 1)], dim=1)
    return Batch(torch.rand(count, 3, 3, 32, 32), masks, first, first.flatten(2).any(dim=2))


def gradients(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ["emn", "qpm"])
def test_shares_computed_by_one_worker_are_those_of_so_many_workers(name):
    """Batch norm and dropout included, of which two workers each see their own half."""
    stage = replace(curricula.stages(name, "nano", ["videos"])[0], batch=4, optimizer="sgd", loss=Loss(kind="bce"))
    both, seeds = clips(4, objects=2), [[0, 0, i] for i in range(4)]
    found = []
    for execution, batches in (
        (Execution(shares=2), [(both, seeds)]),
        (Execution(), list(zip(both.pieces(2), (seeds[:2], seeds[2:]), strict=True))),
    ):
        workers = []
        for batch, own in batches:
            torch.manual_seed(0)
            network = build(name, "nano").train()
            optimization = Optimization(stage, network, execution, "cpu")
            optimization.stage = replace(stage, clip_norm=None)
            optimization.step(network, batch, 0, own)
            workers.append(network)
        found.append((torch.stack([gradients(n) for n in workers]).mean(dim=0), dict(workers[0].named_buffers())))
    (one, kept), (two, expected) = found
    assert torch.allclose(one, two, atol=1e-5 * float(two.abs().max()))
    assert all(torch.equal(kept[key], expected[key]) for key in expected)


def test_run_keeps_the_shares_that_it_was_begun_with(make_plan, tmp_path):
    plan = shortened(make_plan())
    losses_of(plan, tmp_path, Execution(shares=2), stop=2)
    losses_of(plan, tmp_path)
    assert noted_execution(str(tmp_path / plan.name))["execution"]["shares"] == 2


@pytest.mark.parametrize(
    ("execution", "share", "batch", "pieces"),
    [
        (Execution(shares=4), 12, 12, 4),
        (Execution(shares=4), 6, 12, 2),
        (Execution(shares=4), 3, 12, 1),
        # More workers than shares: each has less than a part.
        (Execution(shares=2), 3, 12, 1),
        # Parts of 6 by pieces of 3, not the 4 that would go into 12.
        (Execution(shares=2, clips_at_once=4), 12, 12, 4),
        # Shares that do not divide the batch, or a worker's share, cannot be kept.
        (Execution(shares=5), 12, 12, 1),
        (Execution(shares=2), 4, 12, 1),
    ],
)
def test_parts_are_cut_as_by_the_workers_of_the_beginning(execution, share, batch, pieces):
    assert execution.pieces(share, batch) == pieces
