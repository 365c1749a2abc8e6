"""A model folder as an MLflow model: signature, example, pinned requirements, and code that travels with it."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import shutil
import tempfile
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Map

import vosforge
from vosforge.data.image_files import encode_frame, encode_mask

_OPTIONAL = {"required": False}
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "frame", **_OPTIONAL),
            ColSpec(DataType.string, "mask", **_OPTIONAL),
            ColSpec(DataType.string, "video", **_OPTIONAL),
            ColSpec(DataType.long, "position", **_OPTIONAL),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "frame"),
            ColSpec(DataType.string, "mask"),
            ColSpec(Map(DataType.double), "quality"),
        ]
    ),
    params=ParamSchema(
        [
            ParamSpec("memory_every", DataType.long, None),
            ParamSpec("budget", DataType.string, None),
            ParamSpec("short_side", DataType.long, None),
        ]
    ),
)
"""What `MlflowModel` takes and gives."""
# What it imports; training, tracking and rendering stay out of a deployed model. boto3 is for videos on S3.
_REQUIREMENTS = (
    "boto3", "mlflow", "numpy", "opencv-python", "pandas", "pillow", "pyarrow", "safetensors", "timm", "torch"
)  # fmt: skip
_NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "weights")


def log(model: Path, name: str) -> ModelInfo:
    """Log a network's file, or a folder that `save_model` wrote, to the active MLflow run."""
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
        package = Path(vosforge.__file__).parent
        # vosforge is on no package index, so its source goes along; the network that comes with it does not.
        code = shutil.copytree(package, Path(folder) / package.name, ignore=_NOT_SHIPPED)
        return mlflow.pyfunc.log_model(
            name=name,
            # MLflow writes this path down: the copy's says nothing about who registers.
            python_model=str(code / "registry" / "mlflow_model.py"),
            artifacts={"model": str(model.absolute())},
            code_paths=[str(code)],
            pip_requirements=requirements(),
            signature=SIGNATURE,
            input_example=example(),
        )


def requirements() -> list[str]:
    """Third-party packages at the versions that run here; vosforge itself travels as code."""
    found = []
    for package in _REQUIREMENTS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package}=={importlib.metadata.version(package).split('+')[0]}")
    return found


def example() -> dict[str, list[str]]:
    """Two small frames with one object, as a table's columns."""
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    encoded = base64.b64encode(encode_frame(frame)).decode()
    return {"frame": [encoded, encoded], "mask": [base64.b64encode(encode_mask(mask)).decode(), ""]}
