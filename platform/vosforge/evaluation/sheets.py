"""Pictures of where methods fail: their worst frames beside the truth, and methods side by side over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vosforge import pictures
from vosforge.evaluation.predictions import Masks
from vosforge.evaluation.protocols import Scores
from vosforge.evaluation.truth import Truth

_WORST_WIDTH, _TIME_WIDTH, _MARGIN, _LINE, _LABEL = 340, 250, 10, 20, 130
_INK, _PALE, _ERROR = (20, 20, 20), (110, 110, 110), (255, 225, 0)
_TINT = 0.45
_TALLEST = 0.75
"""Height of the space for a picture, as a share of its width."""
_GROUND = 96
"""Grey of the frame that a truth without frames does not have."""
_LEAST_ERROR = 0.002
"""Share of the frame below which a patch of wrong pixels gets no box."""


@dataclass(frozen=True)
class Drawn:
    """What sheets are drawn from.

    Attributes:
        truth: the videos.
        masks: predictions by method, which are the sheet's columns or rows.
        scores: of each of these methods, video -> scores with `frame_ids`, and `quality` where it was assessed.
        merged: all objects count as one (protocol davis2016).
    """

    truth: Truth
    masks: Mapping[str, Masks]
    scores: Mapping[str, Mapping[str, Scores]]
    merged: bool = False


@dataclass
class _Row:
    """One row of a sheet: what stands before its pictures, and pictures with a line of text under each.

    The `first` row of several that belong together has a line above it.
    """

    label: list[str]
    cells: list[tuple[np.ndarray, str]] = field(default_factory=list)
    first: bool = False


def worst_frames(scores: Mapping[str, Scores], most: int) -> list[tuple[str, str]]:
    """Where a method does worst: each video's worst frame, and if these are too few, the next ones, well apart.

    Args:
        scores: video -> scores with `frame_ids`.
        most: how many.

    Returns:
        (video, frame id), worst first; a frame's worth is the mean J of its objects.
    """
    by_frame = _by_frame(scores)
    ranked = sorted((value, video, t) for video, frames in by_frame.items() for t, (_, value) in enumerate(frames))
    chosen: list[tuple[float, str, int]] = []
    for share in (1.0, 0.25, 0.1, 0.0):
        for place in ranked:
            _, video, t = place
            gap = share * len(by_frame[video])
            if len(chosen) < most and all(v != video or abs(other - t) > gap for _, v, other in chosen):
                chosen.append(place)
    return [(video, by_frame[video][t][0]) for _, video, t in sorted(chosen)]


def worst_sheet(drawn: Drawn, method: str, most: int = 8) -> np.ndarray:
    """The worst frames of a method, one a row: truth, then every method's mask with a box around its largest error.

    Args:
        drawn: what to draw.
        method: whose worst frames.
        most: rows.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    rows = []
    for video, frame in worst_frames(drawn.scores[method], most):
        truth, picture, predicted = _look(drawn, video, [frame])
        row = _Row([video, f"frame {frame}"], [(_tinted(picture[0], truth[0], _WORST_WIDTH), "truth")])
        for name, masks in predicted.items():
            seen = _boxed(_tinted(picture[0], masks[0], _WORST_WIDTH), truth[0], masks[0], drawn.merged)
            row.cells.append((seen, f"{name}: {_told(drawn.scores[name][video], frame)}"))
        rows.append(row)
    columns = 2 if len(drawn.masks) == 1 and len(rows) > 2 else 1
    return _draw(f"worst frames of {method} on {drawn.truth.name}", rows, _WORST_WIDTH, columns)


