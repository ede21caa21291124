"""Runs kept in a cloud, and brought back from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_pipeline.cloud import mirror as module
from data_pipeline.cloud.mirror import Mirror
from data_pipeline.cloud.urls import open_cloud
from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from tests import cloud_servers
from tests.cloud_servers import Cloud, Proxy
from tests.helpers import wait_until

cloud = cloud_servers.either_cloud
hasty = cloud_servers.hasty
SOON = 0.05


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints, and a third that is being written."""
    folder = tmp_path / "run"
    for name, content in {
        "config.json": "{}",
        "metrics.jsonl": '{"step": 1}\n',
        "tensorboard/events.1": "events",
        "checkpoints/100/params/array": "hundred",
        "checkpoints/100/_METADATA": "{}",
        "checkpoints/200/params/array": "two hundred",
        "checkpoints/300.orbax-checkpoint-tmp/params/array": "half of thr",
        ".config.json.1.tmp": "{",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


WHOLE = [
    "checkpoints/100.complete",
    "checkpoints/100/_METADATA",
    "checkpoints/100/params/array",
    "checkpoints/200.complete",
    "checkpoints/200/params/array",
    "config.json",
    "metrics.jsonl",
    "tensorboard/events.1",
]


@contextmanager
def mirrored(folder: Path, cloud: Cloud, told: list[str] | None = None, **options: object) -> Iterator[Mirror]:
    """A mirror that uploads as often as it can, and once more at the end; by default it must not fail."""
    heard: list[str] = [] if told is None else told
    made = Mirror(folder, cloud.url("run"), heard.append, every=SOON, **options)
    made.start()
    yield made
    made.close()
    assert told is not None or heard == []


def names(cloud: Cloud) -> list[str]:
    return [name.removeprefix("run/") for name in cloud.names()]


def delete(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_a_run_comes_back_on_another_machine(cloud: Cloud, run: Path, tmp_path: Path) -> None:
    with mirrored(run, cloud):
        pass
    assert names(cloud) == WHOLE
    elsewhere = tmp_path / "elsewhere"
    mirror = Mirror(elsewhere, cloud.url("run"), pytest.fail)
    assert mirror.restore()
    there = {path.relative_to(elsewhere).as_posix() for path in elsewhere.rglob("*") if path.is_file()}
    assert there == {name for name in WHOLE if not name.endswith(".complete")}
    for name in there:
        assert (elsewhere / name).read_bytes() == (run / name).read_bytes()

    (elsewhere / "metrics.jsonl").write_text("goes on here")
    assert not mirror.restore()
    assert (elsewhere / "metrics.jsonl").read_text() == "goes on here"


def test_nothing_to_restore(cloud: Cloud, tmp_path: Path) -> None:
    cloud.put("run/metrics.jsonl", b"of a run that had no time to say more")
    assert not Mirror(tmp_path / "run", cloud.url("run"), pytest.fail).restore()
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no such bucket"):
        Mirror(tmp_path / "run", cloud.url() + "-nowhere", pytest.fail).restore()


def test_an_incomplete_checkpoint_is_not_restored(cloud: Cloud, run: Path, tmp_path: Path) -> None:
    with mirrored(run, cloud):
        pass
    open_cloud(cloud.url("run")).delete("checkpoints/200.complete")
    cloud.put("run/checkpoints/300/params/array", b"cut off")
    assert Mirror(tmp_path / "elsewhere", cloud.url("run"), pytest.fail).restore()
    assert [path.name for path in (tmp_path / "elsewhere" / "checkpoints").iterdir()] == ["100"]


def test_an_interrupted_restore_leaves_no_run_and_goes_on(
    cloud: Cloud, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    (run / "checkpoints/200/params/array").write_bytes(bytes(2_000_000))
    with mirrored(run, cloud):
        pass
    elsewhere = tmp_path / "elsewhere"
    with Proxy(cloud.endpoint, down=1_000_000) as proxy:
        monkeypatch.setenv(cloud.endpoint_variable, proxy.endpoint)
        mirror = Mirror(elsewhere, cloud.url("run"), pytest.fail)
        with pytest.raises(UserError, match="broke off"):
            mirror.restore()
        assert not (elsewhere / "config.json").exists()
        assert mirror.restore()
    assert (elsewhere / "checkpoints/200/params/array").read_bytes() == bytes(2_000_000)


def test_what_grows_and_what_comes_is_uploaded(cloud: Cloud, run: Path) -> None:
    with mirrored(run, cloud):
        wait_until(lambda: names(cloud) == WHOLE)
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2}\n')
        wait_until(lambda: cloud.get("run/metrics.jsonl") == b'{"step": 1}\n{"step": 2}\n')
        (run / "checkpoints/300.orbax-checkpoint-tmp").rename(run / "checkpoints/300")
        wait_until(lambda: "checkpoints/300.complete" in names(cloud))
    assert cloud.get("run/checkpoints/300/params/array") == b"half of thr"


def test_what_is_removed_here_is_removed_there_if_the_mirror_put_it_there(cloud: Cloud, run: Path) -> None:
    cloud.put("run/checkpoints/7/params/array", b"of somebody else")
    cloud.put("run/checkpoints/7.complete", b"")
    others = ["checkpoints/7.complete", "checkpoints/7/params/array"]
    with mirrored(run, cloud):
        wait_until(lambda: names(cloud) == sorted(WHOLE + others))
        delete(run / "checkpoints/100")
        (run / "tensorboard/events.1").unlink()
        wait_until(lambda: not any("/100" in name for name in names(cloud)))
    left = [name for name in WHOLE if "/100" not in name]
    assert names(cloud) == sorted(left + others)


def test_the_last_checkpoint_stays_there(cloud: Cloud, run: Path) -> None:
    """A workdir that is removed, or a disk that is lost, takes no checkpoint along."""
    with mirrored(run, cloud):
        wait_until(lambda: names(cloud) == WHOLE)
        delete(run)
    assert names(cloud) == WHOLE


def test_a_checkpoint_written_anew_replaces_the_one_before(cloud: Cloud, run: Path) -> None:
    with mirrored(run, cloud):
        wait_until(lambda: names(cloud) == WHOLE)
        delete(run / "checkpoints/200")
        (run / "checkpoints/200").mkdir()
        (run / "checkpoints/200/other").write_text("anew")
    assert [name for name in names(cloud) if "/200" in name] == ["checkpoints/200.complete", "checkpoints/200/other"]


def test_a_checkpoint_removed_while_it_goes_up_gets_no_marker(
    cloud: Cloud, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = module.send

    def slow_send(folder: object, entries: object, target: object, *rest: object) -> object:
        sent = send(folder, entries, target, *rest)
        if (run / "checkpoints/100").exists():
            (run / "checkpoints/100/_METADATA").unlink(missing_ok=True)
        return sent

    monkeypatch.setattr(module, "send", slow_send)
    mirror = Mirror(run, cloud.url("run"), pytest.fail)
    mirror._round()
    assert [name for name in names(cloud) if "/100" in name] == []
    assert "checkpoints/200.complete" in names(cloud)


def test_a_restarted_mirror_sends_no_checkpoint_twice(cloud: Cloud, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "checkpoints/200/params/array").write_bytes(bytes(1_000_000))
    with mirrored(run, cloud):
        pass
    with Proxy(cloud.endpoint) as proxy:
        monkeypatch.setenv(cloud.endpoint_variable, proxy.endpoint)
        with mirrored(run, cloud):
            pass
        assert proxy.passed["up"] < 500_000
    assert names(cloud) == WHOLE


def test_excluded_files_stay_here(cloud: Cloud, run: Path) -> None:
    (run / "wandb").mkdir()
    (run / "wandb/log").write_text("x")
    (run / ".cache").mkdir()
    (run / ".cache/x").write_text("x")
    with mirrored(run, cloud, exclude=("wandb/*", "*.1")):
        pass
    assert names(cloud) == [name for name in WHOLE if name != "tensorboard/events.1"]


def test_failures_are_told_once_and_everything_comes_in_the_end(
    cloud: Cloud, run: Path, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    told: list[str] = []
    with Proxy(cloud.endpoint) as proxy:
        monkeypatch.setenv(cloud.endpoint_variable, proxy.endpoint)
        with mirrored(run, cloud, told) as mirror:
            rounds = count_rounds(mirror, monkeypatch)
            wait_until(lambda: names(cloud) == WHOLE)
            for outage in (1, 2):
                proxy.refusing = True
                (run / "metrics.jsonl").write_text(f"outage {outage}")
                wait_until(lambda outage=outage: len(told) == outage)
                more_rounds(rounds, 3)
                proxy.refusing = False
                wait_until(lambda: cloud.get("run/metrics.jsonl") == (run / "metrics.jsonl").read_bytes())
                more_rounds(rounds, 1)
    assert len(told) == 2
    for line in told:
        assert line.startswith("the run is not mirrored, tried again every 0 s: ")
        assert "cannot be reached" in line


def count_rounds(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows as the mirror finishes rounds."""
    finished: list[None] = []
    one = mirror._round

    def counted() -> None:
        one()
        finished.append(None)

    monkeypatch.setattr(mirror, "_round", counted)
    return finished


def more_rounds(rounds: list[None], count: int) -> None:
    before = len(rounds)
    wait_until(lambda: len(rounds) >= before + count)


def test_closing_ends_in_time_and_tells_what_is_missing(
    cloud: Cloud, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "metrics.jsonl").write_bytes(bytes(4_000_000))
    told: list[str] = []
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(cli, "_exit_without_threads", False)
    with Proxy(cloud.endpoint, up=2_000_000, hold=True) as proxy:
        monkeypatch.setenv(cloud.endpoint_variable, proxy.endpoint)
        mirror = Mirror(run, cloud.url("run"), told.append, every=SOON)
        mirror.start()
        assert proxy.struck.wait(60)
        mirror.close(timeout=0.1)
        assert cli._exit_without_threads
    assert told == [f"{cloud.url('run')}: the last changes could not be uploaded within 0 s"]


def test_a_mirror_that_was_not_started_closes(cloud: Cloud, run: Path) -> None:
    Mirror(run, cloud.url("run"), pytest.fail).close()
    assert names(cloud) == []
