"""A Ray cluster of several nodes on this machine, and training programs that run on it while nodes die."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray._common.utils
import ray._private.node
import safetensors.torch
import torch
from metadata_service import metadata_service
from ray.cluster_utils import Cluster

from vosforge.storage import read_bytes

ROOT = Path(__file__).resolve().parent.parent.parent
# Dead nodes are noticed within seconds; a group that cannot start is given up as soon.
FAST = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "OMP_NUM_THREADS": "1",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
}
# Of a node's object store; a test cluster's own default is less than any real node has.
_STORE_BYTES = 1 << 30
# The program itself, which tells every step.
TELLING = """
import runpy, sys
from vosforge import console
console.Progress.update = lambda self, done, note="": print(f"step {done}", flush=True)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Machines:
    """A head without CPUs, where the driver runs, and nodes of two CPUs that may be killed.

    Args:
        folder: of Ray's files; its path must be short.
        variables: of all nodes and of the programs that run on them, beside `FAST`.
    """

    def __init__(self, folder: Path, variables: dict[str, str]):
        self.folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.environment = {**kept, **FAST, **variables}
        with self._environment():
            head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder)}
            self.cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
            # So that programs that want a cluster of their own do not find this one.
            ray._common.utils.reset_ray_address()
        self.environment["RAY_ADDRESS"] = self.cluster.address
        self.nodes = [self.add(), self.add()]

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            yield

    def add(self) -> ray._private.node.Node:
        """Another node of two CPUs."""
        with self._environment():
            arguments = {"num_cpus": 2, "temp_dir": str(self.folder), "object_store_memory": _STORE_BYTES}
            return _patiently(lambda: self.cluster.add_node(**arguments))

    def complete(self) -> None:
        """Two nodes again, whatever became of them."""
        self.nodes = [node for node in self.nodes if node in self.cluster.worker_nodes]
        while len(self.nodes) < 2:
            self.nodes.append(self.add())

    def kill(self, node: ray._private.node.Node) -> None:
        """All processes of a node at once, as when its machine loses power."""
        for pid in descendants(_raylet(node)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    @contextlib.contextmanager
    def spot(self, node: ray._private.node.Node) -> Iterator[Callable[[float], str]]:
        """Watch over a node as cluster.yaml does; a function gives notice, and returns what the watcher printed."""
        with metadata_service() as service:
            flags = ["--node-id", node.node_id, "--metadata", service.address, "--every", "0.5"]
            watcher = subprocess.Popen(
                [sys.executable, str(ROOT / "jobs" / "watch_spot.py"), *flags],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=self.environment,
            )

            def announce(seconds: float) -> str:
                assert watcher.poll() is None
                service.announce(seconds)
                return watcher.communicate(timeout=120)[0]

            try:
                yield announce
            finally:
                watcher.kill()
                watcher.wait()

    def processes(self, word: str) -> dict[int, ray._private.node.Node]:
        """Processes in whose command line a word stands, and their nodes."""
        return {pid: node for node in self.nodes for pid in descendants(_raylet(node), word)}

    def node_of_rank(self, name: str, rank: int) -> ray._private.node.Node:
        """Where a rank of a run was started last."""
        told = [line for line in self._log("worker", name) if line.get("world_rank") == rank]
        node_id = max(told, key=lambda line: line["timestamp_ns"])["node_id"]
        return next(node for node in self.nodes if node.node_id == node_id)

    def groups(self, name: str) -> list[tuple[float, int]]:
        """Groups of workers that a run started: when, in this clock's seconds, and how many."""
        now = time.time() - time.monotonic()
        said = [
            (line, re.match(r"Started training worker group of size (\d+)", line["message"]))
            for line in self._log("controller", name)
        ]
        return sorted((line["timestamp_ns"] / 1e9 - now, int(found[1])) for line, found in said if found)

    def _log(self, who: str, name: str) -> list[dict[str, Any]]:
        """What Ray Train's processes logged of the run of that name which was started last."""
        lines: list[dict[str, Any]] = []
        for path in self.folder.glob(f"session_latest/logs/train/ray-train-sys-{who}-*.log"):
            for text in path.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(text))
        lines = [line for line in lines if line.get("run_name") == name]
        last = max((line["job_id"] for line in lines), default="")
        return [line for line in lines if line["job_id"] == last]

    def stop(self) -> None:
        self.cluster.shutdown()


