"""What pyarrow's file system leaves open on S3: credentials of all kinds, patience, uploads that nobody finished."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import boto3
import pyarrow.fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from vosforge.errors import UserError

_ATTEMPTS = 4
# With pauses that double up to 20 s, about half a minute of refusals; a run loses more than that where it gives up.
_PATIENT_ATTEMPTS = 7
# Temporary credentials are asked for again after a while.
_SECONDS = 600


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def client() -> Any:
    """A boto3 client; endpoint, region and credentials are those of the usual variables, profiles and roles."""
    return boto3.client("s3", config=Config(retries={"max_attempts": _ATTEMPTS, "mode": "standard"}))


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
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
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

    Args:
        region, endpoint: of the store; by default those of the usual variables and profiles.
    """
    endpoint = _endpoint() or endpoint
    made = PatientFileSystem(
        region=region or boto3.Session().region_name,
        endpoint_override=endpoint,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=_PATIENT_ATTEMPTS),
        connect_timeout=10,
        request_timeout=60,
    )
    made.endpoint = endpoint
    return made


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
