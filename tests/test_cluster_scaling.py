"""Which machines of cluster.yaml Ray's autoscaler starts; what docs/cluster.md says of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

CLUSTER = yaml.safe_load((Path(__file__).resolve().parent.parent / "cluster.yaml").read_text())
# tests/cluster/test_launching.py shows that Ray finds these by itself.
FOUND = {"cpu_data": {"CPU": 32}, "gpu_spot": {"CPU": 48, "GPU": 4}, "gpu_on_demand": {"CPU": 48, "GPU": 4}}


def started(*demands: dict[str, float], seen: CloudResourceMonitor | None = None, asked: str = "") -> dict[str, int]:
    """Machines that are started at first, by kind of node.

    Args:
        demands: of tasks, actors and workers that wait.
        seen: how starting others went before.
        asked: market of four GPUs that `request_resources` asks for.
    """
    config = copy.deepcopy(CLUSTER)
    for name, resources in FOUND.items():
        config["available_node_types"][name]["resources"] = resources
    scaling = AutoscalingConfig(config, skip_content_hash=True)
    seen = seen or CloudResourceMonitor()
    wanted = [("market", LabelSelectorOperator.LABEL_OPERATOR_IN, [asked])]
    constraint = ClusterResourceConstraint(
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"GPU": 4}, [], [wanted])])
    )
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=scaling.get_node_type_configs(),
        max_num_nodes=scaling.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand) for demand in demands]),
        cluster_resource_constraints=[constraint] if asked else [],
        cloud_resource_availabilities=seen.get_resource_availabilities(),
        recoverable_resource_availabilities=seen.get_recoverable_resource_availabilities(),
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_work_on_cpus_starts_no_gpus():
    assert started({"CPU": 8}, {"CPU": 8}) == {"cpu_data": 1}


def test_spot_machines_come_first_and_others_when_those_are_all_there():
    assert started({"GPU": 4}) == {"gpu_spot": 1}
    assert started(*[{"GPU": 4}] * 3) == {"gpu_spot": 2, "gpu_on_demand": 1}


@pytest.mark.parametrize(
    ("status", "next_one"), [(Instance.ALLOCATION_TIMEOUT, "gpu_on_demand"), (Instance.ALLOCATION_FAILED, "gpu_spot")]
)
def test_ray_turns_to_other_machines_after_silence_but_not_after_a_refusal(status, next_one):
    """AWS refuses at once where it has no spot machine; so docs/cluster.md tells how to ask for others by hand."""
    seen = CloudResourceMonitor()
    seen.notify([InstanceUpdateEvent(instance_id="i", instance_type="gpu_spot", new_instance_status=status)])
    assert started({"GPU": 4}, seen=seen) == {next_one: 1}


def test_other_machines_can_be_asked_for_by_their_label():
    assert started(asked="on-demand") == {"gpu_on_demand": 1}
