"""s3:// by boto3, which finds credentials, region and endpoint in the environment: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, and AWS_ENDPOINT_URL_S3 for servers other than Amazon's.

Servers differ in the checksums that they return, and most checksums do not cover a file that was uploaded in parts. So
every upload stores the SHA-256 of the whole file in the object's metadata, and a download is compared with it. Objects
of other programs lack it: they are compared by their ETag if it is an MD5, else by size. In addition, boto3 sends a
CRC32 of each request, which the server verifies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from data_pipeline.cloud import errors as storage_errors
from data_pipeline.cloud.errors import DamagedError
from data_pipeline.cloud.locations import BLOCK, Entry, Sink, Source
from data_pipeline.console.cli import UserError

ENDPOINT = "AWS_ENDPOINT_URL_S3"
LOGIN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
# The name of the SHA-256 in an object's metadata.
SHA256 = "synthjax-sha256"
CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})
# Parts of big files, several of a file at a time: each is held in memory while it is sent.
TRANSFER = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=8 << 20, max_concurrency=4)
REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
# Regions that make_bucket must not name: Amazon's first, and the only region of some other servers.
UNNAMED_REGIONS = (None, "us-east-1", "aws-global", "auto")


class S3Location:
    """A prefix of a bucket. Raises UserError for an endpoint or configuration that boto3 does not take."""

    algorithm = "sha256"

    def __init__(self, bucket: str, prefix: str, client: Any = None) -> None:
        self._client = client or _client()
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def below(self, name: str) -> S3Location:
        return S3Location(self._bucket, self._prefix + name, self._client)

    def entries(self) -> list[Entry]:
        with self._explaining():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            found = [item for page in pages for item in page.get("Contents", ())]
        entries = [
            Entry(item["Key"].removeprefix(self._prefix), item["Size"], item["ETag"])
            for item in found
            if not item["Key"].endswith("/")  # Amazon's console makes such objects for folders.
        ]
        return sorted(entries, key=lambda entry: entry.key)

    def checksum(self, entry: Entry) -> str | None:
        with self._explaining(entry.key):
            head = self._client.head_object(IfMatch=entry.version, **self._name(entry.key))
        if ours := head["Metadata"].get(SHA256):
            return f"sha256:{ours}"
        plain = head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head
        etag = entry.version.strip('"')
        return f"md5:{etag}" if plain and re.fullmatch("[0-9a-f]{32}", etag) else None

    def download(self, entry: Entry, sink: Sink, offset: int) -> None:
        part = {"Range": f"bytes={offset}-"} if offset else {}
        with self._explaining(entry.key):
            answer = self._client.get_object(IfMatch=entry.version, **self._name(entry.key), **part)
            with closing(answer["Body"]) as body:
                while block := body.read(BLOCK):
                    sink.write(block)

    def upload(self, source: Source, key: str, size: int, checksum: str) -> None:
        metadata = {"Metadata": {SHA256: checksum.removeprefix("sha256:")}}
        with self._explaining(key):
            self._client.upload_fileobj(source, self._bucket, self._prefix + key, ExtraArgs=metadata, Config=TRANSFER)

    def delete(self, key: str) -> None:
        with self._explaining(key):
            self._client.delete_object(**self._name(key))

    def make_bucket(self, region: str | None) -> None:
        region = region or self._client.meta.region_name
        where = {} if region in UNNAMED_REGIONS else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        with self._explaining():
            self._client.create_bucket(Bucket=self._bucket, **where)

    @classmethod
    def bucket_names(cls) -> list[str]:
        client = _client()
        with _explaining("s3://", client.meta.endpoint_url):
            return [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _explaining(self, key: str | None = None) -> Any:
        return _explaining(f"{self.url}/{key}" if key else self.url, self._client.meta.endpoint_url)


def _client() -> Any:
    storage_errors.silence("botocore", "boto3", "s3transfer", "urllib3")
    with _explaining("s3://", ""):
        try:
            # A session of its own: the shared one keeps the credentials that it found first.
            return boto3.Session().client("s3", config=CONFIG)
        except ValueError as error:  # An endpoint that is no URL.
            raise storage_errors.unexpected("s3://", f"{error}: check {ENDPOINT} and AWS_ENDPOINT_URL") from error


@contextmanager
def _explaining(url: str, host: str) -> Iterator[None]:
    """Turns the library's errors into a UserError."""
    try:
        yield
    except ClientError as error:
        raise _explained(url, error) from error
    except FlexibleChecksumError as error:
        raise DamagedError(f"{url}: arrived damaged: run it again") from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise UserError(f"{url}: there are no credentials for S3: {LOGIN}") from error
    except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
        raise storage_errors.unreachable(url, host, ENDPOINT) from error
    except BotoCoreError as error:
        raise storage_errors.unexpected(url, error) from error


def _explained(url: str, error: ClientError) -> UserError:
    code = str(error.response.get("Error", {}).get("Code"))
    reason = error.response.get("Error", {}).get("Message") or code
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status in (301, 307, 400) and code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "301"):
        return UserError(f"{url}: the bucket lies in another region: set AWS_DEFAULT_REGION to its region")
    remedy = f"{LOGIN} of an account with access, or ask the bucket's owner"
    return storage_errors.of_status(url, 403 if code in REFUSED else status, reason, remedy)