def time_sheet(drawn: Drawn, videos: Sequence[str], times: int = 5) -> np.ndarray:
    """Methods side by side over time (as QPM, figure 3): truth and each method a row, for every video.

    Args:
        drawn: what to draw.
        videos: which, in order; with frames that count.
        times: frames of each, evenly spaced over those that count for the first method.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    rows, first = [], next(iter(drawn.scores.values()))
    for video in videos:
        counted = [frame for frame, _ in _by_frame({video: first[video]})[video]]
        chosen = [counted[round(t)] for t in np.linspace(0, len(counted) - 1, min(times, len(counted)))]
        truth, frames, predicted = _look(drawn, video, chosen)
        row = _Row([video, "truth"], first=True)
        for frame_id, frame, mask in zip(chosen, frames, truth, strict=True):
            row.cells.append((_tinted(frame, mask, _TIME_WIDTH), f"frame {frame_id}"))
        rows.append(row)
        for name, masks in predicted.items():
            scores = drawn.scores[name][video]
            row = _Row([name, _mean_told(scores)])
            for frame_id, frame, wanted, mask in zip(chosen, frames, truth, masks, strict=True):
                seen = _boxed(_tinted(frame, mask, _TIME_WIDTH), wanted, mask, drawn.merged)
                row.cells.append((seen, _told(scores, frame_id)))
            rows.append(row)
    return _draw(f"methods over time on {drawn.truth.name}", rows, _TIME_WIDTH)


def _by_frame(scores: Mapping[str, Scores]) -> dict[str, list[tuple[str, float]]]:
    """Video -> (frame id, mean J of its objects), in order of time."""
    found: dict[str, list[tuple[str, float]]] = {}
    for video, objects in scores.items():
        values: dict[str, list[float]] = {}
        for measures in objects.values():
            for frame, value in zip(measures["frame_ids"], measures["J"]["frames"], strict=True):
                values.setdefault(frame, []).append(value)
        if values:
            found[video] = [(frame, sum(v) / len(v)) for frame, v in sorted(values.items())]
    return found


def _look(
    drawn: Drawn, video: str, frames: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Truth, pictures and every method's masks of some frames; a mask that was not needed and is not there is empty."""
    i = drawn.truth.names.index(video)
    annotated = drawn.truth.annotated(i)
    by_id = dict(zip(annotated.frame_ids, annotated.masks, strict=True))
    truth = [np.where(by_id[frame] == 255, 0, by_id[frame]).astype(np.uint8) for frame in frames]
    ground = np.full((*truth[0].shape, 3), _GROUND, np.uint8)
    seen = [ground if picture is None else picture for picture in drawn.truth.pictures(i, frames)]
    predicted = {}
    for name, masks in drawn.masks.items():
        there = set(masks.frames(video))
        predicted[name] = [masks.read(video, f) if f in there else np.zeros_like(truth[0]) for f in frames]
    return truth, seen, predicted


def _told(scores: Scores, frame: str) -> str:
    """J, F and quality of one frame, means over the objects that count in it."""
    at = [
        (measures, measures["frame_ids"].index(frame)) for measures in scores.values() if frame in measures["frame_ids"]
    ]
    if not at:
        return "not scored"
    j, f = (sum(measures[m]["frames"][t] for measures, t in at) / len(at) for m in ("J", "F"))
    quality = [q for measures, t in at if "quality" in measures and not isnan(q := measures["quality"][t])]
    assessed = f", quality {sum(quality) / len(quality):.2f}" if quality else ""
    return f"J {j:.2f}, F {f:.2f}{assessed}"


def _mean_told(scores: Scores) -> str:
    values = [s[m]["mean"] for s in scores.values() for m in ("J", "F") if not isnan(s["J"]["mean"])]
    return f"J&F {sum(values) / len(values):.2f}" if values else ""


