"""Drain this machine's Ray node when its spot machine will be taken away, so that training keeps a checkpoint before.

    python watch_spot.py                      # beside `ray start` on a machine of EC2, until Ray ends there
    python watch_spot.py --leaving-in 90      # says so itself, as where Kubernetes stops a pod

Asks EC2's metadata service every few seconds whether it was told to go. One file of the standard library: cluster.yaml
copies it to machines that have no vosforge.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

_METADATA = "http://169.254.169.254"
_ANSWER_SECONDS = 2.0
# Of `ray drain-node`, on a machine that is busy.
_DRAIN_SECONDS = 60.0
_PAUSE_SECONDS = 2.0
# A proxy that the environment names leads elsewhere.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def raylets(node_id: str | None = None) -> dict[str, str]:
    """Ray's nodes on this machine.

    Args:
        node_id: of the one node that matters, where several run.

    Returns:
        The address of the cluster of each, by node id in hex.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program, *words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if Path(program).name == "raylet":
            said = dict(word.split("=", 1) for word in words if "=" in word)
            if {"--node_id", "--gcs-address"} <= said.keys():
                found[said["--node_id"]] = said["--gcs-address"]
    return {node: address for node, address in found.items() if node_id in (None, node)}


def ask(metadata: str) -> float | None:
    """When this machine will be taken away, in seconds since 1970, or None where it stays.

    Args:
        metadata: address of the metadata service, of EC2's second version.

    Raises:
        ValueError: when the service answers nothing, or nothing that can be understood.
    """
    try:
        token = _request(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
        notice = f"{metadata}/latest/meta-data/spot/instance-action"
        told = json.loads(_request(notice, {"X-aws-ec2-metadata-token": token.decode()}))
        return datetime.datetime.fromisoformat(told["time"].replace("Z", "+00:00")).timestamp()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise ValueError(f"status {error.code}") from error
    except (OSError, http.client.HTTPException, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _request(address: str, headers: dict[str, str], method: str = "GET") -> bytes:
    request = urllib.request.Request(address, headers=headers, method=method)
    with _DIRECT.open(request, timeout=_ANSWER_SECONDS) as answer:
        return answer.read()


def drain(node: str, cluster: str, leaves: float) -> str | None:
    """Tell Ray that a node leaves.

    Args:
        node: its id in hex.
        cluster: address.
        leaves: when, in seconds since 1970.

    Returns:
        Why that failed, in one line, or None.
    """
    remaining = max(1, math.floor(leaves - time.time()))
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster, "--node-id", node,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the machine will be taken away",
        "--deadline-remaining-seconds", str(remaining),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRAIN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_DRAIN_SECONDS:.0f} s"
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1] if done.returncode else None


def leave(node: str, leaves: float) -> int:
    """Drain a node, again and again until Ray has accepted it or the node is gone.

    Returns:
        The program's exit status.
    """
    while cluster := raylets(node).get(node):
        failure = drain(node, cluster, leaves)
        if failure is None:
            print(f"node {node} is drained; it leaves in {leaves - time.time():.0f} s", flush=True)
            return 0
        print(f"Ray did not drain node {node}: {failure}", file=sys.stderr, flush=True)
        if time.time() > leaves:
            return 1
        time.sleep(_PAUSE_SECONDS)
    print(f"node {node} has ended by itself", flush=True)
    return 0


def watch(node: str, metadata: str, every: float) -> int:
    """Ask until the machine is told to go, and then drain its node; or until that has ended.

    Args:
        node: its id in hex.
        metadata: address of the metadata service.
        every: seconds between questions.

    Returns:
        The program's exit status.
    """
    complaint = ""
    while raylets(node):
        try:
            leaves = ask(metadata)
            if leaves is not None:
                return leave(node, leaves)
        except ValueError as error:
            # Once for each, not every few seconds for weeks.
            if str(error) != complaint:
                complaint = str(error)
                print(f"no answer from {metadata}: {complaint}; asking on", file=sys.stderr, flush=True)
        time.sleep(every)
    return 0


def main() -> int:
    """Choose the node, and watch over it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node-id", help="of the Ray node, in hex, where several run on this machine")
    parser.add_argument("--leaving-in", type=float, metavar="SECONDS", help="drain it now, without asking")
    parser.add_argument("--metadata", default=_METADATA, help="address of the metadata service")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between questions")
    flags = parser.parse_args()
    found = list(raylets(flags.node_id))
    if len(found) != 1:
        remedy = "choose one by --node-id" if found else "start Ray first"
        print(f"error: expected one Ray node on this machine, found {len(found)}; {remedy}", file=sys.stderr)
        return 2
    (node,) = found
    if flags.leaving_in is not None:
        return leave(node, time.time() + flags.leaving_in)
    return watch(node, flags.metadata, flags.every)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
