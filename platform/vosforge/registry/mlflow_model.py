"""A vosforge model as MLflow loads it: code travels as this file, weights as safetensors."""

from __future__ import annotations

import base64
from typing import Any

import mlflow
import pandas as pd

from vosforge.data.image_files import decode_frame, decode_mask, encode_mask
from vosforge.errors import UserError
from vosforge.propagation import Model
from vosforge.propagation.segmenter import segment_frame


class MlflowModel(mlflow.pyfunc.PythonModel):
    """Segments a clip given as a table, one row a frame.

    Columns: `frame`, a base64 JPEG or PNG; `mask`, a base64 palette PNG of ids where objects are given, else empty.
    The answer has one column `mask`, a base64 palette PNG of ids for every frame.
    """

    def load_context(self, context: Any) -> None:
        """Load the members' weights from the artefacts."""
        self.model = Model.load(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Segment the clip.

        Raises:
            UserError: naming the row whose image does not decode or fit.
        """
        if not str(model_input["mask"].iloc[0]):
            raise UserError("row 0: the first frame needs a mask of the objects to follow")
        segmenter = self.model.start()
        answers = []
        for row, (frame, mask) in enumerate(zip(model_input["frame"], model_input["mask"], strict=True)):
            image = decode_frame(base64.b64decode(frame), f"row {row}, frame")
            given = decode_mask(base64.b64decode(mask), f"row {row}, mask") if mask else None
            labels = segment_frame(segmenter, image, given, self.model.short_side)
            answers.append(base64.b64encode(encode_mask(labels)).decode())
        return pd.DataFrame({"mask": answers})


mlflow.models.set_model(MlflowModel())
