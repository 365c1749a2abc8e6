"""Previews: what the network makes of a few probe clips, as a small picture. Kept free of torch."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vosforge import pictures

PREVIEW_CLIPS = 4
_MOST_OF_A_STAGE = 50
_HEIGHT = 128


def is_due(step: int, steps: int, every: int) -> bool:
    """Whether the checkpoint at a step gets a preview: all do, but no more than some fifty of a stage.

    Args:
        step: of the stage that is done, 1 to `steps`.
        steps: of the stage.
        every: steps between checkpoints.
    """
    spacing = max(every, -(-steps // _MOST_OF_A_STAGE))
    return step in (steps, min(step, every)) or step // spacing > max(step - every, 0) // spacing


def preview(frames: np.ndarray, truth: np.ndarray, predicted: np.ndarray, jaccards: list[float] | None = None) -> bytes:
    """Frame, truth and prediction beside each other, one clip a row, as a PNG of at most some hundred kilobytes.

    Args:
        frames: `(B, H, W, 3)` uint8 RGB, the clips' last frames.
        truth: `(B, H, W)` uint8 ids.
        predicted: likewise.
        jaccards: J of each clip, for its caption.
    """
    rows = []
    for b, (frame, true, found) in enumerate(zip(frames, truth, predicted, strict=True)):
        told = f", J {jaccards[b]:.2f}" if jaccards else ""
        panels = [frame, pictures.overlay(frame, true), pictures.overlay(frame, found)]
        rows.append((f"frame | truth | prediction{told}", panels))
    stream = io.BytesIO()
    Image.fromarray(pictures.contact_sheet(rows, _HEIGHT)).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
