"""cluster.yaml on an EC2 endpoint of this machine, by the code that `ray up` and Ray's autoscaler run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from faulty_s3 import s3_server
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UNINITIALIZED,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parent.parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def region(tmp_path_factory) -> Iterator[Any]:
    """A client of EC2 in an account where nothing was ever started."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        # Ray's role for the head takes managed policies, of which moto knows none by itself.
        for name, value in {
            "HOME": str(home),
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": CLUSTER["provider"]["region"],
            "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
        }.items():
            patch.setenv(name, value)
        with s3_server() as endpoint:
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            yield boto3.client("ec2")


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a configuration: keys, groups, roles, networks and resources filled in."""
    return _bootstrap_config(copy.deepcopy(config), no_config_cache=True)


def without_resources(config: dict[str, Any]) -> list[str]:
    """Kinds of nodes whose machines Ray knows nothing of: they would never be started."""
    types = config["available_node_types"]
    return [name for name, node in types.items() if name != config["head_node_type"] and "CPU" not in node["resources"]]


@pytest.fixture(scope="module")
def launched(region) -> dict[str, Any]:
    return bootstrapped(CLUSTER)


def test_every_kind_of_node_has_the_resources_of_its_machine(launched):
    types = launched["available_node_types"]
    assert without_resources(launched) == []
    assert types["head"]["resources"] == {"CPU": 0, "memory": types["head"]["resources"]["memory"]}
    assert types["cpu_data"]["resources"]["CPU"] == 32
    for name in ("gpu_spot", "gpu_on_demand"):
        assert (types[name]["resources"]["CPU"], types[name]["resources"]["GPU"]) == (48, 4)


@pytest.mark.parametrize(("name", "lifecycle"), [("cpu_data", "spot"), ("gpu_spot", "spot"), ("gpu_on_demand", None)])
def test_machines_are_started_on_their_market_and_ended(launched, region, name, lifecycle):
    provider = _get_node_provider(launched["provider"], launched["cluster_name"])
    node = launched["available_node_types"][name]
    tags = {
        TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
        TAG_RAY_USER_NODE_TYPE: name,
        TAG_RAY_NODE_STATUS: STATUS_UNINITIALIZED,
        TAG_RAY_LAUNCH_CONFIG: "0",
    }
    (started,) = provider.create_node(node["node_config"], tags, 1)
    (reserved,) = region.describe_instances(InstanceIds=[started])["Reservations"]
    (machine,) = reserved["Instances"]
    assert machine.get("InstanceLifecycle") == lifecycle
    assert machine["InstanceType"] == CLUSTER["available_node_types"][name]["node_config"]["InstanceType"]
    provider.terminate_nodes([started])
    assert provider.non_terminated_nodes({}) == []


def test_machine_that_does_not_exist_is_found_by_its_missing_resources(region):
    """Ray itself only logs it."""
    wrong = copy.deepcopy(CLUSTER)
    wrong["available_node_types"]["cpu_data"]["node_config"]["InstanceType"] = "c6i.8xlager"
    assert "cpu_data" in without_resources(bootstrapped(wrong))
