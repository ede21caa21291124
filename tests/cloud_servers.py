"""Object stores on loopback for tests, and what may go wrong on the way to one.

``cloud`` is a fixture of either kind, an emulator of Google Cloud Storage or moto's S3, with an empty bucket. A test
module takes it by ``cloud = cloud_servers.cloud``, and other fixtures likewise.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import socketserver
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from gcp_storage_emulator.server import create_server
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.s3.models import s3_backends

from data_pipeline.cloud import gcs as storage_gcs
from data_pipeline.cloud import s3 as storage_s3
from data_pipeline.cloud import transfer

# What no output may hold. The variables are set wherever a test talks to a server.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAFAKEFAKEFAKEFAKE",
    "AWS_SECRET_ACCESS_KEY": "fake/secret/of/the/tests/that/is/40/long",
    "AWS_SESSION_TOKEN": "fake-session-token-of-the-tests",
}
ENVIRONMENT = {
    **SECRETS,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    # Neither cloud is asked whether this machine is one of theirs.
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_GCE_CHECK": "true",
    "GOOGLE_CLOUD_PROJECT": "tests",
    "NO_PROXY": "127.0.0.1",
}
# A port on which nobody listens: binding it takes privileges, and it is nobody's.
NOWHERE = "http://127.0.0.1:1"


class Cloud(ABC):
    """A server, one bucket of it, and ways to its objects that do not lead through the code under test."""

    scheme: str
    endpoint_variable: str

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.bucket = f"bucket-{uuid.uuid4().hex[:12]}"

    def url(self, path: str = "") -> str:
        return f"{self.scheme}://{self.bucket}/{path}".rstrip("/")

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What a process needs to find the server; or another endpoint in its place."""
        return {**ENVIRONMENT, self.endpoint_variable: endpoint or self.endpoint}

    @abstractmethod
    def make_bucket(self) -> None: ...

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Stores an object as other programs do."""

    @abstractmethod
    def get(self, key: str) -> bytes: ...

    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def corrupt(self, key: str) -> None:
        """Flips a bit of what is stored; what is said about it stays."""

    @abstractmethod
    def put_unsafe(self, key: str) -> None:
        """An object whose name the server's own client may refuse."""


class Gcs(Cloud):
    scheme = "gs"
    endpoint_variable = "STORAGE_EMULATOR_HOST"

    def __init__(self, endpoint: str, server: Any) -> None:
        super().__init__(endpoint)
        self._storage = server._storage
        options = {"api_endpoint": endpoint}
        self._client = storage.Client("tests", AnonymousCredentials(), client_options=options)

    def make_bucket(self) -> None:
        self._client.create_bucket(self.bucket)

    def put(self, key: str, content: bytes) -> None:
        self._client.bucket(self.bucket).blob(key).upload_from_string(content)

    def get(self, key: str) -> bytes:
        return self._storage.get_file(self.bucket, key)

    def names(self) -> list[str]:
        return sorted(self._storage.objects.get(self.bucket, {}))

    def corrupt(self, key: str) -> None:
        content = bytearray(self.get(key))
        content[len(content) // 2] ^= 1
        self._storage._store.write_bytes(self._storage._object_path(self.bucket, key), bytes(content))

    def put_unsafe(self, key: str) -> None:
        self.put("harmless", b"x")
        objects = self._storage.objects[self.bucket]
        objects[key] = {**objects.pop("harmless"), "name": key}


class S3(Cloud):
    scheme = "s3"
    endpoint_variable = "AWS_ENDPOINT_URL"

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        keys = {"aws_access_key_id": "other", "aws_secret_access_key": "other"}
        self._client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)

    def make_bucket(self) -> None:
        self._client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self._objects()[key].value

    def names(self) -> list[str]:
        return sorted(self._objects())

    def corrupt(self, key: str) -> None:
        content = bytearray(self.get(key))
        content[len(content) // 2] ^= 1
        self._objects()[key]._value_buffer.seek(0)
        self._objects()[key]._value_buffer.write(bytes(content))

    def put_unsafe(self, key: str) -> None:
        self.put(key, b"x")

    def _objects(self) -> Any:
        [account] = [a for a in s3_backends if self.bucket in s3_backends[a]["aws"].buckets]
        return s3_backends[account]["aws"].buckets[self.bucket].keys


@functools.cache
def _gcs_server() -> tuple[str, Any]:
    server = create_server("127.0.0.1", 0, in_memory=True)
    server._api.daemon = True
    server.start()
    return f"http://127.0.0.1:{server._api._httpd.server_address[1]}", server


@functools.cache
def _s3_server() -> str:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    return "http://{}:{}".format(*server.get_host_and_port())


@pytest.fixture(params=["gs", "s3"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A server with an empty bucket, which the environment points to."""
    return _server(request.param, monkeypatch)


@pytest.fixture(params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def either_cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """As ``cloud``, for tests of code that does not know which cloud it works on: fast tests take one."""
    return _server(request.param, monkeypatch)


def _server(scheme: str, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    made = Gcs(*_gcs_server()) if scheme == "gs" else S3(_s3_server())
    made.make_bucket()
    for variable in ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(variable, raising=False)
    for name, value in made.environment().items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is attempted twice in this process."""
    once = storage_gcs.RETRY.with_timeout(0)
    monkeypatch.setattr(storage_gcs, "RETRY", once)
    monkeypatch.setattr(storage_gcs, "CHUNK_RETRY", once)
    monkeypatch.setattr(storage_s3, "CONFIG", Config(retries={"mode": "standard", "max_attempts": 1}))
    monkeypatch.setattr(transfer, "PAUSES", ())


class Proxy:
    """Passes bytes to a server and back, until so many went one way; then it cuts that connection.

    Args:
      down: bytes to the client before that happens, once.
      up: the same, to the server.
      hold: whether to cut only when it is ``released``, and to keep quiet until then.

    ``struck`` is set once that happened; while ``refusing`` it ends every connection at once.
    """

    def __init__(self, endpoint: str, *, down: int | None = None, up: int | None = None, hold: bool = False) -> None:
        self._backend = (urlsplit(endpoint).hostname, urlsplit(endpoint).port)
        self._left = {"down": down, "up": up}
        self._hold, self._lock = hold, threading.Lock()
        self.passed = {"down": 0, "up": 0}
        self.struck, self.released = threading.Event(), threading.Event()
        self.refusing = False
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._connect(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def _connect(self, client: socket.socket) -> None:
        if self.refusing:
            return
        with socket.create_connection(self._backend) as server:
            back = threading.Thread(target=self._pump, args=(server, client, "down"), daemon=True)
            back.start()
            self._pump(client, server, "up")
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                allowed = self._allowed(way, len(block))
                target.sendall(block[:allowed])
                if allowed < len(block):
                    self.struck.set()
                    if self._hold:
                        self.released.wait()
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _allowed(self, way: str, count: int) -> int:
        with self._lock:
            left = self._left[way]
            if left is not None and count > left:
                self._left[way] = None
                count = left
            elif left is not None:
                self._left[way] = left - count
            self.passed[way] += count
            return count


@contextmanager
def refusing_server(status: int = 403) -> Iterator[str]:
    """The endpoint of a server that answers every request with ``status``, and repeats what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"refused {self.headers.get('Authorization')} {self.requestline}?X-Amz-Signature=abc".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