def _tinted(frame: np.ndarray, mask: np.ndarray, width: int) -> np.ndarray:
    """The frame fitted into that width, with objects tinted and outlined in the palette's colours, brightened."""
    scale = min(width / frame.shape[1], _TALLEST * width / frame.shape[0])
    size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    shrinks = scale < 1
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    labels = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    palette = pictures.davis_palette().astype(np.float32)
    palette *= 255 / np.maximum(palette.max(axis=1, keepdims=True), 1)
    tinted = np.where(labels[..., None] > 0, small * (1 - _TINT) + palette[labels] * _TINT, small)
    # The outline lies outside the object, so that even one of a few pixels keeps its own.
    grown = cv2.dilate(labels, np.ones((3, 3), np.uint8))
    outline = (grown > 0) & (labels == 0)
    tinted[outline] = palette[grown[outline]]
    return tinted.astype(np.uint8)


def _boxed(picture: np.ndarray, truth: np.ndarray, mask: np.ndarray, merged: bool) -> np.ndarray:
    """A picture, at the sheet's size, with a box around the largest connected patch of wrong pixels."""
    wrong = ((truth > 0) != (mask > 0) if merged else truth != mask).astype(np.uint8)
    # Contours are a pixel or two off everywhere; that is no error to point at.
    wrong = cv2.morphologyEx(wrong, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    _, _, patches, _ = cv2.connectedComponentsWithStats(wrong)
    if len(patches) < 2:
        return picture
    x, y, width, height, area = patches[1 + int(patches[1:, cv2.CC_STAT_AREA].argmax())]
    if area < _LEAST_ERROR * wrong.size:
        return picture
    scale = picture.shape[1] / wrong.shape[1]
    corners = [(round(a * scale), round(b * scale)) for a, b in ((x, y), (x + width - 1, y + height - 1))]
    boxed = cv2.rectangle(picture.copy(), *corners, (0, 0, 0), 3)
    return cv2.rectangle(boxed, *corners, _ERROR, 1)


def _draw(title: str, rows: Sequence[_Row], width: int, columns: int = 1) -> np.ndarray:
    """Rows under each other, or in several columns, under a title."""
    blocks = [_row_picture(row, width) for row in rows]
    per_column = -(-len(blocks) // columns)
    stacks = [_stack(blocks[i : i + per_column]) for i in range(0, len(blocks), per_column)]
    height = max((stack.shape[0] for stack in stacks), default=0)
    padded = [np.pad(s, ((0, height - s.shape[0]), (0, _MARGIN), (0, 0)), constant_values=255) for s in stacks]
    body = np.concatenate(padded, axis=1) if padded else np.full((_LINE, 8 * len(title), 3), 255, np.uint8)
    head = Image.new("RGB", (body.shape[1], _MARGIN + 26), "white")
    ImageDraw.Draw(head).text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(17))
    return np.concatenate([np.asarray(head), body])


def _stack(blocks: Sequence[np.ndarray]) -> np.ndarray:
    width = max(block.shape[1] for block in blocks)
    return np.concatenate([np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0)), constant_values=255) for b in blocks])


def _row_picture(row: _Row, width: int) -> np.ndarray:
    height = max(picture.shape[0] for picture, _ in row.cells)
    sheet = Image.new("RGB", (_LABEL + len(row.cells) * (width + _MARGIN), height + _LINE + 2 * _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    if row.first:
        draw.line((_MARGIN, 0, sheet.width - _MARGIN, 0), (190, 190, 190))
    large, small = ImageFont.load_default(14), ImageFont.load_default(12)
    for n, line in enumerate(row.label):
        font, ink = (small, _PALE) if n else (large, _INK)
        draw.text((_MARGIN, _MARGIN + n * _LINE), _fitted(line, font, _LABEL - 2 * _MARGIN), ink, font)
    for n, (picture, text) in enumerate(row.cells):
        left = _LABEL + n * (width + _MARGIN)
        sheet.paste(Image.fromarray(picture), (left, _MARGIN))
        draw.text((left, _MARGIN + picture.shape[0] + 2), _fitted(text, small, width), _INK, small)
    return np.asarray(sheet)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, its beginning cut off where it is too long: names of files tell most at their end."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(f"..{text}") > width:
        text = text[1:]
    return f"..{text}"
