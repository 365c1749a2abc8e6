"""What pyarrow's file system leaves open on S3: credentials of all kinds, patience, uploads that nobody finished."""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import boto3
import pyarrow.fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from vosforge.errors import UserError

_ATTEMPTS = 5
# With pauses that double from 0.025 s, about half a minute of refusals; a run loses more than that where it gives up.
_PATIENT_ATTEMPTS = "11"
# Temporary credentials are asked for again after a while.
_SECONDS = 600
_LEASE_SECONDS = 20.0
# Renewals that may fail in a row before others take a lease for abandoned.
_MISSED = 3


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def client() -> Any:
    """A boto3 client; endpoint, region and credentials are those of the usual variables, profiles and roles."""
    return boto3.client("s3", config=Config(retries={"max_attempts": _ATTEMPTS, "mode": "standard"}))


def _hasty_client(seconds: float) -> Any:
    """A client whose requests end within some seconds, of which renewals of a lease must not be late."""
    patience = max(1.0, seconds / 4)
    retries = {"max_attempts": 2, "mode": "standard"}
    return boto3.client("s3", config=Config(retries=retries, connect_timeout=patience, read_timeout=patience))


def file_system() -> pyarrow.fs.S3FileSystem:
    """pyarrow's file system with the credentials that boto3 finds: profiles with single sign-on or processes, too.

    Raises:
        UserError: when credentials cannot be had.
    """
    now = datetime.datetime.now().timestamp()
    variables = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _file_system(int(now // _SECONDS), variables)


@lru_cache(maxsize=4)
def _file_system(period: int, variables: tuple[tuple[str, str], ...]) -> pyarrow.fs.S3FileSystem:
    session = boto3.Session()
    try:
        found = session.get_credentials()
        keys = found.get_frozen_credentials() if found else None
    except BotoCoreError as error:
        raise UserError(f"S3 credentials: {error}; see `aws configure`") from error
    known = {"access_key": keys.access_key, "secret_key": keys.secret_key, "session_token": keys.token} if keys else {}
    return pyarrow.fs.S3FileSystem(
        **{name: value for name, value in known.items() if value},
        anonymous=False,
        region=session.region_name,
        endpoint_override=_endpoint(),
        retry_strategy=_retries(_ATTEMPTS),
        connect_timeout=10,
        request_timeout=60,
    )


class PatientFileSystem(pyarrow.fs.S3FileSystem):
    """pyarrow's file system that rides out half a minute of refusals, in whatever process it is unpickled.

    pyarrow's own forgets when it is pickled how often to try, and then gives up after about a second.
    """

    endpoint: str | None = None

    def __reduce__(self) -> tuple[Callable[..., PatientFileSystem], tuple[str, str | None]]:
        return patient_file_system, (self.region, self.endpoint)


def patient_file_system(region: str | None = None, endpoint: str | None = None) -> PatientFileSystem:
    """A file system for runs that last: credentials are found, and found again, where each process runs.

    Each request is tried as often as `AWS_MAX_ATTEMPTS` says, by default eleven times.

    Args:
        region, endpoint: of the store; by default those of the usual variables and profiles.

    Raises:
        UserError: when `AWS_MAX_ATTEMPTS` is no number of attempts.
    """
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", _PATIENT_ATTEMPTS)
    if not attempts.isdecimal() or int(attempts) < 1:
        raise UserError(f"AWS_MAX_ATTEMPTS: expected a number of at least 1, found {attempts!r}")
    endpoint = _endpoint() or endpoint
    made = PatientFileSystem(
        region=region or boto3.Session().region_name,
        endpoint_override=endpoint,
        retry_strategy=_retries(int(attempts)),
        connect_timeout=10,
        request_timeout=60,
    )
    made.endpoint = endpoint
    return made


def _retries(attempts: int) -> pyarrow.fs.S3RetryStrategy:
    """pyarrow never refills the budget of the SDK's "standard" strategy: after a hundred retries it tries no more.

    What it calls attempts are those after the first.
    """
    return pyarrow.fs.AwsDefaultS3RetryStrategy(max_attempts=attempts - 1)


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def abort_unfinished_uploads(uri: str, hours: float = 24) -> int:
    """Delete what killed writers left of files in parts; nothing for local paths.

    Such parts are invisible and are paid for.

    Args:
        uri: directory.
        hours: uploads begun later than that are left: they may be under way.

    Returns:
        How many uploads were aborted.
    """
    if not uri.startswith("s3://"):
        return 0
    bucket, key = split(uri)
    oldest = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=hours)
    s3 = client()
    aborted = 0
    try:
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=f"{key}/")
        for upload in (upload for page in pages for upload in page.get("Uploads", [])):
            if upload["Initiated"] < oldest:
                s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                aborted += 1
    except (BotoCoreError, ClientError):
        # Not every store lists uploads, and not everyone may; the build does not need it.
        return aborted
    return aborted


