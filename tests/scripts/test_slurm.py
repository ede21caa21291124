"""The batch scripts on a real Slurm of one node: arrays of shards, processes that train together, every kind of end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_pipeline.shards.reader import ShardReader
from tests.helpers import RENDER_SUBTRACTIVE, REPOSITORY, tiny_flags
from tests.scripts.launching import Sandbox, said
from tests.scripts.slurm_cluster import SlurmCluster, missing_daemons, slurm_cluster, wait_until

SCRIPTS = REPOSITORY / "scripts" / "slurm"
STEPS = 60
PYTHON = {
    "PYTHON": sys.executable,
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "OMP_NUM_THREADS": "1",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing_daemons()), reason="needs slurm-wlm and munge: apt-get install slurm-wlm munge"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with slurm_cluster() as running:
        yield running


class Training:
    """A job of two processes that train the tiny model together."""

    def __init__(self, cluster: SlurmCluster, root: Path, folder: Path, **environment: str) -> None:
        self.cluster, self.workdir = cluster, folder / "run"
        flags = tiny_flags(root, self.workdir, train__steps=STEPS, train__eval_every=30, checkpoint__every=5)
        options = ["--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={folder}/%j.log"]
        self.job = cluster.submit(
            *options, SCRIPTS / "train.sbatch", *flags, cwd=REPOSITORY, **PYTHON | {"RETRY_AFTER": "0"} | environment
        )
        self._log = folder / f"{self.job}.log"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def metrics(self) -> str:
        path = self.workdir / "metrics.jsonl"
        return path.read_text() if path.exists() else ""

    def processes(self) -> list[psutil.Process]:
        flag = f"--workdir={self.workdir}"
        found = [
            process
            for process in psutil.process_iter(["cmdline"])
            if (command := process.info["cmdline"] or [])[:3] == [sys.executable, "-m", "synthjax.train"]
            and flag in command
        ]
        return [process for process in found if process.parent() not in found]

    def stand_still(self, after_step: int) -> list[psutil.Process]:
        """Pauses both processes between ``after_step`` and the end, so that the test can act in time."""
        wait_until(lambda: self.metrics.count("\n") >= after_step, 600, lambda: self.log)
        processes = self.processes()
        assert len(processes) == 2
        for process in processes:
            process.suspend()
        assert self.metrics.count("\n") < STEPS
        return processes

    def wait(self, *states: str) -> None:
        self.cluster.wait_for(self.job, *states)


@pytest.fixture(scope="module")
def uninterrupted(cluster: SlurmCluster, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = Training(cluster, tiny_root, tmp_path_factory.mktemp("uninterrupted"))
    training.wait("COMPLETED", "FAILED")
    return training


def test_tasks_of_srun_train_together(uninterrupted: Training) -> None:
    assert uninterrupted.cluster.states(uninterrupted.job) == ["COMPLETED"], uninterrupted.log
    assert "on 2 cpu devices (2 data x 1 model)" in uninterrupted.log
    steps = [json.loads(line)["step"] for line in uninterrupted.metrics.splitlines()]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("by", ["time limit", "preemption"])
def test_stopped_job_saves_and_goes_on_by_itself(
    cluster: SlurmCluster, uninterrupted: Training, tiny_root: Path, tmp_path: Path, by: str
) -> None:
    """The time limit's signal goes to the batch script; preemption with a grace time signals the processes only."""
    training = Training(cluster, tiny_root, tmp_path)
    processes = training.stand_still(after_step=7)
    if by == "time limit":
        cluster.batch_signal(training.job, "USR1")
        wait_until(lambda: "saving" in training.log, 60, lambda: training.log)
    else:
        cluster.run("scancel", "--signal=TERM", training.job)
    time.sleep(1)  # Until the signal has come through Slurm's daemons.
    for process in processes:
        process.resume()
    cluster.hurry(training.job)
    training.wait("COMPLETED", "FAILED")
    assert cluster.jobs(training.job)[0]["Restarts"] == "1", training.log
    for words in ("stopped at step", "back to the queue", "start 2 on", "going on from step", f"finished {STEPS}"):
        assert words in training.log
    assert training.metrics == uninterrupted.metrics


def test_cancelled_job_saves_and_stays_cancelled(cluster: SlurmCluster, tiny_root: Path, tmp_path: Path) -> None:
    training = Training(cluster, tiny_root, tmp_path)
    wait_until(lambda: training.metrics.count("\n") >= 3, 600, lambda: training.log)
    cluster.run("scancel", training.job)
    wait_until(lambda: "ended with code" in training.log, 120, lambda: training.log)
    training.wait("CANCELLED")
    assert "stopped at step" in training.log or f"finished {STEPS}" in training.log
    assert "back to the queue" not in training.log


