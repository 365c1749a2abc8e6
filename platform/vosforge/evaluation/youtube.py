"""YouTube-VOS without its server: `meta.json`, seen and unseen categories, G.

The server's truth is private and its code unpublished. What is known (Xu et al., "YouTube-VOS: A Large-Scale Video
Object Segmentation Benchmark", 2018, and the teams' papers): J and F are those of DAVIS; G is the mean of J and F over
objects of seen and of unseen categories. Whether the frame in which an object is given counts, and whether objects are
averaged by video first, could not be confirmed: here it does not, and they are not. So numbers from here carry the
label "offline protocol".
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from vosforge.clip import MAX_OBJECTS
from vosforge.errors import UserError
from vosforge.evaluation.protocols import Scores

META_FILE = "meta.json"
LABEL = "offline protocol"
RATES = (6, 30)
"""Frames a second that a method may have been given: every fifth, which the annotations know, or all."""

Meta = Mapping[str, Any]


def read_meta(path: str | Path) -> Meta:
    """The `videos` of a YouTube-VOS `meta.json`: video -> `{"objects": {id: {"category", "frames"}}}`.

    Raises:
        UserError: when the file is missing or no such JSON, naming the field.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        videos = _mapping(content, "it").get("videos")
        for name, video in _mapping(videos, "videos").items():
            objects = _mapping(video, f"videos.{name}").get("objects")
            for k, entry in _mapping(objects, f"videos.{name}.objects").items():
                _check_entry(k, entry, f"videos.{name}.objects.{k}")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(
            f'{path}: expected {{"videos": {{name: {{"objects": {{id: {{"category", "frames"}}}}}}}}}}, '
            f"found something else ({error})"
        ) from error
    return videos


def _mapping(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{field} is {_kind(value)}")
    return value


def _check_entry(k: str, entry: Any, field: str) -> None:
    """Refuse the entry of an object whose id, category or frames are of another form."""
    if not k.isdecimal() or not 1 <= int(k) <= MAX_OBJECTS:
        raise ValueError(f"{field} is no id of 1..{MAX_OBJECTS}")
    category, frames = _mapping(entry, field).get("category"), entry.get("frames", [])
    if not isinstance(category, str | None):
        raise ValueError(f"{field}.category is {_kind(category)}, not text")
    if not isinstance(frames, list):
        raise ValueError(f"{field}.frames is {_kind(frames)}, not a list of names")
    strange = next((frame for frame in frames if not isinstance(frame, str)), None)
    if strange is not None or None in frames:
        raise ValueError(f"{field}.frames holds {_kind(strange)}, not names as text")


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def categories(meta: Meta) -> set[str]:
    """Every category that the objects of a `meta.json` have: of the training set's, the seen ones."""
    return {entry["category"] for v in meta.values() for entry in v["objects"].values() if entry.get("category")}


def listed_frames(
    meta: Meta, video: str, frame_ids: Sequence[str], file: str | Path = META_FILE
) -> dict[int, list[int]]:
    """Object id -> positions in `frame_ids` of the frames that count for it, the one in which it is given first.

    Listed frames that are not among `frame_ids` (their truth is not at hand) are left out. An object without a
    list has all frames.

    Args:
        meta: as `read_meta` gives it.
        video: its name.
        frame_ids: names of the frames whose truth is at hand.
        file: that `meta` was read from, for the error.

    Raises:
        UserError: when the video is not in `meta`.
    """
    if video not in meta:
        raise UserError(f"{file}: no video {video}; is it the file of this data set?")
    position = {frame: t for t, frame in enumerate(frame_ids)}
    return {
        int(k): sorted(position[frame] for frame in entry.get("frames", frame_ids) if frame in position)
        for k, entry in video_objects(meta, video).items()
    }


def video_objects(meta: Meta, video: str) -> dict[str, dict[str, Any]]:
    """Id, as text, -> entry of one video's objects; empty when the video is not in `meta`."""
    return meta.get(video, {"objects": {}})["objects"]


def frame_rate(frame_ids: Iterable[str]) -> int | None:
    """30 where frames are numbered one by one, 6 where every fifth; None where neither can be told."""
    numbers = [int(frame) for frame in frame_ids if frame.isdecimal()]
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    return {1: 30, 5: 6}.get(min(steps, default=0))


def summarise_youtube(scores: Mapping[str, Scores], meta: Meta, seen: set[str] | None) -> dict[str, Any]:
    """G and the means it is made of; every object weighs the same within its group.

    Args:
        scores: `{video: answer of score}`; objects without a counted frame have no part.
        meta: the data set's, or empty.
        seen: categories of the training set, or None when they are not known.

    Returns:
        `{"G", "J seen", "J unseen", "F seen", "F unseen", "objects seen", "objects unseen", "grouping"}`. Where no
        object can be told to be seen or unseen, the four are NaN and G is the mean of J and F over all objects; where
        only one group has objects, G is the mean of its J and F. Objects without a category, beside others that
        have one, are left out. `grouping` says in words what was done.
    """
    groups: dict[str, list[Any]] = {"seen": [], "unseen": [], "unknown": []}
    for video, objects in scores.items():
        entries = video_objects(meta, video)
        for k, measures in objects.items():
            if not isnan(measures["J"]["mean"]):
                category = entries.get(str(k), {}).get("category")
                known = seen is not None and category is not None
                groups[("seen" if category in seen else "unseen") if known else "unknown"].append(measures)
    found: dict[str, Any] = {}
    for group in ("seen", "unseen"):
        for measure in ("J", "F"):
            found[f"{measure} {group}"] = _mean([m[measure]["mean"] for m in groups[group]])
        found[f"objects {group}"] = len(groups[group])
    told = [found[f"{m} {g}"] for g in ("seen", "unseen") if groups[g] for m in ("J", "F")]
    every = [m[measure]["mean"] for m in groups["unknown"] for measure in ("J", "F")]
    return {"G": _mean(told or every), **found, "grouping": _grouping(groups, seen)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def _grouping(groups: Mapping[str, list[Any]], seen: set[str] | None) -> str:
    if not groups["seen"] and not groups["unseen"]:
        why = "the seen categories are not known" if seen is None else "no object has a category"
        return f"all objects in one group, since {why}; G is the mean of J and F"
    left = f"; {len(groups['unknown'])} objects without a category are left out" if groups["unknown"] else ""
    if not groups["seen"] or not groups["unseen"]:
        return f"only {'seen' if groups['seen'] else 'unseen'} categories; G is the mean of their J and F{left}"
    return f"G is the mean of J and F of seen and unseen categories{left}"
