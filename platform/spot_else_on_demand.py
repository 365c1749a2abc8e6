"""Machines of EC2 for Ray's launcher and autoscaler, which never turn from spot to on demand by themselves.

Beside the package, not in it: cluster.yaml copies this file to a head that has no vosforge.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

# What EC2 answers where it has no spot machine, or none for this account.
_NO_SPOT_MACHINE = {"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"}
_LOGGER = logging.getLogger(__name__)


class SpotElseOnDemand(AWSNodeProvider):
    """Ray's provider, but where EC2 has no spot machine, the same machine is started on demand."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start machines of one kind.

        Args:
            node_config: of EC2's RunInstances.
            tags: of the machines.
            count: of machines.

        Returns:
            The machines by their ids.

        Raises:
            NodeLaunchException: when EC2 refuses for another reason, or on demand too.
        """
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as error:
            if "InstanceMarketOptions" not in node_config or error.category not in _NO_SPOT_MACHINE:
                raise
            _LOGGER.warning("no spot machine (%s); on demand then", error.category)
        on_demand = {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
        return super().create_node(on_demand, tags, count)