def test_killed_process_has_the_job_go_on_from_its_checkpoint(
    cluster: SlurmCluster, uninterrupted: Training, tiny_root: Path, tmp_path: Path
) -> None:
    training = Training(cluster, tiny_root, tmp_path)
    wait_until((training.workdir / "checkpoints" / "5").exists, 600, lambda: training.log)
    processes = training.stand_still(after_step=7)
    processes[1].send_signal(signal.SIGKILL)
    processes[0].resume()
    # Not hurried: a minute after such an end Slurm ends the step of that number once more, whichever it is by then.
    training.wait("COMPLETED", "FAILED")
    assert cluster.jobs(training.job)[0]["Restarts"] == "1", training.log
    assert "a process was killed (code 137)" in training.log
    assert "going on from step" in training.log
    assert training.metrics == uninterrupted.metrics


def test_killed_at_once_it_is_not_tried_for_ever(cluster: SlurmCluster, tiny_root: Path, tmp_path: Path) -> None:
    training = Training(cluster, tiny_root, tmp_path, RETRY_AFTER="3600")
    for process in training.stand_still(after_step=1):
        process.send_signal(signal.SIGKILL)
    training.wait("FAILED")
    assert cluster.jobs(training.job)[0]["ExitCode"] == "137:0"


def test_wrong_flag_fails_with_its_line(cluster: SlurmCluster, tiny_root: Path, tmp_path: Path) -> None:
    job = cluster.submit(
        "--gpus-per-node=0",
        "--cpus-per-task=1",
        f"--output={tmp_path}/log",
        SCRIPTS / "train.sbatch",
        *tiny_flags(tiny_root, tmp_path / "run", data__batch_size=-1),
        cwd=REPOSITORY,
        **PYTHON,
    )
    cluster.wait_for(job, "FAILED")
    assert cluster.jobs(job)[0]["ExitCode"] == "2:0"
    assert "error: " in (tmp_path / "log").read_text()


def test_array_shares_the_shards_out(cluster: SlurmCluster, tmp_path: Path) -> None:
    job = render(cluster, tmp_path, "--array=0-1", rows=4, SHARDS_PER_TASK="2")
    cluster.wait_for(job, "COMPLETED", "FAILED", "TIMEOUT")
    shards = [tmp_path / "shards" / f"shard-{number}.h5" for number in range(4)]
    assert sorted((tmp_path / "shards").glob("*.h5*")) == shards, logs(tmp_path)
    assert [len(ShardReader(path)) for path in shards] == [4] * 4
    assert {path.name for path in tmp_path.glob("*.log")} == {f"{job}_0.log", f"{job}_1.log"}


def test_render_task_near_its_time_limit_goes_on_by_itself_and_alone(cluster: SlurmCluster, tmp_path: Path) -> None:
    """The last task of an array has the array's own job number, which must not be requeued as a whole."""
    job = render(cluster, tmp_path, "--array=0-1", rows=150)
    partial = [tmp_path / "shards" / f"shard-{number}.h5.partial" for number in range(2)]
    wait_until(lambda: all(path.exists() for path in partial), 120, lambda: logs(tmp_path))
    cluster.batch_signal(f"{job}_1", "USR1")
    cluster.hurry(f"{job}_1")
    cluster.wait_for(job, "COMPLETED", "FAILED", "TIMEOUT")
    assert set(cluster.states(job)) == {"COMPLETED"}, f"{cluster.jobs(job)}\n{cluster.logs()}\n{logs(tmp_path)}"
    restarts = {fields["ArrayTaskId"]: fields["Restarts"] for fields in cluster.jobs(job)}
    assert restarts == {"0": "0", "1": "1"}
    assert "rows are safe" in (tmp_path / f"{job}_1.log").read_text()
    assert [len(ShardReader(tmp_path / "shards" / f"shard-{number}.h5")) for number in range(2)] == [150, 150]


def render(cluster: SlurmCluster, folder: Path, *options: str, rows: int, **environment: str) -> str:
    return cluster.submit(
        *options,
        "--cpus-per-task=1",
        f"--output={folder}/%A_%a.log",
        SCRIPTS / "render.sbatch",
        f"--config={RENDER_SUBTRACTIVE}",
        f"--output={folder}/shards",
        f"--samples_per_shard={rows}",
        cwd=REPOSITORY,
        **PYTHON | environment,
    )


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in folder.glob("*.log"))


def test_launcher_submits_follows_and_tells(
    cluster: SlurmCluster, tiny_root: Path, sandbox: Sandbox, tmp_path: Path
) -> None:
    config, workdir, *flags = tiny_flags(tiny_root, tmp_path / "Tiny_run", train__steps=3)
    result = subprocess.run(
        ["sh", "scripts/launch.sh", config.removeprefix("--config="), "--slurm", "--stream", "--", workdir, *flags],
        cwd=sandbox.root,
        env=cluster.environment | PYTHON | {"ENV_FILE": "/dev/null", "SBATCH_FLAGS": "--gpus-per-node=0 -c1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    job = said(result)["job"]
    assert cluster.states(job) == ["COMPLETED"]
    assert cluster.jobs(job)[0]["JobName"] == "tiny-run"
    assert said(result)["watch"] == f"tail -F runs/jobs/tiny-run-{job}.log"
    assert "finished 3 steps" in result.stdout
    assert "no faults" in result.stderr  # Of the data, before.
