"""gs:// by google-cloud-storage, with Application Default Credentials, or none if STORAGE_EMULATOR_HOST is set.

An upload names the CRC32C of its content, so that the server refuses damaged content. Big files are uploaded in chunks,
of which only a failed chunk is sent again.

The library's ``transfer_manager`` is not used: after Ctrl-C it finishes all queued work first, its downloads always
begin at byte 0 and report no progress, and its chunked uploads leave parts behind when they are killed.
"""

from __future__ import annotations

import base64
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import google.auth
import requests
import urllib3
from google.api_core import exceptions
from google.auth import exceptions as auth_exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from data_pipeline.cloud import errors as storage_errors
from data_pipeline.cloud.errors import DamagedError
from data_pipeline.cloud.locations import Entry, Sink, Source
from data_pipeline.console.cli import UserError

EMULATOR = "STORAGE_EMULATOR_HOST"
PROJECT = "GOOGLE_CLOUD_PROJECT"
# Seconds to connect, and to wait for the next bytes.
TIMEOUT = (5, 30)
# Listing reports a missing network soon; a long upload waits for the network to come back.
RETRY = DEFAULT_RETRY.with_delay(initial=0.5, maximum=2).with_timeout(4)
CHUNK_RETRY = DEFAULT_RETRY.with_timeout(15)
# Every thread has one chunk in memory.
CHUNK_BYTES = 32 << 20
LOGIN = "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a service account's key"
# Statuses of a resumable upload that the server no longer knows: a new upload may succeed.
LOST_UPLOAD = (400, 404, 410)
BROKEN_CONNECTION = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    auth_exceptions.TransportError,
    ConnectionError,
)


class GcsLocation:
    """A prefix of a bucket. Raises UserError where there are no credentials."""

    algorithm = "crc32c"

    def __init__(self, bucket: str, prefix: str, client: storage.Client | None = None) -> None:
        self._client = client or _client()
        self._bucket = self._client.bucket(bucket)
        self._prefix = f"{prefix}/" if prefix else ""

    @property
    def url(self) -> str:
        return f"gs://{self._bucket.name}/{self._prefix}".rstrip("/")

    def below(self, name: str) -> GcsLocation:
        return GcsLocation(self._bucket.name, self._prefix + name, self._client)

    def entries(self) -> list[Entry]:
        fields = "items(name,size,crc32c,generation),nextPageToken"
        with _explaining(self.url):
            blobs = self._client.list_blobs(
                self._bucket, prefix=self._prefix, fields=fields, retry=RETRY, timeout=TIMEOUT
            )
            entries = [
                Entry(
                    blob.name.removeprefix(self._prefix),
                    blob.size,
                    str(blob.generation),
                    f"crc32c:{base64.b64decode(blob.crc32c).hex()}" if blob.crc32c else None,
                )
                for blob in blobs
                if not blob.name.endswith("/")  # Google's console makes such objects for folders.
            ]
        return sorted(entries, key=lambda entry: entry.key)

    def checksum(self, entry: Entry) -> str | None:
        return entry.checksum

    def download(self, entry: Entry, sink: Sink, offset: int) -> None:
        blob = self._bucket.blob(self._prefix + entry.key)
        with _explaining(f"{self.url}/{entry.key}"):
            blob.download_to_file(
                sink,
                start=offset or None,
                raw_download=True,  # The checksum is that of the stored bytes, also if they are compressed.
                if_generation_match=int(entry.version),
                checksum=None,  # The caller verifies the whole file.
                retry=None,  # The caller continues a broken download.
                timeout=TIMEOUT,
            )

    def upload(self, source: Source, key: str, size: int, checksum: str) -> None:
        blob = self._bucket.blob(self._prefix + key, chunk_size=CHUNK_BYTES)
        expected = base64.b64encode(bytes.fromhex(checksum.removeprefix("crc32c:"))).decode()
        blob.crc32c = expected
        url = f"{self.url}/{key}"
        with _explaining(url):
            try:
                blob.upload_from_file(source, size=size, checksum=None, retry=CHUNK_RETRY, timeout=TIMEOUT)
            except exceptions.GoogleAPICallError as error:
                if error.code in LOST_UPLOAD:
                    raise storage_errors.busy(url, error.message) from error
                raise
        if blob.crc32c != expected:
            raise DamagedError(f"{url}: was damaged on its way to the server: upload it again")

    def delete(self, key: str) -> None:
        with _explaining(f"{self.url}/{key}"), suppress(exceptions.NotFound):
            self._bucket.blob(self._prefix + key).delete(retry=RETRY, timeout=TIMEOUT)

    def make_bucket(self, region: str | None) -> None:
        _require_project(self._client)
        with _explaining(self.url):
            self._client.create_bucket(self._bucket.name, location=region, retry=RETRY, timeout=TIMEOUT)

    @classmethod
    def bucket_names(cls) -> list[str]:
        client = _client()
        _require_project(client)
        with _explaining("gs://"):
            return [bucket.name for bucket in client.list_buckets(retry=RETRY, timeout=TIMEOUT)]


def _client() -> storage.Client:
    storage_errors.silence("google", "urllib3")
    warnings.filterwarnings("ignore", module="google.auth")
    with _explaining("gs://"):
        if os.environ.get(EMULATOR):
            project = os.environ.get(PROJECT, "emulator")
            return storage.Client(project=project, credentials=AnonymousCredentials())
        credentials, project = google.auth.default(scopes=storage.Client.SCOPE)
        return storage.Client(project=project, credentials=credentials)


def _require_project(client: storage.Client) -> None:
    """Raises UserError if the project is unknown, which listing and making buckets need."""
    if not client.project:
        raise UserError(f"gs://: the project is not known: set {PROJECT} to its id")


@contextmanager
def _explaining(url: str) -> Iterator[None]:
    """Turns the library's errors into a UserError."""
    try:
        yield
    except exceptions.RetryError as error:  # Its cause is what it retried.
        raise _explained(url, error.cause or error) from error
    except (exceptions.GoogleAPICallError, auth_exceptions.GoogleAuthError, *BROKEN_CONNECTION) as error:
        raise _explained(url, error) from error
    except (requests.RequestException, ValueError) as error:  # An emulator's address that is no URL, mostly.
        hint = f" (is {EMULATOR} like http://127.0.0.1:9023?)" if os.environ.get(EMULATOR) else ""
        raise storage_errors.unexpected(url, f"{error}{hint}") from error


def _explained(url: str, error: Any) -> UserError:
    if isinstance(error, BROKEN_CONNECTION):
        host = os.environ.get(EMULATOR) or "storage.googleapis.com"
        return storage_errors.unreachable(url, host, EMULATOR)
    if isinstance(error, auth_exceptions.GoogleAuthError):
        return UserError(f"{url}: there are no Google credentials that work here: {LOGIN}")
    if not isinstance(error, exceptions.GoogleAPICallError):
        return storage_errors.unexpected(url, error)
    remedy = f"{LOGIN} of an account with access, or ask the bucket's owner for the role Storage Object User"
    return storage_errors.of_status(url, error.code, error.message, remedy)
