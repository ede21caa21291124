"""What goes wrong on the way to a cloud: cut connections, Ctrl-C, refusals, and what is told of them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.cloud import errors as storage_errors
from data_pipeline.cloud import locations
from data_pipeline.cloud.errors import TransientError, scrub
from data_pipeline.cloud.locations import Entry
from data_pipeline.cloud.parallel import Meter, Stopped, run_all
from data_pipeline.cloud.sync import sync
from data_pipeline.cloud.urls import bucket_names, open_cloud, open_location
from data_pipeline.console import file_lock
from data_pipeline.console.cli import UserError
from tests import cloud_servers
from tests.cloud_servers import NOWHERE, SECRETS, Cloud, Proxy, refusing_server
from tests.helpers import REPOSITORY, assert_usage_error, run_cli

cloud = cloud_servers.cloud
hasty = cloud_servers.hasty
CLI = "data_pipeline.storage"
SIZE = 4_000_000


def through(proxy: Proxy, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cloud.endpoint_variable, proxy.endpoint)


def transfer(source: object, target: object) -> None:
    sync(open_location(str(source)), open_location(str(target)), print)


def assert_no_secret(result: subprocess.CompletedProcess, *others: str) -> None:
    for secret in (*SECRETS.values(), *others):
        assert secret not in result.stdout + result.stderr


def test_a_cut_download_goes_on_where_it_was_cut(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(SIZE)
    cloud.put("x", content)
    with Proxy(cloud.endpoint, down=SIZE // 2) as proxy:
        through(proxy, cloud, monkeypatch)
        transfer(cloud.url(), tmp_path)
        assert proxy.struck.is_set()
        assert proxy.passed["down"] < SIZE * 1.25
    assert (tmp_path / "x").read_bytes() == content


@pytest.mark.usefixtures("hasty")
def test_the_next_command_goes_on_where_a_download_was_cut(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(SIZE)
    cloud.put("x", content)
    with Proxy(cloud.endpoint, down=SIZE // 2) as proxy:
        through(proxy, cloud, monkeypatch)
        with pytest.raises(TransientError, match="cannot be reached or broke off"):
            transfer(cloud.url(), tmp_path)
        [part] = tmp_path.iterdir()
        assert part.suffix == ".part"
        assert 0 < part.stat().st_size < SIZE
        transfer(cloud.url(), tmp_path)
        assert proxy.passed["down"] < SIZE * 1.25
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]


@pytest.mark.parametrize("size", [SIZE, 3 * SIZE])  # In one request, and in several.
def test_a_cut_upload_is_made_again(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    (tmp_path / "x").write_bytes(os.urandom(size))
    with Proxy(cloud.endpoint, up=size // 2) as proxy:
        through(proxy, cloud, monkeypatch)
        transfer(tmp_path, cloud.url())
        assert proxy.struck.is_set()
    assert cloud.get("x") == (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("way", ["up", pytest.param("down", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_half_files_and_the_same_command_goes_on(cloud: Cloud, tmp_path: Path, way: str) -> None:
    here, there = tmp_path / "here", cloud.url()
    here.mkdir()
    content = os.urandom(SIZE)
    if way == "up":
        (here / "x").write_bytes(content)
        arguments = [str(here), there]
    else:
        cloud.put("x", content)
        arguments = [there, str(here)]
    with Proxy(cloud.endpoint, hold=True, **{way: SIZE // 2}) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-m", CLI, "sync", *arguments],
            env={**os.environ, **cloud.environment(proxy.endpoint), "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert proxy.struck.wait(60)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (
        130,
        "error: interrupted: finished files are whole, the same command goes on\n",
    )
    if way == "up":
        assert cloud.names() == []
    else:
        assert [path.suffix for path in here.iterdir()] == [".part"]
    assert run_cli(CLI, "sync", *arguments).returncode == 0
    assert cloud.get("x") == (here / "x").read_bytes() == content


def test_one_writer_of_a_folder_at_a_time(tmp_path: Path) -> None:
    """The third comes when the second holds what it waited for."""
    inside: list[int] = []
    writers = [Writer(tmp_path, inside) for _ in range(3)]
    for before, writer in zip([None, *writers], writers, strict=False):
        writer.thread.start()
        if before is not None:
            assert writer.waiting.wait(60)
            before.leave.set()
        assert writer.entered.wait(60)
        assert inside == [id(writer)]
    writers[-1].leave.set()
    for writer in writers:
        writer.thread.join(60)
    assert list(tmp_path.iterdir()) == []


class Writer:
    """A thread that holds a folder until it is told to leave, and what can be seen of it."""

    def __init__(self, folder: Path, inside: list[int]) -> None:
        self._folder, self._inside = folder, inside
        self.waiting, self.entered, self.leave = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._write, daemon=True)

    def _write(self) -> None:
        with file_lock.exclusive(self._folder, lambda line: self.waiting.set()):
            self._inside.append(id(self))
            self.entered.set()
            self.leave.wait(60)
            self._inside.remove(id(self))


def test_the_first_failure_stops_the_other_transfers() -> None:
    meter, started = Meter(), threading.Event()
    ends: list[str] = []

    def endless() -> None:
        started.set()
        try:
            meter.pause(60)
            ends.append("was not stopped")
        except Stopped:
            ends.append("stopped")

    def failing() -> None:
        started.wait(60)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        run_all([endless, failing] + [endless] * 20, meter)
    assert set(ends) == {"stopped"}


def test_what_is_not_there_is_one_line(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    nowhere = f"{cloud.scheme}://{cloud.bucket}-nowhere"
    remedy = f"make-bucket {nowhere}"
    for arguments in (["ls", f"{nowhere}/set"], ["sync", tmp_path, nowhere]):
        assert_usage_error(run_cli(CLI, *arguments), nowhere, "there is no such bucket", remedy)
    location = open_cloud(cloud.url())
    gone = Entry("gone", 1, version={"gs": "1", "s3": '"1"'}[cloud.scheme])
    with pytest.raises(UserError, match=r"/gone: there is no such bucket or object"):
        location.download(gone, io.BytesIO(), 0)
    location.delete("gone")  # No error: it is gone.


def test_a_bucket_that_exists_is_one_line(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")  # In the first region S3 gives one its own bucket again.
    url = f"{cloud.scheme}://{cloud.bucket}-twice"
    open_cloud(url).make_bucket(None)
    with pytest.raises(UserError, match=r"exists already.*choose another name"):
        open_cloud(url).make_bucket(None)


def test_refused_access_is_one_line_without_a_secret(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with refusing_server() as endpoint:
        for arguments in (["ls", cloud.url()], ["sync", tmp_path, cloud.url()]):
            result = run_cli(CLI, *arguments, **cloud.environment(endpoint))
            assert_usage_error(
                result, cloud.url(), "access is refused", {"gs": "gcloud auth", "s3": "set AWS_"}[cloud.scheme]
            )
            assert_no_secret(result, "X-Amz-Signature=abc")
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.iterdir() for secret in SECRETS.values())


def test_a_failing_server_is_one_line(cloud: Cloud, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing_server(503) as endpoint:
        monkeypatch.setenv(cloud.endpoint_variable, endpoint)
        with pytest.raises(TransientError, match=r"the server failed .*later"):
            open_cloud(cloud.url()).entries()


def test_an_endpoint_that_cannot_be_reached_is_one_line_in_time(cloud: Cloud) -> None:
    start = time.monotonic()
    endpoint = NOWHERE.replace("//", "//somebody:pass-of-the-endpoint@")
    result = run_cli(CLI, "ls", cloud.url(), **cloud.environment(endpoint))
    assert time.monotonic() - start < 60
    assert_usage_error(result, cloud.url(), "127.0.0.1:1 cannot be reached", "check the network and")
    assert_no_secret(result, "pass-of-the-endpoint")


def test_an_endpoint_that_is_no_url_is_one_line(cloud: Cloud, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cloud.endpoint_variable, "localhost:9000:x")
    with pytest.raises(UserError, match=r"STORAGE_EMULATOR_HOST|AWS_ENDPOINT_URL"):
        open_cloud(cloud.url()).entries()


def test_no_credentials_are_one_line(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*SECRETS, "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    remedy = {"gs": "run gcloud auth application-default login", "s3": "set AWS_ACCESS_KEY_ID"}[cloud.scheme]
    with pytest.raises(UserError, match=f"there are no .*credentials .*: {remedy}"):
        open_cloud(cloud.url()).entries()
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(UserError, match=remedy):
        bucket_names(f"{cloud.scheme}://")


@pytest.mark.parametrize(("module", "extra"), [("google.auth", "gcs"), ("boto3", "s3")])
def test_a_missing_library_is_one_line(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"data_pipeline.cloud.{extra}", raising=False)
    with pytest.raises(UserError, match=rf"needs {module}: pip install 'synthjax\[{extra}\]'"):
        open_location({"gcs": "gs", "s3": "s3"}[extra] + "://bucket/folder")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://bucket/folder", "write gs://BUCKET/FOLDER"),
        ("GS://bucket", "write gs://BUCKET/FOLDER"),
        ("gs://", "names no bucket"),
        ("s3:///folder", "names no bucket"),
        ("gs://Bucket", "no bucket has such a name: it has 3 characters or more"),
        ("s3://x/y", "no bucket has such a name: it has 3 characters or more"),
        ("s3://-bucket", "no bucket has such a name: it has 3 characters or more"),
        ("s3://user:password-of-mine@bucket/x", "no bucket has such a name: it has 3 characters or more"),
        ("gs://bucket/a//b", "would lead out"),
        ("gs://bucket/../b", "would lead out"),
    ],
)
def test_urls_that_name_nothing(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        open_location(url)
    assert "password-of-mine" not in str(told.value)


def test_paths_are_not_urls(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, words in ((tmp_path / "none", "no files under"), (tmp_path / "file", "name the folder")):
        with pytest.raises(UserError, match=words):
            transfer(path, tmp_path / "copy")
    with pytest.raises(UserError, match="write gs://"):
        open_cloud(str(tmp_path))
    with pytest.raises(UserError, match="more than a service"):
        bucket_names("gs://bucket")


def test_secrets_are_struck_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "value-of-the-key")
    monkeypatch.setenv("SHORT_KEY", "the")
    told = scrub(
        "the GET https://me:word@host/x?X-Goog-Signature=abc123 with Bearer ya29.token and value-of-the-key, "
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIAX/1, Signature=ff00; why?"
    )
    assert told == (
        "the GET https://[hidden]@host/x?[hidden] with Bearer [hidden] and [hidden], "
        "Authorization: AWS4-HMAC-SHA256 Credential=[hidden], Signature=[hidden]; why?"
    )
    page = storage_errors.unexpected("gs://b", "<html>\n" * 1000)
    assert len(str(page)) < 400
    assert "\n" not in str(page)


def test_an_object_that_was_replaced_is_told(cloud: Cloud, tmp_path: Path) -> None:
    if cloud.scheme == "gs":
        pytest.skip("the emulator knows no preconditions")
    cloud.put("x", b"one")
    location = open_cloud(cloud.url())
    [entry] = location.entries()
    cloud.put("x", b"two")
    with (tmp_path / "x").open("wb") as file, pytest.raises(UserError, match="was replaced while it was read"):
        location.download(entry, file, 0)


def test_a_file_that_changes_while_it_goes_up_is_told(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"one")
    location = open_cloud(cloud.url())
    send = type(location).upload

    def upload(self: locations.CloudLocation, *arguments: object) -> None:
        send(self, *arguments)
        with (tmp_path / "x").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(type(location), "upload", upload)
    with pytest.raises(UserError, match="changed while it was uploaded"):
        transfer(tmp_path, cloud.url())
    assert cloud.get("x") == b"one"
