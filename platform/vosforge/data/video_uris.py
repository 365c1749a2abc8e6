"""Videos that somebody else names: only those in folders and buckets that were opened for it."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vosforge.data.video_files import FrameFolder, VideoFile, open_video
from vosforge.errors import UserError
from vosforge.reading import reading
from vosforge.storage import download_file

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@contextlib.contextmanager
def opened(uri: str, roots: Sequence[str]) -> Iterator[FrameFolder | VideoFile]:
    """Open a video that a client names; one of S3 is downloaded for as long as this lasts.

    Links are followed before a path is judged, so that none leads out of a folder. No other scheme is ever opened.

    Args:
        uri: path of a video file or a folder of frames, or `s3://` URI of a video file.
        roots: local folders and `s3://bucket/prefix` URIs that clients may name videos in; `s3://` opens all buckets
            that this process may read.

    Raises:
        UserError: when it lies in none of them, is missing, or does not decode.
    """
    if uri.startswith("s3://"):
        _check_bucket(uri, roots)
        with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
            try:
                yield open_video(download_file(uri, Path(folder) / Path(uri).name))
            except FileNotFoundError as error:
                raise UserError(f"video {uri}: no such file") from error
        return
    if _SCHEME.match(uri) and not uri.startswith("file://"):
        raise UserError(f"video {uri}: expected a local path or s3://bucket/key; nothing is fetched from elsewhere")
    path = Path(uri.removeprefix("file://")).resolve()
    folders = [Path(root).resolve() for root in roots if not root.startswith("s3://")]
    if not any(path.is_relative_to(folder) for folder in folders):
        raise _closed(uri, roots)
    with reading(path):
        yield open_video(path)


def _check_bucket(uri: str, roots: Sequence[str]) -> None:
    prefixes = [root if root == "s3://" else root.rstrip("/") + "/" for root in roots if root.startswith("s3://")]
    if ".." in uri.split("/") or not any(uri.startswith(prefix) for prefix in prefixes):
        raise _closed(uri, roots)


def _closed(uri: str, roots: Sequence[str]) -> UserError:
    where = "in one of the folders opened for videos" if roots else "none, as no folder is opened for videos"
    return UserError(
        f"video {uri}: expected {where}; open its folder or bucket by VOSFORGE_VIDEOS where the model runs"
    )
