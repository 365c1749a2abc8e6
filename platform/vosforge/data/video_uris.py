"""Videos that somebody else names: only those in folders and buckets that were opened for it."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vosforge.data.video_files import VIDEO_SUFFIXES, FrameFolder, VideoFile, open_video
from vosforge.errors import UserError
from vosforge.reading import reading
from vosforge.storage import download_file

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# How MP4 and MOV, AVI, Matroska and WebM, and MPEG's program, elementary and transport streams begin.
_CONTAINER = re.compile(
    rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot)|RIFF.{4}AVI |\x1aE\xdf\xa3|\x00\x00\x01[\xb3\xba]|G.{187}G", re.DOTALL
)


@contextlib.contextmanager
def opened(uri: str, roots: Sequence[str]) -> Iterator[FrameFolder | VideoFile]:
    """Open a video that a client names; one of S3 is downloaded for as long as this lasts.

    Links are followed before a path is judged, that of each frame too, so that none leads out of a folder. No other
    scheme is ever opened, and no playlist, which names other files.

    Args:
        uri: path of a video file or a folder of frames, or `s3://` URI of a video file.
        roots: local folders and `s3://bucket/prefix` URIs that clients may name videos in; `s3://` opens all buckets
            that this process may read.

    Raises:
        UserError: when it or a frame of it lies in none of them, is missing, or is of no kind that is opened here.
    """
    if uri.startswith("s3://"):
        _check_bucket(uri, roots)
        with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
            try:
                path = download_file(uri, Path(folder) / Path(uri).name)
                _check_kind(path, uri)
                yield open_video(path)
            except FileNotFoundError as error:
                raise UserError(f"video {uri}: no such file") from error
        return
    if _SCHEME.match(uri) and not uri.startswith("file://"):
        raise UserError(f"video {uri}: expected a local path or s3://bucket/key; nothing is fetched from elsewhere")
    path = Path(uri.removeprefix("file://")).resolve()
    folders = [Path(root).resolve() for root in roots if not root.startswith("s3://")]
    if not _is_inside(path, folders):
        raise _closed(uri, roots)
    with reading(path):
        if path.is_file():
            _check_kind(path, uri)
        video = open_video(path)
        if isinstance(video, FrameFolder):
            for file in video.files:
                if not _is_inside(file.resolve(), folders):
                    raise _closed(f"{uri}, frame {file.name}", roots)
        yield video


def _is_inside(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _check_kind(path: Path, uri: str) -> None:
    """Refuse all but containers of video: what FFmpeg takes for a playlist makes it read other files."""
    with path.open("rb") as file:
        begins = file.read(189)
    if path.suffix.lower() not in VIDEO_SUFFIXES or not _CONTAINER.match(begins):
        raise UserError(f"video {uri}: expected a video file ({', '.join(VIDEO_SUFFIXES)}), found another kind of file")


def _check_bucket(uri: str, roots: Sequence[str]) -> None:
    prefixes = [root if root == "s3://" else root.rstrip("/") + "/" for root in roots if root.startswith("s3://")]
    if ".." in uri.split("/") or not any(uri.startswith(prefix) for prefix in prefixes):
        raise _closed(uri, roots)


def _closed(uri: str, roots: Sequence[str]) -> UserError:
    where = "in one of the folders opened for videos" if roots else "none, as no folder is opened for videos"
    return UserError(
        f"video {uri}: expected {where}; open its folder or bucket by VOSFORGE_VIDEOS where the model runs"
    )
