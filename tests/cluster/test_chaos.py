"""Machines that die, storage that refuses and data that is damaged while two workers train.

Each run ends in the weights of an undisturbed one, or in one line with its last checkpoint intact; then the same
command, once what it names is mended, ends in those weights. Killed workers and drivers have tests of their own, in
test_exact_resume_on_ray.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
import torch
from faulty_s3 import faulty, s3_server
from machines import Machines, Training, farthest, weights

from vosforge.data.shards import ShardSet
from vosforge.storage import join, list_names
from vosforge.training.checkpoints import latest_whole

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
STEPS = 90
EVERY = 15
# Of a request to the store: 13 seconds, where by default it is twice as much.
ATTEMPTS = "10"


class Store:
    """An S3 endpoint whose answers are spoilt at will.

    Attributes:
        fault: "503", seconds to wait, or None.
    """

    fault: str | float | None = None
    endpoint: str
    spoilt: list[str]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    found = Store()
    with s3_server() as address, faulty(address, lambda number, method, path: found.fault) as (endpoint, spoilt):
        found.endpoint, found.spoilt = endpoint, spoilt
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket="runs")
            yield found


@pytest.fixture(scope="module")
def cluster(store) -> Iterator[Machines]:
    # Ray's sockets need a short path.
    folder = Path("/tmp") / f"vf-{os.getpid()}"
    running = Machines(folder, {**KEYS, "AWS_ENDPOINT_URL": store.endpoint, "AWS_MAX_ATTEMPTS": ATTEMPTS})
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def machines(cluster) -> Machines:
    cluster.complete()
    return cluster


@pytest.fixture(scope="module")
def shards(build_shards, moving_square, tmp_path_factory) -> Path:
    """A folder of the shards of two stages."""
    folder = tmp_path_factory.mktemp("shards")
    build_shards(folder / "bl30k", [moving_square(f"v{i}", i) for i in range(4)], kind="bl30k")
    build_shards(folder / "videos", [moving_square(f"w{i}", i + 9) for i in range(3)], kind="videos")
    return folder


@pytest.fixture(scope="module")
def start(cluster, shards) -> Callable[..., Training]:
    """Starts a training of two workers and two stages."""

    def begin(storage: object, *flags: object, data: Path = shards, steps: int = STEPS, every: int = EVERY) -> Training:
        return Training(
            cluster.environment, "--network", "stm", "--size", "nano", "--stages", "bl30k", "videos",
            "--data", data / "bl30k", data / "videos", "--storage", storage, "--name", "run", "--steps", steps,
            "--batch", 4, "--crop", 48, "--checkpoint-every", every, "--workers", 2, "--threads", 1, *flags,
        )  # fmt: skip

    return begin


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory) -> dict[str, torch.Tensor]:
    storage = tmp_path_factory.mktemp("undisturbed")
    training = start(storage)
    training.finish()
    first, last = training.steps[0][0], training.steps[-1][0]
    print(f"\nundisturbed: first step after {first - training.began:.0f} s, all in {last - first:.0f} s")
    return weights(storage / "run")


def check_equal(run: object, expected: dict[str, torch.Tensor], told: str) -> None:
    difference = farthest(weights(run), expected)
    print(f"\n{told}; weights differ by {difference:.1e}")
    assert difference < 1e-6


def registered(run: Path) -> str:
    """Name of the checkpoint that a restart would take."""
    listed = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
    return listed["latest_checkpoint_result"]["checkpoint_dir_name"]


def test_run_whose_node_of_rank_0_dies_goes_on_with_one_worker_and_then_with_two(
    start, machines, undisturbed, tmp_path
):
    training = start(tmp_path, "--min-workers", 1)
    training.wait_for(EVERY + 10)
    fault = time.monotonic()
    machines.kill(machines.node_of_rank("run", 0))
    training.wait_until(lambda: machines.groups("run")[-1][1] == 1, "one worker")
    alone = machines.groups("run")[-1][0]
    training.wait_until(lambda: training.steps[-1][0] > alone + 1, "a step of one worker")
    back = time.monotonic()
    machines.complete()
    training.wait_until(lambda: machines.groups("run")[-1][1] == 2, "two workers")
    training.finish()
    # The other worker may hear of the death before Ray does, which then starts two at first where one has decoders.
    assert [size for _, size in machines.groups("run")] in ([2, 1, 2], [2, 2, 1, 2])
    grown = machines.groups("run")[-1][0]
    told = f"{training.recovery(fault)}; two workers {grown - back:.1f} s after a node came back"
    check_equal(tmp_path / "run", undisturbed, f"node of rank 0 killed: {told}")


def test_run_whose_decoders_node_dies_goes_on(start, machines, undisturbed, tmp_path):
    training = start(tmp_path)
    # A stage's decoders are ahead of it soon.
    training.wait_for(STEPS + 1)
    decoding = set(machines.processes("MapWorker").values()) - set(machines.processes("RayTrainWorker").values())
    assert decoding
    fault = time.monotonic()
    machines.kill(decoding.pop())
    machines.complete()
    training.finish()
    check_equal(tmp_path / "run", undisturbed, f"decoders' node killed: {training.recovery(fault)}")
    assert training.repeated() <= EVERY


def test_notice_to_a_spot_machine_leads_to_one_checkpoint_before_the_node_goes(start, machines, undisturbed, tmp_path):
    """Of no other cause: checkpoints are due at the ends of stages alone."""
    training = start(tmp_path, "--min-workers", 1, every=10 * STEPS)
    training.wait_for(20)
    leaving = machines.node_of_rank("run", 0)
    with machines.spot(leaving) as announce:
        training.wait_for(25)
        notice = time.monotonic()
        assert f"node {leaving.node_id} is drained" in announce(60)
    snapshot = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    training.wait_until(lambda: snapshot.exists() and "step_" in snapshot.read_text(), "a checkpoint", timeout=50)
    kept, heard = registered(tmp_path / "run"), time.monotonic() - notice
    # Past two more steps at which the loop asks for notices.
    training.wait_for(int(kept.removeprefix("step_")) + 21)
    assert [name for name in list_names(tmp_path / "run") if name.startswith("step_0")] == [kept]
    reached, fault = training.reached, time.monotonic()
    machines.kill(leaving)
    training.finish()
    told = f"registered {heard:.1f} s after the notice, at {kept}, node gone at step {reached}"
    assert int(kept.removeprefix("step_")) % 10 == 0
    # Nothing before the notice's checkpoint was computed again.
    assert min(step for at, step in training.steps if at > fault + 1) > int(kept.removeprefix("step_"))
    check_equal(tmp_path / "run", undisturbed, f"preemption: {told}; {training.recovery(fault)}")


def test_store_that_is_slow_and_refuses_for_a_while_is_ridden_out_and_one_that_goes_on_ends_in_one_line(
    start, machines, store, undisturbed
):
    training = start("s3://runs")
    training.wait_for(EVERY - 5)
    fault, store.fault = time.monotonic(), 0.5
    training.wait_for(EVERY + 1)
    store.fault = "503"
    training.wait_until(lambda: len([what for what in store.spoilt if "503" in what]) > 3, "refusals")
    time.sleep(3)
    store.fault = None
    training.wait_for(2 * EVERY + 5)
    told, slow = training.recovery(fault), training.repeated()
    store.fault = "503"
    gone = time.monotonic()
    error = training.error()
    ended = time.monotonic() - gone
    store.fault = None
    assert "s3://runs/run: the storage does not take a checkpoint" in error
    assert "SERVICE_UNAVAILABLE" in error or "503" in error
    assert slow == 0
    latest = latest_whole("s3://runs/run")
    again = start("s3://runs")
    again.finish()
    assert again.steps[0][1] > int(latest.rpartition("step_")[2])
    told = f"ridden out: {told}; refusing for good: {ended:.0f} s until the error, then on from {latest}"
    check_equal("s3://runs/run", undisturbed, f"store: {told}, {training.reached - again.steps[0][1] + 1} again")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> None:
    """Write until nothing fits."""
    with (folder / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(1 << 12))


def test_full_disk_ends_in_one_line_and_the_same_command_goes_on_when_there_is_room(
    start, machines, small_disk, undisturbed
):
    training = start(small_disk)
    training.wait_for(EVERY + 5)
    fill(small_disk)
    error = training.error()
    assert f"{small_disk}/run: no room for a checkpoint, " in error
    assert " bytes needed, " in error
    latest = latest_whole(f"{small_disk}/run")
    assert latest.endswith(f"step_{EVERY:08d}")
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = start(small_disk)
    again.finish()
    again_from = training.reached - again.steps[0][1] + 1
    check_equal(join(small_disk, "run"), undisturbed, f"disk full: {error}; {again_from} steps computed again")


def test_damaged_data_ends_in_one_line_and_the_same_command_goes_on_when_it_is_mended(
    start, machines, shards, undisturbed, tmp_path
):
    """A picture, and then a shard, that are damaged while the stage before theirs is trained."""
    data = shutil.copytree(shards, tmp_path / "data")
    video = ShardSet(str(data / "videos")).videos[1]
    part = data / "videos" / video.file
    whole = part.read_bytes()
    first, length = (int(x) for x in video.ranges("image")[2])

    training = start(tmp_path, data=data)
    training.wait_for(EVERY)
    part.write_bytes(whole[:first] + bytes(length) + whole[first + length :])
    error = training.error()
    assert f"{part}:{video.video_id}/00002: expected a JPEG or PNG image, found {length} bytes" in error
    assert registered(tmp_path / "run") == f"step_{STEPS:08d}"
    picture = f"{training.reached} steps done, {training.repeated()} repeated"

    part.write_bytes(whole[: len(whole) // 2])
    again = start(tmp_path, data=data)
    error = again.error()
    assert f"{part}:" in error
    assert "the shard cannot be read at frames 0000" in error
    assert registered(tmp_path / "run") == f"step_{STEPS:08d}"

    part.write_bytes(whole)
    mended = start(tmp_path, data=data)
    mended.finish()
    assert mended.steps[0][1] == STEPS + 1
    check_equal(tmp_path / "run", undisturbed, f"damaged data: {picture}; none computed again")


def test_diverging_stage_ends_in_one_line_and_leaves_the_last_checkpoint_sound(start, machines, tmp_path):
    training = start(tmp_path, "--videos.learning-rate", 1e30, steps=EVERY)
    error = training.error()
    assert "stage videos, step " in error
    assert "lower the learning rate" in error
    kept = weights(latest_whole(str(tmp_path / "run")))
    assert all(torch.isfinite(value).all() for value in kept.values())
    print(f"\ndiverged: {error}; last checkpoint {registered(tmp_path / 'run')}, reached step {training.reached}")
