"""Data sets staged from a cloud: whole, once per host, and only where they can be read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.cloud.staging import MANIFEST, stage
from data_pipeline.cloud.sync import sync
from data_pipeline.cloud.urls import open_location
from data_pipeline.console.cli import UserError
from data_pipeline.shards.mel_stats import STATS_FILE
from data_pipeline.shards.reader import AUDIO, ShardReader
from data_pipeline.shards.splits import write_splits
from tests import cloud_servers
from tests.cloud_servers import Cloud, Proxy
from tests.helpers import REPOSITORY, all_rows, make_rows, write

cloud = cloud_servers.either_cloud
STAGE = "import sys; from data_pipeline.cloud.staging import stage; print(stage(sys.argv[1]))"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A data set whose splits lie above its shards, so that one folder has all of it."""
    root = tmp_path / "local"
    (root / "shards").mkdir(parents=True)
    for number in (0, 1, 2):
        write(root / "shards" / f"shard-{number}.h5", make_rows(number))
    write_splits(root / "shards", root, {"train": [0, 1], "val": [2]})
    (root / STATS_FILE).write_bytes(b"statistics")
    return root


@pytest.fixture
def url(cloud: Cloud, local: Path) -> str:
    upload(local, cloud.url("sets/mine"))
    return cloud.url("sets/mine")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYNTHJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(folder: Path, url: str) -> None:
    sync(open_location(str(folder)), open_location(url), print)


def assert_same_rows(root: Path, original: Path) -> None:
    for split in ("train.h5", "val.h5"):
        assert np.array_equal(
            all_rows(ShardReader(root / split), AUDIO), all_rows(ShardReader(original / split), AUDIO)
        )
    assert (root / STATS_FILE).read_bytes() == b"statistics"


def test_a_staged_data_set_is_read_like_the_original(url: str, local: Path, cache: Path) -> None:
    said: list[str] = []
    root = stage(url, say=said.append)
    assert root.parent == cache / "datasets"
    assert root.name.startswith("mine-")
    assert_same_rows(root, local)
    assert len(said) == 1
    assert said[0].startswith(f"{url}: copying up to ")
    assert stage(url + "/", say=said.append) == root
    assert len(said) == 1


def test_a_folder_may_be_named_and_paths_stay(url: str, local: Path, tmp_path: Path, cache: Path) -> None:
    assert stage(url, tmp_path / "here") == tmp_path / "here"
    assert_same_rows(tmp_path / "here", local)
    assert stage(str(local)) == local
    assert stage("some/where") == Path("some/where")
    assert not cache.exists()


def test_only_what_changed_is_copied_again(
    cloud: Cloud, url: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = stage(url)
    write(local / "shards" / "shard-1.h5", make_rows(7))
    upload(local, url)
    with Proxy(cloud.endpoint) as proxy:
        monkeypatch.setenv(cloud.endpoint_variable, proxy.endpoint)
        stage(url)
        size = (local / "shards" / "shard-1.h5").stat().st_size
        assert size <= proxy.passed["down"] < size * 1.5
        before = proxy.passed["down"]
        stage(url)
        assert proxy.passed["down"] - before < size // 2
    assert_same_rows(root, local)


@pytest.mark.parametrize("harm", ["changed", "removed", "manifest"])
def test_what_was_harmed_here_is_mended(url: str, local: Path, harm: str) -> None:
    root = stage(url)
    shard = root / "shards" / "shard-0.h5"
    if harm == "changed":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif harm == "removed":
        shard.unlink()
    else:
        (root / MANIFEST).write_text("{")
    stage(url)
    assert_same_rows(root, local)


def test_too_small_a_disk_is_refused_before_anything_is_copied(
    url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 12_345}))
    with pytest.raises(UserError, match=rf"{url} needs .* MB, but 12\.3 kB are free under {cache}"):
        stage(url)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_what_an_interrupted_run_copied_needs_no_room_again(
    url: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = stage(url)
    (root / MANIFEST).unlink()
    (root / "shards" / "shard-2.h5").unlink()
    room = (local / "shards" / "shard-2.h5").stat().st_size
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": room}))
    stage(url)
    assert_same_rows(root, local)


def test_shards_outside_the_root_are_refused_before_shards_are_copied(cloud: Cloud, local: Path, cache: Path) -> None:
    write_splits(local / "shards", local / "splits", {"train": [0, 1], "val": [2]})
    upload(local, cloud.url("set"))
    with pytest.raises(
        UserError, match=r"names the shard \.\./shards/shard-0\.h5.*data_pipeline\.splits DATA/shards DATA"
    ):
        stage(cloud.url("set/splits"))
    assert not list(cache.rglob("shard-*.h5"))


def test_a_shard_that_was_not_uploaded_is_told(cloud: Cloud, local: Path) -> None:
    (local / "shards" / "shard-1.h5").rename(local.parent / "shard-1.h5")
    upload(local, cloud.url("set"))
    with pytest.raises(UserError, match=r"train\.h5 names the shard shards/shard-1\.h5, which is not under"):
        stage(cloud.url("set"))


def test_what_is_no_data_set_is_told(cloud: Cloud) -> None:
    cloud.put("set/shard-0.h5", b"x")
    with pytest.raises(UserError, match=r"has no train\.h5, val\.h5, test\.h5: name the folder of a data set's splits"):
        stage(cloud.url("set"))


class Stager:
    """A process that stages, and what it says."""

    def __init__(self, url: str, environment: dict[str, str]) -> None:
        self.waiting = threading.Event()
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", STAGE, url],
            env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("waiting for another process"):
                self.waiting.set()

    def root(self) -> Path:
        self._listener.join(120)
        assert self.process.wait(120) == 0, self.said
        assert self.process.stdout is not None
        return Path(self.process.stdout.read().strip())


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_processes_of_a_host_take_turns(cloud: Cloud, url: str, local: Path, killed: bool) -> None:
    size = sum(path.stat().st_size for path in local.rglob("*") if path.is_file())
    with Proxy(cloud.endpoint, down=size // 2, hold=True) as proxy:
        first = Stager(url, cloud.environment(proxy.endpoint))
        assert proxy.struck.wait(120)
        second = Stager(url, cloud.environment(proxy.endpoint))
        assert second.waiting.wait(120)
        if killed:
            first.process.kill()
            first.process.wait(60)
        proxy.released.set()
        root = second.root()
        assert killed or first.root() == root
        assert killed or proxy.passed["down"] < size * 1.5
        # Who only waited has nothing to copy.
        assert any("copying" in line for line in second.said) == killed
    assert_same_rows(root, local)
