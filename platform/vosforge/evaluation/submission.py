"""Zips as evaluation servers take them: `<video>/<frame>.png`, palette masks, the same bytes for the same masks."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vosforge.data.image_files import encode_mask
from vosforge.errors import UserError
from vosforge.evaluation.parallel import run_videos
from vosforge.evaluation.predictions import Masks, read_masks
from vosforge.evaluation.protocols import ids
from vosforge.evaluation.truth import Truth
from vosforge.evaluation.youtube import Meta, video_objects
from vosforge.storage import write_aside, write_bytes

_LONG_AGO = (1980, 1, 1, 0, 0, 0)


@dataclass
class Gathering:
    """Writes the masks that a server wants of one video aside, checked; instances travel to other processes.

    Attributes:
        truth: names the videos, their frames and first masks.
        masks: the predictions.
        meta: `meta.json` of the truth; the frames that it lists are those wanted. Else every frame is.
        folder: where they are gathered, `<folder>/<video>/<frame>.png`.
    """

    truth: Truth
    masks: Masks
    meta: Meta | None
    folder: Path

    def __call__(self, i: int) -> tuple[list[str], str]:
        """The names written for the i-th video, and why there are none; empty when there are."""
        try:
            return self._gather(i), ""
        except UserError as error:
            return [], str(error)

    def _gather(self, i: int) -> list[str]:
        truth = self.truth.annotated(i)
        entries = video_objects(self.meta or {}, truth.name)
        listed = {frame for entry in entries.values() for frame in entry.get("frames", ())}
        frames = sorted(listed) or list(truth.every_frame)
        # Void, 255 in the truth, is nothing that a prediction may hold.
        known = set(ids(truth.masks)) - {255} | {int(k) for k in entries}
        masks = read_masks(self.masks, truth.name, frames, truth.masks.shape[1:], known)
        names = [str(PurePosixPath(truth.name, f"{frame}.png")) for frame in frames]
        for name, mask in zip(names, masks, strict=True):
            write_bytes(self.folder / name, encode_mask(mask))
        return names


def write_submission(
    path: str | Path,
    gathering: Gathering,
    top: str = "",
    workers: int | None = None,
    on_video: Callable[[int], None] = lambda done: None,
) -> int:
    """Write a zip for a server, aside and into place. The same masks give the same bytes.

    Args:
        path: of the zip, local.
        gathering: what goes in; every video must.
        top: a folder around all videos, as YouTube-VOS and MOSE want `Annotations`; empty for none, as DAVIS wants.
        workers: as in `run_videos`.
        on_video: hears how many videos are gathered.

    Returns:
        How many masks it holds.

    Raises:
        UserError: naming what is missing or wrong; a zip with less than all is never written.
    """
    found: dict[int, tuple[list[str], str]] = {}
    for i, answer in run_videos(len(gathering.truth), gathering, workers):
        found[i] = answer
        on_video(len(found))
    bad = [reason for _, (_, reason) in sorted(found.items()) if reason]
    if bad:
        more = f" (and {len(bad) - 1} more videos)" if len(bad) > 1 else ""
        raise UserError(f"{path}: not written, the submission is not complete: {bad[0]}{more}")
    names = sorted(name for written, _ in found.values() for name in written)
    with write_aside(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(f"{top}/{name}" if top else name, _LONG_AGO)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, (gathering.folder / name).read_bytes())
    return len(names)
