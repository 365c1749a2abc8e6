"""The rules of the house: names that shadow nothing, and who may import Ray or MLflow."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM_FOLDERS = ("jobs", "datasets", "tuning")
PROGRAMS = sorted(path for folder in PROGRAM_FOLDERS for path in (ROOT / folder).glob("*.py"))


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("folder", ["platform", *PROGRAM_FOLDERS])
def test_top_level_folders_are_no_packages(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_hugging_face_datasets_would_be_found_at_the_root(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").touch()
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import datasets; print(datasets.__file__)"
    assert run(code, ROOT).stdout.strip() == str(tmp_path / "datasets" / "__init__.py")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_programs_shadow_no_module(program):
    installed = set(importlib.metadata.packages_distributions()) - {"vosforge"}
    assert program.stem not in sys.stdlib_module_names
    assert program.stem not in installed


@pytest.mark.parametrize("folder", [".", *PROGRAM_FOLDERS])
def test_libraries_import_from_every_folder(folder):
    # `python -c` puts the working directory first on the path, as a program's folder is when it runs.
    done = run("import platform; platform.system(); import torch, cv2, ray.data, ray.train, mlflow", ROOT / folder)
    assert done.returncode == 0, done.stderr


# Importing takes a program seconds, so one process does it for all; each program then runs in a fork of its own.
ASK_ALL_FOR_HELP = """
import os, runpy, sys
import mlflow, ray.train, ray.tune, torch, tyro, vosforge.registry, vosforge.search.program, vosforge.training.on_ray

folder, *programs = sys.argv[1:]
for number, program in enumerate(programs):
    if not os.fork():
        told = os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY)
        os.dup2(told, 1), os.dup2(told, 2)
        sys.argv, sys.path[0] = [program, "--help"], os.path.dirname(program)
        runpy.run_path(program, run_name="__main__")
    _, status = os.wait()
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory) -> dict[Path, tuple[str, str]]:
    """Status and text of each program's help."""
    folder = tmp_path_factory.mktemp("helps")
    command = [sys.executable, "-c", ASK_ALL_FOR_HELP, folder, *PROGRAMS]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=500, cwd="/")
    assert done.returncode == 0, done.stderr
    texts = [(folder / str(number)).read_text() for number in range(len(PROGRAMS))]
    return dict(zip(PROGRAMS, zip(done.stdout.split(), texts, strict=True), strict=True))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_programs_answer_help(program, helps):
    status, text = helps[program]
    assert status == "0", text
    assert "usage:" in text


def test_networks_data_and_the_bare_loop_need_neither_ray_nor_mlflow():
    modules = (
        "vosforge.networks, vosforge.propagation, vosforge.evaluation.running, vosforge.pictures, "
        "vosforge.data.rendering, vosforge.data.rendered, vosforge.data.stills, vosforge.data.layouts, "
        "vosforge.data.sampling, vosforge.training.loop"
    )
    done = run(f"import {modules}, sys; print([m for m in ('ray', 'mlflow') if m in sys.modules])", ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_two_files_of_training_know_ray():
    files = (ROOT / "platform" / "vosforge" / "training").glob("*.py")
    knowing = {path.name for path in files if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.MULTILINE)}
    assert knowing == {"on_ray.py", "ray_hooks.py"}


def test_few_files_of_serving_know_ray_or_http():
    files = list((ROOT / "platform" / "vosforge" / "serving").glob("*.py"))

    def knowing(library: str) -> set[str]:
        pattern = rf"^\s*(import|from) {library}\b"
        return {path.name for path in files if re.search(pattern, path.read_text(), re.MULTILINE)}

    assert knowing("ray") == {"on_ray.py"}
    assert knowing("fastapi") == {"api.py", "on_ray.py", "refusals.py"}


def test_watcher_of_spot_machines_runs_where_there_is_only_python():
    tree = ast.parse((ROOT / "jobs" / "watch_spot.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_decoding_workers_start_without_torch():
    done = run("import vosforge.training.clip_order, sys; print('torch' in sys.modules)", ROOT)
    assert done.stdout.strip() == "False", done.stderr
