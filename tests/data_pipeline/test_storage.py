"""Syncing as people do it: both ways, both clouds, and only what is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.cloud import s3 as storage_s3
from data_pipeline.cloud.errors import DamagedError
from data_pipeline.cloud.sync import Report, sync
from data_pipeline.cloud.transfer import part_path
from data_pipeline.cloud.urls import open_cloud, open_location
from data_pipeline.console.cli import UserError
from tests import cloud_servers
from tests.cloud_servers import Cloud
from tests.helpers import REPOSITORY, assert_usage_error, run_cli

cloud = cloud_servers.cloud
CLI = "data_pipeline.storage"


def transfer(source: object, target: object) -> Report:
    return sync(open_location(str(source)), open_location(str(target)), print)


def make_files(folder: Path) -> Path:
    """Names and sizes that are easily got wrong; one file above the size that is sent in one request."""
    for name, size in {"a.h5": 100_000, "shards/b 0%#+é.h5": 9_000_000, "empty": 0, ".hidden/x": 3}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_go_up_and_come_down_whole_and_once(cloud: Cloud, tmp_path: Path) -> None:
    files = make_files(tmp_path / "files")
    url = cloud.url("some/set")
    up = transfer(files, url)
    assert (up.transferred, up.files, up.size) == (4, 4, 9_100_003)
    assert {key.removeprefix("some/set/"): cloud.get(key) for key in cloud.names()} == contents(files)
    again = transfer(files, url)
    assert (again.transferred, again.files, again.size) == (0, 4, 0)

    down = transfer(url + "/", tmp_path / "copy")
    assert (down.transferred, down.files, down.size) == (4, 4, 9_100_003)
    assert contents(tmp_path / "copy") == contents(files)
    assert transfer(url, tmp_path / "copy").transferred == 0


def test_what_differs_goes_and_nothing_is_removed(cloud: Cloud, tmp_path: Path) -> None:
    files = make_files(tmp_path / "files")
    transfer(files, cloud.url())
    content = bytearray((files / "a.h5").read_bytes())
    content[50_000] ^= 1
    (files / "a.h5").write_bytes(content)
    (files / "empty").unlink()
    assert transfer(files, cloud.url()).transferred == 1
    assert cloud.get("a.h5") == content
    assert "empty" in cloud.names()

    (files / "a.h5").write_bytes(bytes(100_000))
    (files / "mine").write_bytes(b"mine")
    assert transfer(cloud.url(), files).transferred == 2
    assert (files / "a.h5").read_bytes() == content
    assert (files / "empty").exists()
    assert (files / "mine").exists()


def test_a_folder_is_not_a_beginning_of_names(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("set/x", b"x")
    cloud.put("set2/y", b"y")
    cloud.put("set/", b"")  # As consoles show folders.
    transfer(cloud.url("set"), tmp_path)
    assert contents(tmp_path) == {"x": b"x"}


def test_objects_of_other_programs(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("x", b"12345")
    transfer(cloud.url(), tmp_path)
    assert transfer(cloud.url(), tmp_path).transferred == 0
    assert transfer(tmp_path, cloud.url()).transferred == 0
    (tmp_path / "x").write_bytes(b"54321")
    assert transfer(tmp_path, cloud.url()).transferred == 1
    assert cloud.get("x") == b"54321"


def test_parts_of_big_files(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as fits one request is tested above."""
    monkeypatch.setattr("data_pipeline.cloud.gcs.CHUNK_BYTES", 5 << 20)
    for name in ("multipart_threshold", "multipart_chunksize"):
        monkeypatch.setattr(storage_s3.TRANSFER, name, 5 << 20)
    (tmp_path / "big").write_bytes(os.urandom(12 << 20))
    transfer(tmp_path, cloud.url())
    assert cloud.get("big") == (tmp_path / "big").read_bytes()
    assert transfer(tmp_path, cloud.url()).transferred == 0
    transfer(cloud.url(), tmp_path / "copy")
    assert (tmp_path / "copy" / "big").read_bytes() == cloud.get("big")
    cloud.corrupt("big")
    with pytest.raises(DamagedError):
        transfer(cloud.url(), tmp_path / "another")


