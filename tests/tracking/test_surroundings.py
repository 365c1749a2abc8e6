"""What is told of machines and of code."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from vosforge.tracking.code_version import commit, versions
from vosforge.tracking.system import Watch, sample


def test_sample_tells_cpu_and_memory():
    found = sample()
    assert 0 <= found["cpu_utilization_percentage"] <= 100
    assert 0 < found["system_memory_usage_percentage"] <= 100
    assert found["system_memory_usage_megabytes"] > 100


def test_watch_tells_until_it_is_stopped_and_survives_who_does_not_want_to_hear():
    told, twice = [], threading.Event()

    def hear(values: dict[str, float]) -> None:
        told.append(values)
        if len(told) == 2:
            twice.set()
        raise ValueError("not interested")

    watch = Watch(hear, seconds=0.05)
    assert twice.wait(60)
    watch.stop()
    assert "system metrics" not in {thread.name for thread in threading.enumerate()}
    assert all(key.startswith("system/") for key in told[0])


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_that_of_the_package_and_says_when_it_is_changed(tmp_path):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("init")
    assert commit(package) is None
    git("add", ".")
    git("commit", "-m", "first")
    assert re.fullmatch(r"[0-9a-f]{40}", commit(package))
    (package / "__init__.py").write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", commit(package))
    installed = tmp_path / "environment" / "package"
    shutil.copytree(package, installed)
    assert commit(installed) is None


def test_commit_is_left_out_outside_a_checkout(tmp_path):
    assert commit(Path(tmp_path)) is None
    assert {"vosforge", "python", "torch", "ray"} <= set(versions())
