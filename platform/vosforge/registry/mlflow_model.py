"""A vosforge model as MLflow loads it: code travels as this file and its package, weights as safetensors."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

from vosforge.data.image_files import decode_frame, decode_mask, encode_mask
from vosforge.data.video_uris import opened
from vosforge.errors import UserError
from vosforge.propagation import Model
from vosforge.propagation.segmenter import segment_frame
from vosforge.settings import Settings

VIDEOS, DEVICE = "VOSFORGE_VIDEOS", "VOSFORGE_DEVICE"
Frames = Iterator[tuple[str, np.ndarray]]


class MlflowModel(mlflow.pyfunc.PythonModel):
    """Segments one clip, given as a table in one of two ways.

    - One row a frame: `frame`, a JPEG or PNG; `mask` where objects enter.
    - A video by its URI: `video`, in the first row; `mask` in each row, and `position`, the frame that it belongs to,
      from 0; a single row may leave it out for 0. `VOSFORGE_VIDEOS` in the environment of the process lists, separated
      by spaces, the local folders and `s3://` prefixes that videos may lie in; where it is not set none is opened.

    Pictures are bytes or their base64; a mask is a palette PNG of ids. Parameters `memory_every`, `budget` and
    `short_side` are those of `Settings` and `Model`; what is left out is as the model says. `VOSFORGE_DEVICE` is where
    networks run, the CPU when it is not set.

    The answer has one row a frame: `frame`, its number or, of a folder, its name; `mask`, a base64 palette PNG of ids
    at the frame's size; `quality`, what the network thinks of each object's mask, by id, empty for networks that
    assess none.
    """

    def load_context(self, context: Any) -> None:
        """Load the members' weights from the artefacts."""
        self.model = Model.load(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Segment the clip.

        Raises:
            MlflowException: naming the row, image, video or parameter that cannot be used; over HTTP status 400.
        """
        try:
            return self._segment(model_input, params or {})
        except UserError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error

    def _segment(self, table: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        settings = Settings(memory_every=params.get("memory_every"), budget=params.get("budget"))
        side = params.get("short_side") or self.model.short_side
        segmenter = self.model.start(os.environ.get(DEVICE) or "cpu", settings)
        answers = []
        with _frames(table) as (frames, masks):
            for position, (name, frame) in enumerate(frames):
                labels = segment_frame(segmenter, frame, masks.pop(position, None), side)
                quality = {str(i): round(value, 4) for i, value in segmenter.quality.items()}
                mask = base64.b64encode(encode_mask(labels)).decode()
                answers.append({"frame": name, "mask": mask, "quality": quality})
        if masks:
            raise UserError(
                f"position {min(masks)}: the video has {len(answers)} frames, the last at {len(answers) - 1}"
            )
        return pd.DataFrame(answers)


@contextmanager
def _frames(table: pd.DataFrame) -> Iterator[tuple[Frames, dict[int, np.ndarray]]]:
    """A table's frames with their names, and the masks by position."""
    rows = [{key: value for key, value in row.items() if not _is_empty(value)} for row in table.to_dict("records")]
    videos = {row["video"] for row in rows if "video" in row}
    if not videos:
        masks = {n: _mask(row["mask"], n) for n, row in enumerate(rows) if "mask" in row}
        _check_first(masks)
        yield _pictures(rows), masks
        return
    if len(videos) > 1 or any("frame" in row for row in rows):
        raise UserError("a request is one clip: expected frames, one a row, or one video, found more")
    masks = {}
    for n, row in enumerate(rows):
        position = int(row.get("position", 0))
        if "mask" not in row or position < 0 or position in masks:
            found = "none" if "mask" not in row else f"another at position {position}"
            raise UserError(f"row {n}: expected a mask, of a frame that no other row has, found {found}")
        masks[position] = _mask(row["mask"], n)
    _check_first(masks)
    with opened(videos.pop(), os.environ.get(VIDEOS, "").split()) as video:
        yield iter(video), masks


def _check_first(masks: dict[int, np.ndarray]) -> None:
    if not any(mask.any() for mask in masks.values()):
        raise UserError("mask: expected one with an object's id in at least one row, found none")


def _pictures(rows: list[dict[str, Any]]) -> Frames:
    for n, row in enumerate(rows):
        if "frame" not in row:
            raise UserError(f"row {n}, frame: expected a JPEG or PNG, found none")
        yield f"{n:05d}", decode_frame(_bytes(row["frame"], f"row {n}, frame"), f"row {n}, frame")


def _mask(value: str | bytes, row: int) -> np.ndarray:
    return decode_mask(_bytes(value, f"row {row}, mask"), f"row {row}, mask")


def _bytes(value: str | bytes, name: str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        # Many programs break lines of base64.
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: expected base64, found something else ({error})") from error


def _is_empty(value: Any) -> bool:
    """Whether a cell says nothing: tables have None, NaN or empty text there."""
    return value is None or value == "" or value == b"" or value != value


mlflow.models.set_model(MlflowModel())
