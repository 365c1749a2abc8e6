"""What docs/cluster.md has a reader copy."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from vosforge.serving import access
from vosforge.training import curricula

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "cluster.md").read_text()
DOCKERFILE = (ROOT / "docs" / "Dockerfile").read_text()
RAY = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE).group(1)
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
# Programs of the repository lie there in the image.
IMAGE_FOLDER = "/opt/vosforge/"


def kind(name: str) -> dict[str, Any]:
    (found,) = [block for block in BLOCKS if block.get("kind") == name]
    return found


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_image_has_the_ray_of_the_lock_libgl_and_every_program():
    assert f"FROM rayproject/ray:{RAY}-py311-gpu\n" in DOCKERFILE
    assert "libgl1" in DOCKERFILE
    assert "--constraint /tmp/vosforge/requirements.lock" in DOCKERFILE
    for folder in ("datasets", "jobs", "tuning"):
        assert f"COPY {folder} {IMAGE_FOLDER}{folder}\n" in DOCKERFILE
    copied = [word for line in re.findall(r"^COPY (.+)", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert [word for word in copied if not word.startswith("--") and not (ROOT / word).exists()] == []


def test_image_fits_into_the_cluster_file():
    (docker,) = [block for block in BLOCKS if "docker" in block]
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    prepared = prepare_config(copy.deepcopy({**config, **docker}))
    validate_config(prepared)
    assert prepared["head_setup_commands"] == []


def test_programs_that_are_named_exist():
    named = set(
        re.findall(r"(?:python |\$job |/opt/vosforge/)([\w/]+\.py)", PAGE.replace(f"python {IMAGE_FOLDER}", "python "))
    )
    assert {"jobs/train.py", "jobs/watch_spot.py", "train.py"} <= named
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / "jobs" / name).exists()] == []


def test_stages_that_are_named_are_those_of_the_network():
    found = re.findall(r"train\.py --network (\w+) --size (\w+) --stages ((?:\w+ )*\w+)", PAGE)
    assert len(found) == 3
    for network, size, stages in found:
        assert set(stages.split()) <= curricula.curriculum(network, size).stages.keys()


def test_workers_of_the_page_share_the_batches_of_their_stages():
    text = re.sub(r"\s*\\\n\s*|\n\s+", " ", PAGE)
    found = re.findall(r"--network (\w+) --size (\w+) --stages ((?:\w+ )+).*?--workers (\d+) --min-workers (\d+)", text)
    assert len(found) == 3
    for network, size, stages, *workers in found:
        for stage in curricula.stages(network, size, stages.split()):
            assert [stage.batch % int(count) for count in workers] == [0, 0]


def test_variables_of_our_own_are_those_of_the_programs():
    assert set(re.findall(r"VOSFORGE_\w+", PAGE)) == {access.VARIABLE}


def test_machines_that_are_named_are_those_of_the_cluster_file():
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    assert set(re.findall(r"`((?:cpu|gpu)_\w+)`", PAGE)) == types.keys() - {"head"}


def test_kubernetes_job_and_cluster_have_one_specification():
    job, cluster = kind("RayJob"), kind("RayCluster")
    assert {job["apiVersion"], cluster["apiVersion"]} == {"ray.io/v1"}
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert cluster["spec"]["rayVersion"] == RAY
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_kubernetes_job_runs_a_program_of_the_image():
    spec = kind("RayJob")["spec"]
    program = shlex.split(spec["entrypoint"])[1]
    assert (ROOT / program.removeprefix(IMAGE_FOLDER)).is_file()
    # A second attempt is no use where the first one's checkpoints went with its cluster.
    assert spec["backoffLimit"] > 0
    assert "--storage s3://" in spec["entrypoint"]
    assert all(isinstance(value, str) for value in yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"].values())


def test_pods_take_one_image_and_the_whole_of_their_limits():
    found = containers(kind("RayCluster")["spec"])
    (built,) = set(re.findall(r"--tag (\S+)", PAGE))
    assert {container["image"] for container in found} == {built}
    assert all(container["resources"]["requests"] == container["resources"]["limits"] for container in found)


def test_pods_that_train_say_that_they_leave_and_have_the_time():
    groups = kind("RayCluster")["spec"]["workerGroupSpecs"]
    (train,) = [group["template"]["spec"] for group in groups if group["groupName"] == "train"]
    (container,) = train["containers"]
    assert "nvidia.com/gpu" in container["resources"]["limits"]
    said = container["lifecycle"]["preStop"]["exec"]["command"][-1]
    seconds = int(re.search(r"--leaving-in (\d+); sleep \1", said).group(1))
    assert seconds < train["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("path", ["README.md", "docs/tutorial.md", "docs/training.md"])
def test_other_pages_lead_here(path):
    assert "cluster.md" in (ROOT / path).read_text()


def test_links_of_the_page_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
