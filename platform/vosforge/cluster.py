"""The Ray cluster that programs run on: the submitted job's, a running one, or a local one of their own."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from vosforge.errors import UserError

# Tasks of data and training overlap on small machines; fewer logical CPUs than this and they would wait on each other.
_FEWEST_CPUS = 4


def connect(verbose: bool = False, cpus: int | None = None) -> dict[str, Any]:
    """Connect to the cluster that `RAY_ADDRESS` or a submitted job names, else start a local one.

    Args:
        verbose: show what Ray's processes print; what they raise is shown in any case.
        cpus: logical CPUs of a local cluster; by default the machine's, at least 4.

    Returns:
        The cluster's resources.

    Raises:
        UserError: when the named cluster does not answer.
    """
    if ray.is_initialized():
        return ray.cluster_resources()
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": verbose}
    try:
        if address and address != "local":
            ray.init(address=address, **quiet)
        else:
            count = cpus or max(_FEWEST_CPUS, os.cpu_count() or 1)
            ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise UserError(
            f"Ray at {address or 'this machine'} cannot be used: {reason}; start it, or unset RAY_ADDRESS"
        ) from error
    return ray.cluster_resources()
