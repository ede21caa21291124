"""gs:// by google-cloud-storage: Application Default Credentials, or none where STORAGE_EMULATOR_HOST is set.

Objects carry the CRC32C of their content. An upload names the one it must have, so that the server refuses what was
damaged on its way; big files go in chunks of a resumable upload, of which only the chunk that failed is sent again.

``transfer_manager`` of that library is not used: Ctrl-C waits until its threads have worked off all that is queued,
its downloads begin at byte 0 after every interruption and report no progress, and its chunked uploads leave their
parts behind when they are killed.
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

from data_pipeline import storage_errors
from data_pipeline.cli import UserError
from data_pipeline.locations import Entry, Sink, Source
from data_pipeline.storage_errors import DamagedError

EMULATOR = "STORAGE_EMULATOR_HOST"
PROJECT = "GOOGLE_CLOUD_PROJECT"
# Seconds to connect, and to wait for the next bytes.
TIMEOUT = (5, 30)
# Who lists shall hear soon that there is no network; a long upload waits a while for it to come back.
RETRY = DEFAULT_RETRY.with_delay(initial=0.5, maximum=2).with_timeout(4)
CHUNK_RETRY = DEFAULT_RETRY.with_timeout(15)
# Every thread holds one in memory.
CHUNK_BYTES = 32 << 20
LOGIN = "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS to a service account's key"
# What a server says to a resumable upload that it lost track of: a new one may do.
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
                if not blob.name.endswith("/")  # The console makes such objects as folders.
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
                raw_download=True,  # Stored bytes are what the checksum is of, even if they are compressed.
                if_generation_match=int(entry.version),
                checksum=None,  # Whoever downloads compares the whole file.
                retry=None,  # Whoever downloads goes on where this broke off.
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
    """Only what concerns buckets as such needs to know a project."""
    if not client.project:
        raise UserError(f"gs://: the project is not known: set {PROJECT} to its id")


@contextmanager
def _explaining(url: str) -> Iterator[None]:
    """Turns what the library raises into one line."""
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
    if error.code == 404:
        return storage_errors.missing(url)
    if error.code in (401, 403):
        who = "as somebody who may, or ask the bucket's owner for the role Storage Object User"
        return storage_errors.refused(url, error.message, f"{LOGIN}, {who}")
    if error.code == 409:
        return UserError(f"{url}: the bucket exists already, here or elsewhere: choose another name")
    if error.code == 412:
        return storage_errors.replaced(url)
    if error.code in (408, 429) or error.code >= 500:
        return storage_errors.busy(url, error.message)
    return storage_errors.unexpected(url, error.message)