def _patiently(start: Callable[[], Any]) -> Any:
    """Start a node; on a busy machine it may take longer than the half minute for which Ray waits."""
    for _ in range(3):
        with contextlib.suppress(Exception):
            return start()
    return start()


def _raylet(node: ray._private.node.Node) -> int:
    return node.all_processes["raylet"][0].process.pid


def descendants(ancestor: int, word: str = "") -> list[int]:
    """Processes that one started, at whatever distance, in whose command line a word stands."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue

    def comes_from(pid: int) -> bool:
        while pid in parents and pid != ancestor:
            pid = parents[pid]
        return pid == ancestor

    return [pid for pid in parents if word in lines.get(pid, "") and comes_from(pid)]


class Training:
    """`jobs/train.py` as a process, and the steps that it told."""

    def __init__(self, environment: dict[str, str], *flags: object):
        command = [sys.executable, "-c", TELLING, ROOT / "jobs" / "train.py", *flags]
        self.process = subprocess.Popen(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.began = time.monotonic()
        self.steps: list[tuple[float, int]] = []
        self.printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if found := re.fullmatch(r"step (\d+)\n", line):
                self.steps.append((time.monotonic(), int(found[1])))
            else:
                self.printed.append(line)

    @property
    def reached(self) -> int:
        """The last step of all that were told."""
        return max((step for _, step in self.steps), default=0)

    def wait_for(self, step: int, timeout: float = 400) -> None:
        """Until a step was told."""
        self.wait_until(lambda: self.reached >= step, f"step {step}", timeout)

    def wait_until(self, happened: Callable[[], bool], what: str, timeout: float = 400) -> None:
        """Until something is so."""
        deadline = time.monotonic() + timeout
        while not happened():
            assert self.process.poll() is None, f"ended before {what}: {self.told()}"
            assert time.monotonic() < deadline, f"{what} did not come: {self.told()}"
            time.sleep(0.02)

    def end(self, timeout: float = 500) -> str:
        """What it printed, once it has ended."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"did not end: {self.told()}")
        self._reader.join(10)
        return self.told()

    def finish(self) -> str:
        """What it printed, once it has ended well."""
        printed = self.end()
        assert self.process.returncode == 0, printed
        return printed

    def error(self) -> str:
        """The one line in which it ended."""
        printed = self.end()
        assert self.process.returncode == 2, printed
        assert "Traceback" not in printed, printed
        (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
        return line

    def told(self) -> str:
        return f"{''.join(self.printed)}(reached step {self.reached})"

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def recovery(self, fault: float) -> str:
        """From a fault to the first step beyond the last one before it, and how many were computed again."""
        before = max((step for at, step in self.steps if at < fault), default=0)
        after = next(at for at, step in self.steps if at > fault and step > before)
        return f"{after - fault:.1f} s until step {before + 1}, {self.repeated()} steps computed again"

    def repeated(self) -> int:
        """Steps that were told a second time; a checkpoint's is told twice in a row."""
        steps = [step for _, step in self.steps]
        firsts = [step for previous, step in zip([0, *steps], steps, strict=False) if step != previous]
        return len(firsts) - len(set(firsts))


def weights(run: object) -> dict[str, torch.Tensor]:
    """Of a finished run."""
    return safetensors.torch.load(read_bytes(f"{run}/network.safetensors"))


def farthest(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference between the weights of two networks, as a share of each one's largest."""
    assert found.keys() == expected.keys()
    scales = {key: max(1.0, float(value.abs().max())) for key, value in expected.items()}
    return max(float((found[key] - value).abs().max()) / scales[key] for key, value in expected.items())
