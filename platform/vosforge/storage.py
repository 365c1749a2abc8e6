"""Local paths and `s3://` URIs alike: list, read, write aside and move into place, with retries."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs

from vosforge.errors import UserError

Result = TypeVar("Result")
_ATTEMPTS = 4
_MOST_OPEN = 64
# Bytes that are cheaper to read than to ask for what lies behind them in another request.
_GAP = 16_384


class Unavailable(UserError):
    """A storage that still failed after some tries; later it may not."""


def filesystem(uri: str | Path) -> tuple[pa.fs.FileSystem, str]:
    """The file system of a URI and the path inside it.

    A plain path is local. `s3://bucket/key` honours the usual AWS variables, `AWS_ENDPOINT_URL` among them.

    Raises:
        UserError: for a scheme that is not supported.
    """
    text = str(uri)
    if "://" not in text:
        return pa.fs.LocalFileSystem(), os.path.abspath(text)
    if text.startswith("s3://"):
        # Imported for S3 alone, that local data can be read without boto3.
        from vosforge import s3

        return s3.file_system(), "/".join(s3.split(text)).rstrip("/")
    try:
        return pa.fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, NotImplementedError) as error:
        raise UserError(f"{text}: expected a local path or s3://bucket/key ({error})") from error


def absolute(uri: str | Path) -> str:
    """The URI as another process with another working directory understands it."""
    return os.path.abspath(uri) if "://" not in str(uri) else str(uri)


def join(uri: str | Path, *names: str) -> str:
    """Append names to a local path or URI."""
    return "/".join([str(uri).rstrip("/"), *names])


def is_local(uri: str | Path) -> bool:
    """Whether a URI names a place on this machine's file system."""
    return "://" not in str(uri) or str(uri).startswith("file://")


def local_path(uri: str | Path) -> Path:
    """The path of a local URI."""
    return Path(filesystem(uri)[1])


def exists(uri: str | Path) -> bool:
    """Whether there is a file or directory at the URI."""
    fs, path = filesystem(uri)
    return _retried(lambda: fs.get_file_info(path), uri).type != pa.fs.FileType.NotFound


def list_names(uri: str | Path) -> list[str]:
    """Names of what lies directly under a directory, sorted; empty when it does not exist."""
    fs, path = filesystem(uri)
    selector = pa.fs.FileSelector(path, allow_not_found=True)
    return sorted(info.base_name for info in _retried(lambda: fs.get_file_info(selector), uri))


def list_sizes(uri: str | Path) -> dict[str, int]:
    """Bytes of each file directly under a directory, by name; empty when it does not exist."""
    fs, path = filesystem(uri)
    selector = pa.fs.FileSelector(path, allow_not_found=True)
    found = _retried(lambda: fs.get_file_info(selector), uri)
    return {info.base_name: info.size for info in found if info.type == pa.fs.FileType.File}


