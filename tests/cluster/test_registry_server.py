"""A registry whose database is PostgreSQL and whose artefacts lie on S3, used by the commands of docs/deployment.md."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pgserver
import pytest
from faulty_s3 import s3_server
from mlflow_server import Scoring, Server

from vosforge import networks
from vosforge.data.image_files import decode_mask, encode_frame, encode_mask
from vosforge.propagation.model import model_digest
from vosforge.registry import load_model
from vosforge.tracking import connect

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
REGISTER = Path(__file__).resolve().parent.parent.parent / "jobs" / "register.py"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with s3_server() as address, tempfile.TemporaryDirectory() as folder:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address, "OMP_NUM_THREADS": "1"}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="models")
        # PostgreSQL does not run as root; the user that it runs as has to reach its folder.
        Path(folder).chmod(0o755)
        database = pgserver.get_server(Path(folder) / "postgres", cleanup_mode="delete")
        running = Server(tmp_path, database.get_uri(), "s3://models/artefacts")
        running.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", running.uri)
        yield running
        running.kill()
        database.cleanup()


def register(*flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REGISTER), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def register_candidate(folder: Path, name: str, mean: float) -> subprocess.CompletedProcess[str]:
    """Register a network whose report says that its J and F are about a mean on six videos, and ask to be champion."""
    path, report = folder / f"{name}.safetensors", folder / f"{name}.json"
    networks.save(networks.build("stm", "nano"), path)
    measured = [{measure: {"mean": mean + i / 100} for measure in "JF"} for i in range(6)]
    scores = {f"v{i}": {"1": found} for i, found in enumerate(measured)}
    identity = {name: {"uri": str(path), "sha256": model_digest(path)}}
    content = {"protocol": "davis2017", "models": identity, "sets": {"held-out": {name: {"scores": scores}}}}
    report.write_text(json.dumps(content))
    return register("--model", path, "--name", "vos", "--alias", "champion", "--report", report)


def request() -> tuple[bytes, np.ndarray]:
    """Two frames with one object, as JSON, and the first one's mask."""
    mask = np.zeros((40, 48), np.uint8)
    mask[4:20, 6:30] = 3
    frames = np.random.default_rng(3).integers(0, 256, (2, 40, 48, 3), dtype=np.uint8)
    rows = [{"frame": base64.b64encode(encode_frame(frame)).decode(), "mask": ""} for frame in frames]
    rows[0]["mask"] = base64.b64encode(encode_mask(mask)).decode()
    return json.dumps({"dataframe_records": rows}).encode(), mask


def test_versions_are_promoted_served_and_rolled_back_on_postgresql_and_s3(server, tmp_path):
    assert register_candidate(tmp_path, "good", 0.5).returncode == 0
    refused = register_candidate(tmp_path, "worse", 0.4)
    assert refused.returncode == 2
    assert "error: models:/vos/2 is registered, but version 1 stays champion" in refused.stderr
    assert register_candidate(tmp_path, "better", 0.6).returncode == 0
    aliases = connect(server.uri).get_registered_model("vos").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "3", "challenger": "3"}
    keys = [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="models")["Contents"]]
    assert any(key.endswith(".safetensors") for key in keys)
    assert not any(key.endswith(".pkl") for key in keys)

    content, mask = request()
    scoring = Scoring("models:/vos@champion")
    scoring.start()
    try:
        asked = urllib.request.Request(
            f"{scoring.uri}/invocations", content, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=120) as answer:
            rows = json.load(answer)["predictions"]
    finally:
        scoring.kill()
    assert [row["frame"] for row in rows] == ["00000", "00001"]
    assert np.array_equal(decode_mask(base64.b64decode(rows[0]["mask"]), "answer"), mask)

    done = register("--rollback", "vos", "--reason", "flickers")
    assert (done.returncode, done.stdout) == (0, "models:/vos@champion is version 1 again, not 3\n"), done.stderr
    assert len(load_model("models:/vos@champion", server.uri).members) == 1
