"""Models as they are deployed: by MLflow's own commands, from a real tracking server."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import mlflow
import numpy as np
import pytest
from faulty_s3 import s3_server
from stores import Server, free_port, postgresql

from vosforge.data.image_files import decode_mask, encode_frame, encode_mask
from vosforge.propagation.model import BUNDLED, Model
from vosforge.propagation.segmenter import segment_frame
from vosforge.registry import Candidacy, Evaluation, load_model, promote, register, roll_back

pytestmark = pytest.mark.cluster
fresh = pytest.mark.skipif(
    "VOSFORGE_VIRTUALENV" not in os.environ, reason="it takes minutes and 5 GB; set VOSFORGE_VIRTUALENV=1 to run it"
)
# A full torch is some gigabytes.
_INSTALLING = 1800


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """An embedded store whose champion "emn" is the network that comes along."""
    folder = tmp_path_factory.mktemp("deployed")
    store = f"sqlite:///{folder / 'mlflow.db'}"
    register(BUNDLED, "emn", store, folder, "champion")
    return store


def clip() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    frames, mask = np.full((3, 64, 80, 3), 60, np.uint8), np.zeros((64, 80), np.uint8)
    for t in range(3):
        frames[t, 10:40, 10 + 6 * t : 40 + 6 * t] = rng.integers(150, 250, 3)
    mask[10:40, 10:40] = 9
    return frames, mask


def request(**params: object) -> bytes:
    frames, mask = clip()
    rows = [{"frame": base64.b64encode(encode_frame(frame)).decode(), "mask": ""} for frame in frames]
    rows[0]["mask"] = base64.b64encode(encode_mask(mask)).decode()
    return json.dumps({"dataframe_records": rows, "params": params}).encode()


def expected() -> np.ndarray:
    from vosforge.data.image_files import decode_frame

    frames, mask = clip()
    model = Model.load(BUNDLED)
    segmenter = model.start()
    seen = [decode_frame(encode_frame(frame), "frame") for frame in frames]
    return np.stack(
        [segment_frame(segmenter, f, mask if t == 0 else None, model.short_side) for t, f in enumerate(seen)]
    )


def masks_in(answer: str) -> np.ndarray:
    rows = json.loads(answer)["predictions"]
    return np.stack([decode_mask(base64.b64decode(row["mask"]), "answer") for row in rows])


def environment(store: str, **more: str) -> dict[str, str]:
    """Of a user that has MLflow and knows the store, and no checkout of vosforge."""
    own = {"MLFLOW_TRACKING_URI": store, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own


@pytest.fixture
def address(store, tmp_path) -> Iterator[str]:
    """Where `mlflow models serve` answers."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/emn@champion", "--port", str(port)]
    log = (tmp_path / "serve.log").open("wb")
    serving = subprocess.Popen(
        [*command, "--env-manager", "local"], env=environment(store), stdout=log, stderr=log, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            assert serving.poll() is None, (tmp_path / "serve.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "serve.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                    break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(serving.pid, signal.SIGKILL)
        serving.wait()
        log.close()


def post(address: str, body: bytes) -> str:
    asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return answer.read().decode()


def test_champion_answers_over_http_and_says_what_is_wrong(address):
    assert np.array_equal(masks_in(post(address, request())), expected())
    assert masks_in(post(address, request(memory_every=1, budget="2"))).shape == (3, 64, 80)
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address, request(budget="plenty"))
    assert refused.value.code == 400
    assert "budget must be a number of frames" in refused.value.read().decode()


@pytest.mark.parametrize("manager", ["local", pytest.param("virtualenv", marks=fresh)])
@pytest.mark.timeout(_INSTALLING + 60)
def test_predict_answers_in_the_environment_at_hand_and_in_a_fresh_one(store, tmp_path, manager):
    (tmp_path / "clip.json").write_bytes(request())
    pyenv = tmp_path / "bin" / "pyenv"
    pyenv.parent.mkdir()
    # pyenv would compile a Python of this very version first; the one that runs here takes its place.
    pyenv.write_text(
        f"""#!/bin/sh
version=$(echo "$@" | grep -o '[0-9.]*$')
mkdir -p "$PYENV_ROOT/versions/$version"
ln -sfn "{sys.base_prefix}/bin" "$PYENV_ROOT/versions/$version/bin"
"""
    )
    pyenv.chmod(0o755)
    # The environment goes with the test's folder.
    own = environment(store, TMPDIR=str(tmp_path), PIP_NO_CACHE_DIR="1")
    own["PATH"] = f"{pyenv.parent}:{own['PATH']}"
    files = ["-i", tmp_path / "clip.json", "-o", tmp_path / "masks.json", "-t", "json"]
    command = [sys.executable, "-m", "mlflow", "models", "predict", *files]
    done = subprocess.run(
        [*command, "-m", "models:/emn@champion", "--env-manager", manager],
        env=own,
        capture_output=True,
        text=True,
        timeout=_INSTALLING,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert np.array_equal(masks_in((tmp_path / "masks.json").read_text()), expected())


def evaluation(gain: float) -> Evaluation:
    values = [0.5, 0.6, 0.7, 0.4, 0.55, 0.65]
    scores = {f"v{i}": {1: {measure: {"mean": v + gain} for measure in "JF"}} for i, v in enumerate(values)}
    return Evaluation("held-out", "mine", "davis2017", scores)


def test_server_on_postgresql_and_s3_keeps_versions_gate_and_history(tmp_path, monkeypatch):
    pytest.importorskip("psycopg2")
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with postgresql() as database, s3_server() as endpoint:
        for name, value in {**keys, "AWS_ENDPOINT_URL": endpoint, "MLFLOW_S3_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="models")
        server = Server(tmp_path, database, "s3://models/mlflow")
        server.start()
        try:
            # The server alone knows the bucket: clients need no keys.
            for name in [*keys, "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"]:
                monkeypatch.delenv(name)
            check(server, tmp_path)
        finally:
            server.kill()
        for name, value in {**keys, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        stored = [entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket="models")["Contents"]]
        assert sum(key.endswith("member-0.safetensors") for key in stored) == 2
        assert sum(key.endswith("held-out.json") for key in stored) == 2
    assert not list(tmp_path.glob("*.db"))


def check(server: Server, folder: Path) -> None:
    """Register, promote, restart the server, load, roll back."""
    first = register(BUNDLED, "emn", server.uri, folder, "champion", candidacy=Candidacy([evaluation(0.0)]))
    second = register(BUNDLED, "emn", server.uri, folder, candidacy=Candidacy([evaluation(0.1)]))
    assert (first, second) == ("models:/emn/1", "models:/emn/2")
    decision = promote("models:/emn@challenger", server.uri, "champion", Candidacy())
    assert decision.difference.mean == pytest.approx(0.1)
    server.kill()
    server.start()
    client = mlflow.MlflowClient(server.uri)
    assert client.get_registered_model("emn").tags["vosforge.champions"] == "1 2"
    assert len(load_model("models:/emn@champion", server.uri).members) == 1
    assert roll_back("emn", server.uri) == ("2", "1")
    assert client.get_model_version_by_alias("emn", "champion").version == "1"