@contextlib.contextmanager
def lease(uri: str, seconds: float = _LEASE_SECONDS) -> Iterator[None]:
    """Hold an object that one process at a time can hold, and wait for it while another does.

    It is renewed meanwhile. One that its holder stops renewing, because it died, is taken over after a while; a holder
    that was cut off from the store for as long cannot know, so what is done under a lease must be harmless when done
    twice.

    Args:
        uri: of the object.
        seconds: between renewals.

    Raises:
        UserError: when the store cannot be reached, or knows no conditional writes.
    """
    bucket, key = split(uri)
    held = _Lease(_hasty_client(seconds), bucket, key)
    try:
        held.wait(seconds)
    except (BotoCoreError, ClientError) as error:
        raise UserError(f"{uri}: no lease can be had on it ({error})") from error
    over = threading.Event()

    def renew() -> None:
        while not over.wait(seconds):
            with contextlib.suppress(BotoCoreError, ClientError):
                held.renew()

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(BotoCoreError, ClientError):
            held.give_back()


class _Lease:
    """An object whose content names its holder, written only where it is as it was seen."""

    def __init__(self, s3: Any, bucket: str, key: str):
        self._s3, self._where = s3, {"Bucket": bucket, "Key": key}
        self._holder = uuid.uuid4().hex
        self._tag = ""

    def wait(self, seconds: float) -> None:
        seen, since, failed = "", time.monotonic(), 0
        while True:
            try:
                if self._take(seen if time.monotonic() - since > seconds * _MISSED else ""):
                    return
                there, failed = self._there(), 0
            except (BotoCoreError, ClientError):
                failed += 1
                if failed > _MISSED:
                    raise
                there = seen
            if there != seen:
                seen, since = there, time.monotonic()
            time.sleep(min(1.0, seconds / 4))

    def renew(self) -> None:
        try:
            self._write(IfMatch=self._tag)
        except ClientError:
            # As in `_take`; otherwise its next renewal would be of what it was.
            self._is_own()

    def give_back(self) -> None:
        if self._there() == self._tag:
            self._s3.delete_object(**self._where)

    def _take(self, abandoned: str) -> bool:
        """Write it where there is none, or in place of one that was abandoned."""
        try:
            self._write(**({"IfMatch": abandoned} if abandoned else {"IfNoneMatch": "*"}))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (404, 409, 412):
                raise
            # A write whose answer was lost is tried again, and then refused for its own sake.
            return self._is_own()
        return True

    def _write(self, **condition: str) -> None:
        content = f"{self._holder} {uuid.uuid4().hex}".encode()
        self._tag = self._s3.put_object(**self._where, Body=content, **condition)["ETag"]

    def _is_own(self) -> bool:
        try:
            found = self._s3.get_object(**self._where)
        except ClientError:
            return False
        own = found["Body"].read().decode().startswith(self._holder)
        self._tag = found["ETag"] if own else self._tag
        return own

    def _there(self) -> str:
        """The tag of what is there; empty where nothing is."""
        try:
            return self._s3.head_object(**self._where)["ETag"]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return ""
            raise