@pytest.mark.parametrize("foreign", [False, True])
def test_a_damaged_object_is_noticed(cloud: Cloud, tmp_path: Path, foreign: bool) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x").write_bytes(b"content" * 1000)
    if foreign:
        cloud.put("x", b"content" * 1000)
    else:
        transfer(tmp_path / "files", cloud.url())
    cloud.corrupt("x")
    with pytest.raises(DamagedError, match=r"/x: .*run it again"):
        transfer(cloud.url(), tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_damaged_beginning_is_fetched_anew(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("x", b"content" * 1000)
    location = open_cloud(cloud.url())
    [entry] = location.entries()
    part_path(location, entry, tmp_path / "x").write_bytes(b"not that" * 10)
    transfer(cloud.url(), tmp_path)
    assert contents(tmp_path) == {"x": b"content" * 1000}


def test_parts_of_versions_before_are_removed_and_no_others(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("x", b"new")
    stale, other = tmp_path / ".x.0123456789ab.part", tmp_path / ".x.y.0123456789ab.part"
    stale.write_bytes(b"old")
    other.write_bytes(b"of x.y")
    transfer(cloud.url(), tmp_path)
    assert not stale.exists()
    assert other.exists()


@pytest.mark.parametrize("key", ["../evil", "a/../../evil", "/evil", "a//evil", "a\\..\\evil", "./evil"])
def test_names_that_lead_out_are_refused_before_anything_is_written(cloud: Cloud, tmp_path: Path, key: str) -> None:
    cloud.put("aaa", b"good")
    cloud.put_unsafe("set/" + key)
    with pytest.raises(UserError, match=r"evil.* would lead out of the folder"):
        transfer(cloud.url("set"), tmp_path / "deep" / "folder")
    assert contents(tmp_path) == {}


def test_unprintable_names_do_not_reach_the_terminal(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    from data_pipeline.storage import main

    cloud.put_unsafe("x\x1b[2J")
    main(["storage", "ls", cloud.url()])
    assert capsys.readouterr().out == f"{1:>15} 'x\\x1b[2J'\n"


def test_local_folders_sync_alike(tmp_path: Path) -> None:
    files = make_files(tmp_path / "files")
    assert transfer(files, tmp_path / "copy").transferred == 4
    assert contents(tmp_path / "copy") == contents(files)
    assert transfer(files, tmp_path / "copy").transferred == 0
    (tmp_path / "copy" / "a.h5").write_bytes(bytes(100_000))
    assert transfer(files, tmp_path / "copy").transferred == 1


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "shard").write_bytes(b"x")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "shards").symlink_to(tmp_path / "real")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    transfer(tmp_path / "set", tmp_path / "copy")
    assert contents(tmp_path / "copy") == {"shards/shard": b"x"}
    (tmp_path / "set" / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"cannot read .*broken"):
        transfer(tmp_path / "set", tmp_path / "copy")


def test_names_of_any_bytes_go_to_folders_and_not_to_buckets(cloud: Cloud, tmp_path: Path) -> None:
    files = Path(os.fsdecode(os.fsencode(tmp_path) + b"/fl\xf6te"))
    files.mkdir()
    Path(os.fsdecode(os.fsencode(files) + b"/\xff")).write_bytes(b"x")
    transfer(files, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(files)
    with pytest.raises(UserError, match="its name is not UTF-8, which buckets need: rename it"):
        transfer(files, cloud.url())


def test_a_full_disk_is_refused_before_anything_is_written(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.put("x", bytes(1_000_001))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(UserError, match=r"needs 1\.0 MB, but 1\.0 MB are free under .*another disk"):
        transfer(cloud.url(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_clouds_are_refused(cloud: Cloud) -> None:
    cloud.put("x", b"x")
    with pytest.raises(UserError, match="both in clouds"):
        transfer(cloud.url(), cloud.url("y"))


def test_commands_and_their_exit_codes(cloud: Cloud, tmp_path: Path) -> None:
    bucket = f"{cloud.scheme}://{cloud.bucket}-new"
    made = run_cli(CLI, "make-bucket", bucket, "--region=us-east-1")
    assert (made.returncode, made.stdout, made.stderr) == (0, f"{bucket}: made\n", "")
    assert_usage_error(run_cli(CLI, "make-bucket", f"{bucket}/folder"), "name the bucket alone")
    listed = run_cli(CLI, "buckets", f"{cloud.scheme}://")
    assert listed.returncode == 0
    assert {bucket, cloud.url()} <= set(listed.stdout.split())

    (tmp_path / "x").write_bytes(b"12345")
    sent = run_cli(CLI, "sync", tmp_path, f"{bucket}/set")
    assert (sent.returncode, sent.stderr) == (0, "")
    assert sent.stdout.startswith(f"{bucket}/set: 1 of 1 files transferred, the others were there: 5 bytes in ")
    assert sent.stdout.endswith("/s\n")
    shown = run_cli(CLI, "ls", bucket)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"{5:>15} set/x\n", "")
    assert_usage_error(run_cli(CLI, "ls", f"{bucket}/nothing"), "no files under", "check the name")
    assert_usage_error(run_cli(CLI, "sync", bucket), "usage: python -m data_pipeline.storage sync SOURCE TARGET")


def test_help_tells_every_command() -> None:
    told = run_cli(CLI, "--help").stdout
    for command in ("sync SOURCE TARGET", "ls URL", "buckets gs://", "make-bucket URL", "--region"):
        assert command in told
    assert_usage_error(run_cli(CLI, "cp"), "one of sync, ls, buckets, make-bucket")


def test_a_terminal_shows_bytes_and_their_rate(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "x").write_bytes(bytes(3_000_000))
    ours, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", CLI, "sync", str(tmp_path / "files"), str(tmp_path / "copy")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "200"},
        stderr=terminal,
        stdout=subprocess.DEVNULL,
    )
    assert process.wait(60) == 0
    os.close(terminal)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert f"from {tmp_path / 'files'}" in shown
    assert "3.0/3.0 MB" in shown
