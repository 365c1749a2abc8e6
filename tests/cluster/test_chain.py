"""The whole chain as jobs on a cluster of machines with addresses of their own, with all data on a store that fails."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import cv2
import pytest
from faulty_s3 import faulty, s3_server
from heads import BIN, ROOT, Head
from machines import FAST
from mlflow import MlflowClient
from namespaces import Node, bridge
from stores import Server

from vosforge.data.image_files import encode_mask
from vosforge.storage import exists, read_bytes

pytestmark = pytest.mark.cluster
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def refuse_and_dawdle(number: int, method: str, path: str) -> str | float | None:
    """One request in eleven fails, one in seven takes a quarter of a second."""
    if number % 11 == 5:
        return "500"
    return 0.25 if number % 7 == 3 else None


class Job:
    """A submitted job that runs, and what is printed of it."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self.process, self.log = process, log

    def wait_for(self, uri: str, seconds: float = 300) -> None:
        """Until a file is there."""
        deadline = time.monotonic() + seconds
        while not exists(uri):
            assert self.process.poll() is None, f"ended before {uri}: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"{uri} did not come: {self.log.read_text()}"
            time.sleep(0.2)

    def finish(self) -> None:
        """Until it has ended well."""
        assert self.process.wait(400) == 0, self.log.read_text()


class Cluster(Head):
    """A head without CPUs, and two machines of two."""

    def __init__(self, folder: Path, address: str, variables: dict[str, str]):
        fast = {name: value for name, value in FAST.items() if name not in ("RAY_AUTH_MODE", "MLFLOW_TRACKING_URI")}
        super().__init__(folder, {**fast, **variables}, ["--num-cpus=0", f"--node-ip-address={address}"])
        self.nodes: list[Node] = []
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def submitted(self, *command: str) -> Iterator[Job]:
        """A job that runs meanwhile."""
        log = self.folder / "job.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [BIN / "ray", *self.submission(*command)], stdout=file, stderr=file, env=self.environment, cwd=ROOT
            )
        try:
            yield Job(process, log)
        finally:
            process.kill()
            process.wait()

    def run(self, *command: object) -> str:
        """Submit a job, and what it printed once it has ended well."""
        began = time.monotonic()
        done = self.submit("python", *map(str, command))
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        self.seconds[str(command[0])] = time.monotonic() - began
        return done.stdout


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[Cluster]:
    with (
        bridge() as address,
        s3_server(address) as server,
        faulty(server, refuse_and_dawdle, address) as (store, spoilt),
    ):
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server, "MLFLOW_S3_ENDPOINT_URL": store}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="team")
        tracking = Server(tmp_path, artefacts="s3://team/mlflow")
        tracking.start()
        made = Cluster(tmp_path, address, {**KEYS, "AWS_ENDPOINT_URL": store, "MLFLOW_TRACKING_URI": tracking.uri})
        try:
            made.nodes = [Node(number, made, address) for number in (1, 2)]
            for node in made.nodes:
                node.start()
            yield made
            assert any("500" in request for request in spoilt)
        finally:
            for node in made.nodes:
                node.remove()
            made.stop()
            tracking.kill()


@pytest.fixture
def footage(moving_square, tmp_path) -> Path:
    """A folder as DAVIS has it: six videos to train on, eight to validate."""
    root = tmp_path / "DAVIS"
    for split, seeds in (("train", range(6)), ("val", range(10, 18))):
        for clip in [moving_square(f"{split}{seed}", seed) for seed in seeds]:
            for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
                (root / kind / "480p" / clip.name).mkdir(parents=True)
                for t in range(len(clip)):
                    path = root / kind / "480p" / clip.name / f"{t:05d}.{suffix}"
                    if kind == "Annotations":
                        path.write_bytes(encode_mask(clip.masks[t]))
                    else:
                        cv2.imwrite(str(path), clip.frames[t])
        listed = root / "ImageSets" / "2017" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{split}{seed}\n" for seed in seeds))
    return root


@pytest.mark.timeout(1200)
def test_ingest_train_sweep_evaluate_and_register_as_jobs_while_a_node_is_lost(cluster, footage):
    for split in ("train", "val"):
        cluster.run("datasets/ingest.py", "--root", footage, "--split", split, "--out", f"s3://team/shards/{split}")

    train(cluster)
    network = "s3://team/runs/first/network.safetensors"
    cluster.run(
        "tuning/stm.py", "--trials", 2, "--data", "s3://team/shards/train", "--validation", "s3://team/shards/val",
        "--stages", "videos", "--steps", 4, "--initial", network, "--scheduler", "none", "--search", "random",
        "--storage", "s3://team/runs", "--name", "sweep",
    )  # fmt: skip
    trials = json.loads(read_bytes("s3://team/runs/sweep/trials.json"))
    assert [trial["state"] for trial in trials] == ["finished", "finished"]
    assert exists("s3://team/runs/sweep/parallel-coordinates.png")

    cluster.run(
        "jobs/evaluate.py", "--truth", "s3://team/shards/val", "--model", f"first={network}",
        "best=s3://team/runs/sweep/network.safetensors", "--json", "s3://team/report.json",
    )  # fmt: skip
    cluster.run(
        "jobs/register.py", "--model", "s3://team/runs/sweep", "--name", "team", "--alias", "champion",
        "--report", "s3://team/report.json",
    )  # fmt: skip
    champion = MlflowClient(cluster.environment["MLFLOW_TRACKING_URI"]).get_model_version_by_alias("team", "champion")
    assert champion.tags["vosforge.sweeps"] == "s3://team/runs/sweep"
    print({name: round(seconds) for name, seconds in cluster.seconds.items()})


def train(cluster: Cluster) -> None:
    """Two workers on two machines, one of which is lost on the way."""
    command = [
        "python", "jobs/train.py", "--network", "stm", "--size", "nano", "--stages", "videos",
        "--data", "s3://team/shards/train", "--storage", "s3://team/runs", "--name", "first", "--steps", 60,
        "--batch", 4, "--crop", 32, "--checkpoint-every", 10, "--workers", 2, "--min-workers", 1, "--threads", 1,
    ]  # fmt: skip
    began = time.monotonic()
    with cluster.submitted(*map(str, command)) as job:
        job.wait_for("s3://team/runs/first/step_00000020/position.json")
        assert [ranks(node) for node in cluster.nodes] in ([{0}, {1}], [{1}, {0}])
        lost, at = cluster.nodes[1], time.monotonic()
        lost.kill()
        job.wait_for("s3://team/runs/first/step_00000040/position.json")
        cluster.seconds["from a lost node to step 40"] = time.monotonic() - at
        job.finish()
    lost.start()
    cluster.seconds["jobs/train.py"] = time.monotonic() - began


def ranks(node: Node) -> set[int]:
    """Of training workers that ran on a machine."""
    logs = node.folder.glob("session_latest/logs/train/ray-train-sys-worker-*.log")
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return {line["world_rank"] for line in lines if "world_rank" in line}
