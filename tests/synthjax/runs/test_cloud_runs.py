"""Training and prediction with data sets and workdirs in clouds, on one machine and then another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.shards.mel_stats import STATS_FILE, compute_stats, save_stats
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.splits import write_splits
from tests import cloud_servers
from tests.cloud_servers import SECRETS, Cloud, Proxy
from tests.helpers import REPOSITORY, assert_usage_error, make_rows, run_cli, tiny_flags, write
from tests.synthjax.multihost import finish, start_together

cloud = cloud_servers.cloud
either_cloud = cloud_servers.either_cloud


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as it is uploaded: the splits beside the folder of the shards."""
    root = tmp_path_factory.mktemp("data") / "set"
    (root / "shards").mkdir(parents=True)
    for number, rows in enumerate((14, 10, 6)):
        write(root / "shards" / f"shard-{number}.h5", make_rows(number, rows))
    write_splits(root / "shards", root, {"train": [0, 1], "val": [2]})
    save_stats(root / STATS_FILE, compute_stats(ShardReader(root / "train.h5")))
    return root


@pytest.fixture
def host(cloud: Cloud, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a host that finds the data set in the cloud."""
    monkeypatch.setenv("SYNTHJAX_CACHE", str(tmp_path / "host"))
    if cloud.scheme == "gs":  # TensorStore, which writes Orbax's arrays, has a variable of its own.
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", cloud.endpoint)
    result = run_cli("data_pipeline.storage", "sync", data, cloud.url("data/set"), cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return tmp_path / "host"


def train(cloud: Cloud, **changes: object) -> subprocess.CompletedProcess:
    flags = tiny_flags(cloud.url("data/set"), cloud.url("runs/one"), **changes)  # type: ignore[arg-type]
    return run_cli("synthjax.train", *flags, cwd=REPOSITORY)


def log(cloud: Cloud) -> list[str]:
    return cloud.get("runs/one/metrics.jsonl").decode().splitlines()


def texts(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine_and_is_used_from_the_cloud(
    cloud: Cloud, host: Path, data: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    result = run_cli("synthjax.train", *tiny_flags(data, whole, optim__final_lr=1e-4), cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    first = train(cloud, optim__final_lr=1e-4, train__steps=6)
    assert first.returncode == 0, first.stderr
    assert len(log(cloud)) == 6
    # The other machine has an older part of the run.
    (copied,) = (host / "runs").iterdir()
    metrics = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    shutil.rmtree(host / "datasets")
    (copied / "metrics.jsonl").write_text("".join(metrics[:3]))
    second = train(cloud, optim__final_lr=1e-4)
    assert second.returncode == 0, second.stderr
    assert "going on from step 6" in second.stderr
    assert "restarts 1" in second.stderr
    assert log(cloud) == (whole / "metrics.jsonl").read_text().splitlines()
    # Whoever evaluates has nothing of it.
    shutil.rmtree(host)
    output = tmp_path / "evaluation"
    flags = [f"--workdir={cloud.url('runs/one')}", "--split=val"]
    assert_usage_error(run_cli("synthjax.evaluate", *flags, cwd=REPOSITORY), "--output=FOLDER")
    result = run_cli("synthjax.evaluate", *flags, f"--output={output}", cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert json.loads((output / "metrics.json").read_text())["count"] == 6
    # No credential is in any file here or there, nor in what was said.
    everything = texts(tmp_path) | {Path(name): cloud.get(name) for name in cloud.names()}
    said = b"".join(text.encode() for result in (first, second) for text in (result.stdout, result.stderr))
    for secret in SECRETS.values():
        assert secret.encode() not in said
        assert not [path for path, content in everything.items() if secret.encode() in content]


@pytest.mark.slow
def test_multihost_runs_share_a_folder_of_gs_alone(cloud: Cloud, host: Path, tmp_path: Path) -> None:
    flags = tiny_flags(cloud.url("data/set"), cloud.url("runs/one"))  # type: ignore[arg-type]
    processes = start_together("synthjax.train", flags)
    if cloud.scheme == "s3":
        told = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [2, 2]
        assert all("several processes cannot train in one s3:// folder" in text for text in told)
        return
    finish(processes)
    assert [json.loads(line)["step"] for line in log(cloud)] == list(range(1, 13))
    more = train(cloud, train__steps=14)
    assert more.returncode == 0, more.stderr
    assert "going on from step 12" in more.stderr


def test_a_missing_run_is_an_error(cloud: Cloud, tmp_path: Path) -> None:
    flags = [f"--workdir={cloud.url('runs/none')}", f"--output={tmp_path}"]
    assert_usage_error(run_cli("synthjax.evaluate", *flags, cwd=REPOSITORY), "no run at", "runs/none")


def test_a_missing_data_set_is_an_error(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHJAX_CACHE", str(tmp_path / "host"))
    result = run_cli("synthjax.train", *tiny_flags(cloud.url("data/none"), tmp_path / "run"), cwd=REPOSITORY)  # type: ignore[arg-type]
    assert_usage_error(result, "data/none", "has no train.h5")


FINISHED = """
import sys
from pathlib import Path
from data_pipeline.console import cli
from synthjax.runs import cloud_runs

def main(argv):
    with cloud_runs.training(argv[1]) as workdir:
        workdir.path.mkdir(parents=True, exist_ok=True)
        (workdir.path / "metrics.jsonl").write_bytes(bytes(1 << 20))

cli.run(main)
"""


@pytest.mark.parametrize("asks", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_does_not_cut_the_last_upload_short(either_cloud: Cloud, tmp_path: Path, asks: int) -> None:
    """The run itself has finished, and the signal comes while the connection stands still."""
    with Proxy(either_cloud.endpoint, up=200_000, hold=True) as proxy:
        environment = either_cloud.environment(proxy.endpoint) | {"SYNTHJAX_CACHE": str(tmp_path)}
        command = [sys.executable, "-c", FINISHED, either_cloud.url("runs/one")]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment)
        try:
            assert proxy.struck.wait(100)
            process.send_signal(asks)
            proxy.released.set()
            assert process.wait(100) == 0
        finally:
            process.kill()
            process.wait()
    assert either_cloud.get("runs/one/metrics.jsonl") == bytes(1 << 20)