def read_bytes(uri: str | Path) -> bytes:
    """The whole file.

    Raises:
        UserError: when there is none.
    """
    fs, path = filesystem(uri)

    def read() -> bytes:
        with fs.open_input_stream(path) as stream:
            return stream.read()

    try:
        return _retried(read, uri)
    except FileNotFoundError as error:
        raise UserError(f"{uri}: no such file") from error


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file as a whole: aside and moved into place locally, one PUT on S3. Parents are created."""
    if is_local(uri):
        with write_aside(local_path(uri)) as aside:
            aside.write_bytes(data)
        return
    fs, path = filesystem(uri)

    def write() -> None:
        with fs.open_output_stream(path) as stream:
            stream.write(data)

    _retried(write, uri)


def upload_file(source: str | Path, uri: str | Path) -> None:
    """Move a finished local file to its URI; readers never see a part of it."""
    if is_local(uri):
        with write_aside(local_path(uri)) as aside:
            shutil.copyfile(source, aside)
        return
    fs, path = filesystem(uri)
    _retried(lambda: pa.fs.copy_files(str(Path(source).absolute()), path, pa.fs.LocalFileSystem(), fs), uri)


def claim(uri: str | Path, content: dict[str, Any], what: str) -> None:
    """Write down what a folder holds, or refuse one that holds something else.

    Args:
        uri: of the JSON file that says it.
        content: JSON-serialisable.
        what: is claimed, for the message.

    Raises:
        UserError: naming the fields that differ from what was written down before.
    """
    wanted = json.loads(json.dumps(content))
    if exists(uri):
        before = json.loads(read_bytes(uri))
        differing = _differing(before, wanted)
        if differing:
            folder = str(uri).rsplit("/", 1)[0]
            raise UserError(
                f"{what} was started with another {', '.join(differing)}; choose another name, or delete {folder}"
            )
        return
    write_bytes(uri, json.dumps(wanted, indent=1).encode())


def canonical(content: Any) -> str:
    """JSON in which equal values are equal text: keys in order, 5 as 5.0."""
    return json.dumps(json.loads(json.dumps(content), parse_int=float), sort_keys=True)


def _differing(before: Any, wanted: Any, path: str = "") -> list[str]:
    """Names of the fields in which two JSON values differ, such as "stages.0.learning_rate"."""
    if before == wanted:
        return []
    if isinstance(before, list) and isinstance(wanted, list) and len(before) == len(wanted):
        before, wanted = dict(enumerate(before)), dict(enumerate(wanted))
    if not (isinstance(before, dict) and isinstance(wanted, dict)):
        return [path]
    keys = list(dict.fromkeys([*before, *wanted]))
    prefix = f"{path}." if path else ""
    return [name for key in keys for name in _differing(before.get(key), wanted.get(key), f"{prefix}{key}")]


def download_file(uri: str | Path, target: Path) -> Path:
    """A local file of that content: the file itself where it is local, else a copy at `target`."""
    if is_local(uri):
        return local_path(uri)
    fs, path = filesystem(uri)
    _retried(lambda: pa.fs.copy_files(path, str(target.absolute()), fs, pa.fs.LocalFileSystem()), uri)
    return target


@contextlib.contextmanager
def local_copy(uri: str | Path) -> Iterator[Path]:
    """The local file or folder of a URI: itself where it is local, else a copy that is gone after the block.

    Of a folder, the files directly in it.

    Raises:
        UserError: when there is neither, on S3; a local one may be missing.
    """
    if is_local(uri):
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="vosforge-") as folder:
        place, names = Path(folder) / str(uri).rstrip("/").rpartition("/")[2], list_sizes(uri)
        if names:
            place.mkdir()
            for name in names:
                download_file(join(uri, name), place / name)
        elif exists(uri):
            download_file(uri, place)
        else:
            raise UserError(f"{uri}: no such file or folder")
        yield place


class RangeReader:
    """Reads byte ranges of files, of which it keeps few open; ranges that lie near each other are read as one.

    Attributes:
        bytes_read, requests: what was read so far, and in how many pieces.
    """

    def __init__(self) -> None:
        self.bytes_read = self.requests = 0
        self._open: dict[str, pa.NativeFile] = {}

    def read(self, uri: str, ranges: Sequence[Sequence[int]], size: int | None = None) -> list[bytes]:
        """The bytes of each range `(first, length)`, in the order given; empty for those of length 0.

        Args:
            uri: of the file.
            ranges: in bytes.
            size: that the file should have.

        Raises:
            OSError: when it is missing.
            Unavailable: when it cannot be read after some tries.
            EOFError: when it has another size, or ends before a range does.
        """
        found = [b""] * len(ranges)
        for run in _runs(ranges):
            first = ranges[run[0]][0]
            last = max(ranges[i][0] + ranges[i][1] for i in run)
            data = _retried(partial(self._piece, uri, first, last - first, size), uri)
            for i in run:
                start, length = ranges[i]
                found[i] = data[start - first : start - first + length]
        return found

    def _piece(self, uri: str, first: int, length: int, size: int | None) -> bytes:
        try:
            data = self._file(uri, size).read_at(length, first)
        except OSError:
            self._open.pop(uri, None)
            raise
        self.bytes_read += len(data)
        self.requests += 1
        if len(data) < length:
            raise EOFError(f"expected {length} bytes at {first}, found {len(data)}")
        return data

    def _file(self, uri: str, size: int | None) -> pa.NativeFile:
        if uri not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            fs, path = filesystem(uri)
            file = fs.open_input_file(path)
            if size is not None and file.size() != size:
                raise EOFError(f"expected {size} bytes, found {file.size()}")
            self._open[uri] = file
        return self._open[uri]


def _runs(ranges: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Positions of ranges that are worth reading as one, by their place in the file."""
    order = sorted((i for i in range(len(ranges)) if ranges[i][1]), key=lambda i: ranges[i][0])
    run, end = [], 0
    for i in order:
        start, length = ranges[i]
        if run and start - end > _GAP:
            yield run
            run = []
        run.append(i)
        end = max(end, start + length) if len(run) > 1 else start + length
    if run:
        yield run


def delete(uri: str | Path) -> None:
    """Delete one file, if it is there."""
    fs, path = filesystem(uri)

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.delete_file(path)

    _retried(remove, uri)


def delete_folder(uri: str | Path) -> None:
    """Delete a directory with all that is in it, as far as the storage lets one."""
    fs, path = filesystem(uri)
    with contextlib.suppress(OSError):
        fs.delete_dir(path)


def sha256(uri: str | Path) -> str:
    """Hex digest of a file's bytes."""
    fs, path = filesystem(uri)

    def read() -> str:
        digest = hashlib.sha256()
        with fs.open_input_stream(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    return _retried(read, uri)


@contextlib.contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """A path beside the target for a file or folder; it takes the target's name when the block succeeds.

    Raises:
        UserError: when the target's folder cannot be written.
    """
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}.aside")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{target}: a parent of it is a file; choose another folder") from error
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield aside
        if aside.is_dir() and target.is_dir():
            shutil.rmtree(target)
        os.replace(aside, target)
    except PermissionError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another folder") from error
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)


def check_space(uri: str | Path, needed: int) -> None:
    """Refuse early when a local disk has too little space left.

    Args:
        uri: where something will be written.
        needed: bytes.

    Raises:
        UserError: with what is free and what is needed.
    """
    if not is_local(uri):
        return
    folder = local_path(uri)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        unit, size = ("GB", 1e9) if needed >= 1e8 else ("MB", 1e6)
        raise UserError(
            f"{uri}: {needed / size:.1f} {unit} of disk needed, {free / size:.1f} {unit} free; free some or choose "
            "another disk"
        )


def check_writable(uri: str | Path) -> None:
    """Refuse early when nothing can be written under a directory.

    Raises:
        UserError: naming the directory and the reason.
    """
    if is_local(uri) and local_path(uri).is_file():
        raise UserError(f"{uri}: expected a folder, found a file; choose another folder")
    probe = join(uri, ".writable")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except (OSError, UserError) as error:
        raise UserError(f"{uri}: cannot be written ({error}); choose another place") from error


def _retried(action: Callable[[], Result], uri: str | Path) -> Result:
    """Run a storage action; transient errors are tried again with growing pauses.

    Raises:
        Unavailable: naming the place, when it still fails; what says that a file is not there is raised as it is.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if attempt == _ATTEMPTS - 1:
                told = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise Unavailable(f"{uri}: the storage fails after {_ATTEMPTS} tries ({told})") from error
            time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")
