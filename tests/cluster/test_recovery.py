"""What Ctrl-C costs: nothing that was finished. Killed workers and drivers: test_exact_resume_on_ray.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parent.parent.parent


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return {**kept, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}


@pytest.fixture(scope="module")
def shards(build_shards, moving_square, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "bl30k"
    build_shards(folder, [moving_square(f"v{i}", i) for i in range(4)], kind="bl30k")
    return folder


def start(shards: Path, storage: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, ROOT / "jobs" / "train.py", "--network", "stm", "--size", "nano", "--stages", "bl30k",
        "--data", shards, "--storage", storage, "--steps", 120, "--batch", 4, "--crop", 48, "--checkpoint-every", 10,
    ]  # fmt: skip
    return subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(storage),
        start_new_session=True,
        # What a shell starts in the background, these tests perhaps, ignores Ctrl-C, and so would this.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str], storage: Path) -> tuple[str, dict[str, torch.Tensor]]:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed, safetensors.torch.load_file(storage / "stm-nano" / "network.safetensors")


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> dict[str, torch.Tensor]:
    storage = tmp_path_factory.mktemp("undisturbed")
    return finish(start(shards, storage), storage)[1]


def wait_for_checkpoint(storage: Path, process: subprocess.Popen[str]) -> None:
    """Until Ray Train has *registered* a checkpoint: one that is merely written is not what a restart takes."""
    registered = storage / "stm-nano" / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 200
    while not (registered.exists() and "step_" in registered.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)


def ray_processes(word: str = "") -> set[int]:
    """Processes of Ray on this machine in whose command line a word stands."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if ("ray::" in line or "/ray/" in line) and word in line:
            found.add(int(folder.name))
    return found


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_ctrl_c_leaves_no_ray_process_and_a_run_that_goes_on(shards, undisturbed, tmp_path):
    before = ray_processes()
    process = start(shards, tmp_path)
    wait_for_checkpoint(tmp_path, process)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "the same command goes on" in printed
    deadline = time.monotonic() + 30
    while (stray := ray_processes() - before) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not stray
    assert_equal(finish(start(shards, tmp_path), tmp_path)[1], undisturbed)
