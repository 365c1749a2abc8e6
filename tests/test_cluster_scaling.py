"""Which machines of cluster.yaml Ray's autoscaler starts, and what it makes of refusals."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

CLUSTER = yaml.safe_load((Path(__file__).resolve().parent.parent / "cluster.yaml").read_text())
# tests/cluster/test_launching.py shows that Ray finds these by itself.
FOUND = {"cpu_data": {"CPU": 32}, "gpu_train": {"CPU": 48, "GPU": 4}}


def started(*demands: dict[str, float]) -> dict[str, int]:
    """Machines that are started first for tasks, actors and workers that wait, by kind of node."""
    config = copy.deepcopy(CLUSTER)
    for name, resources in FOUND.items():
        config["available_node_types"][name]["resources"] = resources
    scaling = AutoscalingConfig(config, skip_content_hash=True)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=scaling.get_node_type_configs(),
        max_num_nodes=scaling.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand) for demand in demands]),
    )
    reply = ResourceDemandScheduler(event_logger=None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_work_on_cpus_starts_no_gpus():
    assert started({"CPU": 8}, {"CPU": 8}) == {"cpu_data": 1}


def test_workers_on_gpus_start_as_many_machines_as_they_fill():
    assert started(*[{"CPU": 1, "GPU": 1}] * 8) == {"gpu_train": 2}


def test_no_more_machines_are_started_than_the_file_allows():
    assert started(*[{"GPU": 4}] * 5) == {"gpu_train": 2}


def test_ray_does_not_learn_from_refusals():
    """So a second kind of node, on demand, would never be tried; cluster.yaml has a provider that does that."""
    seen = CloudResourceMonitor()
    refused = {"instance_id": "i", "instance_type": "spot", "new_instance_status": Instance.ALLOCATION_FAILED}
    seen.notify([InstanceUpdateEvent(**refused)])
    assert seen.get_recoverable_resource_availabilities() == seen.get_resource_availabilities() == {}
