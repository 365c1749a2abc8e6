from __future__ import annotations

import threading
import time

import boto3
import pytest
from faulty_s3 import s3_server

from vosforge.search.warm_starts import warm_start
from vosforge.storage import join, local_copy, upload_file
from vosforge.training.checkpoints import Position, adopt, latest_whole, load_checkpoint, save_checkpoint


@pytest.fixture(params=["local", "s3"])
def storage(request, tmp_path, monkeypatch):
    if request.param == "local":
        yield str(tmp_path / "runs")
        return
    with s3_server() as address:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="team")
        yield "s3://team/runs"


def test_trials_train_what_they_share_once_and_go_on_from_a_copy(storage, make_plan, tmp_path):
    plan, trained, found = make_plan(), [], []

    def train(part, folder):
        trained.append(part.name)
        time.sleep(0.5)
        checkpoint = tmp_path / "made"
        checkpoint.mkdir()
        save_checkpoint(checkpoint, part.build_network(), {"step": 4}, Position(0, 4), part.digest)
        for path in sorted(checkpoint.iterdir(), key=lambda path: path.suffix == ".json"):
            upload_file(path, join(folder, part.name, "step_00000004", path.name))

    threads = [threading.Thread(target=lambda: found.append(warm_start(plan, 1, storage, train))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(trained) == 1
    assert sorted(start.reused for start in found) == [False, True, True]

    copy = adopt(found[0].checkpoint, join(storage, "sweep", "trial"), plan.digest)
    assert latest_whole(join(storage, "sweep", "trial")) == copy
    with local_copy(copy) as folder:
        position, state = load_checkpoint(folder, plan.build_network(), plan.digest)
    assert (position, state) == (Position(0, 4), {"step": 4})
