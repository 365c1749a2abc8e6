"""How busy machines are: CPU, memory and GPUs, under MLflow's own names for system metrics."""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

_LOGGER = logging.getLogger(__name__)
_PREFIX = "system/"
_NVIDIA = ("utilization.gpu", "memory.used", "memory.total", "power.draw")
_NVIDIA_SECONDS = 10
# One sample looks at the CPU for this long.
_LOOK_SECONDS = 0.5
_NODE_SECONDS = 20
# Between looks whether samples are still wanted.
_PATIENCE_SECONDS = 0.2
_STOP_SECONDS = 5
# Of a large cluster a few nodes show enough.
_MOST_NODES = 16


def sample() -> dict[str, float]:
    """This machine's CPU, memory and GPUs: percentages, megabytes and watts; what cannot be read is left out."""
    found: dict[str, float] = {}
    psutil = _psutil()
    if psutil is not None:
        memory = psutil.virtual_memory()
        found["cpu_utilization_percentage"] = psutil.cpu_percent(_LOOK_SECONDS)
        found["system_memory_usage_megabytes"] = round(memory.used / 1e6)
        found["system_memory_usage_percentage"] = memory.percent
    return found | _gpus()


def sample_cluster(over: Callable[[], bool] = lambda: False) -> dict[str, float]:
    """Samples of all nodes where this process is on a Ray cluster of several, each under its address; else its own.

    Args:
        over: whether they are not wanted any more; nodes are then not waited for.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return sample()
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeManagerAddress"])
    if len(nodes) < 2:
        return sample()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    tasks = {
        _remote_sample().options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(): _called(node, n)
        for n, node in enumerate(nodes[:_MOST_NODES])
    }
    done, late, deadline = [], list(tasks), time.monotonic() + _NODE_SECONDS
    while late and not over() and time.monotonic() < deadline:
        done, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=_PATIENCE_SECONDS)
    for task in late:
        ray.cancel(task)
    found = {}
    for task in done:
        try:
            values = ray.get(task)
        except ray.exceptions.RayError:
            # A node that went away while it was asked.
            continue
        found |= {f"{tasks[task]}/{key}": value for key, value in values.items()}
    return found


@functools.cache
def _remote_sample() -> Any:
    import ray

    return ray.remote(num_cpus=0, max_retries=0)(sample)


class Watch:
    """Tells samples to a function, on a thread, until it is stopped; never raises.

    Args:
        tell: hears `{"system/...": value}`.
        seconds: between samples.
    """

    def __init__(self, tell: Callable[[dict[str, float]], None], seconds: float = 15.0):
        self._tell, self._seconds = tell, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more samples; one that is under way is given up.

        A thread that asks Ray something while the process leaves its cluster ends the process, with status 1.
        """
        self._over.set()
        self._thread.join(_STOP_SECONDS)

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                found = sample_cluster(self._over.is_set)
                if not self._over.is_set():
                    self._tell({f"{_PREFIX}{key}": value for key, value in found.items()})
            except Exception as error:
                # They are a courtesy; what is wrong with them is nobody's problem.
                _LOGGER.debug("no system metrics: %s", error)
            self._over.wait(self._seconds)


def _called(node: dict, number: int) -> str:
    """A node's part of metrics' names: nodes may share an address, as on one machine."""
    return f"node-{number}-{node['NodeManagerAddress'].replace(':', '-')}"


def _psutil() -> ModuleType | None:
    # Ray brings psutil along, and puts it where it is found.
    for name in ("psutil", "ray", "psutil"):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            if name == "psutil":
                return module
    return None


def _gpus() -> dict[str, float]:
    """What NVIDIA's driver says of each GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(_NVIDIA)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    found: dict[str, float] = {}
    for i, row in enumerate(csv.reader(done.stdout.splitlines())):
        busy, used, total, watts = (_number(text) for text in row)
        values = {
            "utilization_percentage": busy,
            "memory_usage_megabytes": used,
            "memory_usage_percentage": round(100 * used / total, 1) if used is not None and total else None,
            "power_usage_watts": watts,
        }
        found |= {f"gpu_{i}_{key}": value for key, value in values.items() if value is not None}
    return found


def _number(text: str) -> float | None:
    """A field of nvidia-smi, which says [N/A] where a GPU does not tell."""
    try:
        return float(text)
    except ValueError:
        return None
