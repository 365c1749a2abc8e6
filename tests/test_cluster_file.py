from __future__ import annotations

import copy
import fnmatch
import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())


def test_cluster_file_is_what_ray_accepts():
    jsonschema.validate(CLUSTER, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(CLUSTER)))


def test_mistakes_in_it_would_be_found():
    wrong = copy.deepcopy(CLUSTER)
    wrong["head_node_type"] = "nobody"
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(wrong))


def test_nodes_install_every_dependency_of_the_package():
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M).group(1)
    names = [re.match(r"[\w-]+", entry).group() for entry in re.findall(r'"([^"]+)"', dependencies)]
    commands = " ".join(CLUSTER["setup_commands"])
    assert [name for name in names if not re.search(rf"\b{name}\b", commands)] == []
    assert "libgl1" in commands


def test_files_that_nodes_are_given_exist():
    sources = [source for source in CLUSTER["file_mounts"].values() if source != "~/.ray/auth_token"]
    assert [source for source in sources if not (ROOT / source).is_file()] == []
    commands = " ".join([*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]])
    assert "~/watch_spot.py" in CLUSTER["file_mounts"]
    assert "python ~/watch_spot.py" in commands
    module = CLUSTER["provider"]["module"].split(".")[0]
    assert f"~/provider/{module}.py" in CLUSTER["file_mounts"]
    assert "PYTHONPATH=~/provider" in commands


def test_workers_are_spot_machines_and_the_head_is_not():
    types = dict(CLUSTER["available_node_types"])
    assert "InstanceMarketOptions" not in types.pop(CLUSTER["head_node_type"])["node_config"]
    for node in types.values():
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert node["max_workers"] > 0


def test_nothing_runs_on_nodes_that_the_file_does_not_name():
    """Where a file for AWS leaves commands out, Ray's own install a Ray of last night's."""
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    ours = CLUSTER["setup_commands"]
    assert (prepared["head_setup_commands"], prepared["worker_setup_commands"]) == (ours, ours)


def test_ray_starts_with_files_enough_the_token_and_a_dashboard_for_the_head_alone():
    commands = [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]]
    starting = [command for command in commands if "ray start" in command]
    assert len(starting) == 2
    assert all("ulimit -n 65536" in command and "RAY_AUTH_MODE=token" in command for command in starting)
    assert "--dashboard-host=127.0.0.1" in starting[0]


def test_shipped_folder_leaves_data_runs_and_history_behind():
    environment = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert environment["py_modules"] == ["platform/vosforge"]
    assert {".git", "/runs", "/shards", ".venv*"} <= set(environment["excludes"])


def test_lock_pins_every_dependency_and_carries_no_address():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[\w.-]+==[\w.+!-]+(; python_version (<|>=) "3\.11")?', line) for line in lines)
    pinned = {line.split("==")[0] for line in lines}
    assert {"ray", "torch", "mlflow", "numpy", "opencv-python", "timm", "tyro", "optuna", "numba"} <= pinned


def test_what_a_job_leaves_behind_is_no_part_of_the_package():
    excluded = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())["excludes"]
    package = [path.name for path in (ROOT / "platform" / "vosforge").rglob("*")]
    anywhere = [pattern for pattern in excluded if not pattern.startswith("/")]
    assert not [(pattern, name) for pattern in anywhere for name in package if fnmatch.fnmatch(name, pattern)]
