"""cluster.yaml on an EC2 endpoint of this machine, by the code that `ray up` and Ray's autoscaler run."""

from __future__ import annotations

import copy
import io
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UNINITIALIZED,
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)
from werkzeug.serving import make_server

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parent.parent.parent
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


class Refusing:
    """Moto's application, but machines that match are refused with an error code of EC2's.

    Attributes:
        refusals: whether the body of a RunInstances is refused, by error code.
    """

    def __init__(self) -> None:
        self.application = DomainDispatcherApplication(create_backend_app)
        self.refusals: dict[str, Callable[[bytes], bool]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        for code, matches in self.refusals.items():
            if b"Action=RunInstances" in body and matches(body):
                start_response("400 Bad Request", [("Content-Type", "text/xml")])
                error = f"<Error><Code>{code}</Code><Message>refused</Message></Error>"
                return [f"<Response><Errors>{error}</Errors><RequestID>0</RequestID></Response>".encode()]
        return self.application(environ, start_response)


@pytest.fixture(scope="module")
def ec2() -> Iterator[Refusing]:
    """An endpoint in an account where nothing was ever started, to which the environment leads."""
    application = Refusing()
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        Path(home, ".ssh").mkdir()
        # Ray's role for the head takes managed policies, of which moto knows none by itself.
        for name, value in {
            "HOME": home,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": CLUSTER["provider"]["region"],
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
            "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
        }.items():
            patch.setenv(name, value)
        thread.start()
        yield application
        server.shutdown()
    # Moto's accounts are the process's.
    for backend in ("ec2", "iam"):
        get_backend(backend).reset()


@pytest.fixture
def region(ec2) -> Any:
    return boto3.client("ec2")


@pytest.fixture
def refusals(ec2) -> Iterator[dict[str, Callable[[bytes], bool]]]:
    yield ec2.refusals
    ec2.refusals.clear()


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a configuration: keys, groups, roles, networks and resources filled in."""
    return _bootstrap_config(copy.deepcopy(config), no_config_cache=True)


def without_resources(config: dict[str, Any]) -> list[str]:
    """Kinds of nodes whose machines Ray knows nothing of: they would never be started."""
    types = config["available_node_types"]
    return [name for name, node in types.items() if name != config["head_node_type"] and "CPU" not in node["resources"]]


@pytest.fixture(scope="module")
def launched(ec2) -> dict[str, Any]:
    return bootstrapped(CLUSTER)


def test_every_kind_of_node_has_the_resources_of_its_machine(launched):
    types = launched["available_node_types"]
    assert without_resources(launched) == []
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["cpu_data"]["resources"]["CPU"] == 32
    assert (types["gpu_train"]["resources"]["CPU"], types["gpu_train"]["resources"]["GPU"]) == (48, 4)


def start(launched: dict[str, Any], name: str) -> tuple[NodeProvider, str]:
    """One machine of a kind, as the autoscaler starts it; its provider and id."""
    provider = _get_node_provider(launched["provider"], launched["cluster_name"], use_cache=False)
    tags = {
        TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
        TAG_RAY_USER_NODE_TYPE: name,
        TAG_RAY_NODE_STATUS: STATUS_UNINITIALIZED,
        TAG_RAY_LAUNCH_CONFIG: "0",
    }
    (machine,) = provider.create_node(launched["available_node_types"][name]["node_config"], tags, 1)
    return provider, machine


def described(region: Any, machine: str) -> dict[str, Any]:
    (reserved,) = region.describe_instances(InstanceIds=[machine])["Reservations"]
    return reserved["Instances"][0]


@pytest.mark.parametrize("name", ["cpu_data", "gpu_train"])
def test_workers_are_started_as_spot_machines_and_ended(launched, region, name):
    provider, machine = start(launched, name)
    found = described(region, machine)
    assert found["InstanceLifecycle"] == "spot"
    assert found["InstanceType"] == CLUSTER["available_node_types"][name]["node_config"]["InstanceType"]
    provider.terminate_nodes([machine])
    assert provider.non_terminated_nodes({}) == []


def test_without_a_spot_machine_the_same_is_started_on_demand(launched, region, refusals):
    refusals["InsufficientInstanceCapacity"] = lambda body: b"MarketType=spot" in body
    provider, machine = start(launched, "gpu_train")
    found = described(region, machine)
    assert "InstanceLifecycle" not in found
    assert found["InstanceType"] == "g5.12xlarge"
    provider.terminate_nodes([machine])


@pytest.mark.parametrize("code", ["InsufficientInstanceCapacity", "UnauthorizedOperation"])
def test_other_refusals_stay(launched, refusals, code):
    """On demand too there may be none; and what is not of the market, on demand would not mend."""
    refusals[code] = lambda body: True
    with pytest.raises(NodeLaunchException) as raised:
        start(launched, "gpu_train")
    assert raised.value.category == code


def test_machine_that_does_not_exist_is_found_by_its_missing_resources(ec2):
    """Ray itself only logs it."""
    wrong = copy.deepcopy(CLUSTER)
    wrong["available_node_types"]["cpu_data"]["node_config"]["InstanceType"] = "c6i.8xlager"
    assert "cpu_data" in without_resources(bootstrapped(wrong))
