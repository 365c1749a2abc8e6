from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vosforge.clip import Clip

ROOT = Path(__file__).resolve().parent.parent.parent


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "datasets" / "check.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def shards(tmp_path, build_shards):
    masks = np.zeros((4, 32, 48), np.uint8)
    masks[:, 4:20, 6:30] = 1
    masks[2:, 22:30, 6:30] = 2
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), dtype=np.uint8)
    return build_shards(tmp_path / "set", [Clip("a", frames, masks), Clip("b", frames[:2], masks[:2])])


def test_shards_are_counted_and_verified(shards, tmp_path):
    done = check(shards.uri, "--verify", "--sheet", tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    assert "2 videos, 6 frames, 3 objects" in done.stdout
    assert "objects a frame: 1 (4), 2 (2)" in done.stdout
    assert "licences: not stated (2)" in done.stdout
    assert "every hash agrees, every row decodes, and the index tells what the masks show" in done.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_changed_file_and_changed_index_are_named(shards):
    folder = Path(shards.uri)
    shutil.copytree(folder, folder.with_name("other"))
    part = next(folder.glob("part-*"))
    data = bytearray(part.read_bytes())
    data[300] ^= 255
    part.write_bytes(data)
    done = check(folder, "--verify")
    assert done.returncode == 2
    assert f"{part}: expected sha256" in done.stderr
    other = folder.with_name("other") / "videos.parquet"
    table = pq.read_table(other)
    areas = pa.array([[7] * len(row) for row in table["areas"].to_pylist()], table.schema.field("areas").type)
    pq.write_table(table.set_column(table.schema.get_field_index("areas"), "areas", areas), other)
    done = check(other.parent, "--verify")
    assert done.returncode == 2
    assert "videos.parquet: expected sha256" in done.stderr
