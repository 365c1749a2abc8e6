"""The Ray cluster that programs run on: the submitted job's, a running one, or a local one of their own."""

from __future__ import annotations

import logging
import os
from typing import Any

import ray

from vosforge.errors import UserError

# Tasks of data and training overlap on small machines; fewer logical CPUs than this and they would wait on each other.
_FEWEST_CPUS = 4
_EXPECTED_PROCESSES = 16


def connect(verbose: bool = False) -> dict[str, Any]:
    """Connect to the cluster that `RAY_ADDRESS` or a submitted job names, else start a local one.

    Args:
        verbose: show what Ray's processes print; what they raise is shown in any case.

    Returns:
        The cluster's resources.

    Raises:
        UserError: when the named cluster does not answer, or a local one does not start.
    """
    if ray.is_initialized():
        return ray.cluster_resources()
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": verbose}
    try:
        if address and address != "local":
            ray.init(address=address, **quiet)
        else:
            count = max(_FEWEST_CPUS, os.cpu_count() or 1)
            # Ray warns, over and over, when small machines start many processes; here that is meant.
            os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(_EXPECTED_PROCESSES))
            # Nobody gives notice of a machine to the cluster that it alone is; each worker group would start a watcher.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            ray.init(address="local", num_cpus=count, include_dashboard=False, **quiet)
    except Exception as error:
        # Ray raises classes of every kind, on a machine that is too busy the base class.
        reason = (str(error).splitlines() or ["no answer"])[0].rstrip(".")
        remedy = "start it, or unset RAY_ADDRESS" if address else "try again when the machine is less busy"
        raise UserError(f"Ray at {address or 'this machine'} cannot be used: {reason}; {remedy}") from error
    return ray.cluster_resources()
