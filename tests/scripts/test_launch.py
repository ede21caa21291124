"""launch.sh for every target: its checks, the commands it starts, its output, and secrets that it never prints."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import assert_usage_error, tiny_flags
from tests.scripts.launching import SECRETS, Sandbox, error_lines, said

CONFIG = "configs/flow_100k.py:steps=500k,lr_low"
NAME = "flow_100k-steps-500k-lr_low"
JOB = "flow-100k-steps-500k-lr-low"
BUCKETS = {"DATA": "gs://bucket/data", "RUNS": "gs://bucket/runs"}
ON_TPU = {**BUCKETS, "TPU_ZONE": "us-central1-a"}
ON_OVH = {
    "DATA": "s3://bucket/data",
    "RUNS": "s3://bucket/runs",
    "OVH_IMAGE": "registry/train:1",
    "OVH_DATASTORE": "S3GRA",
}


def launch(sandbox: Sandbox, *arguments: object, alone: bool = False, **changes: str) -> subprocess.CompletedProcess:
    return sandbox.run("launch.sh", *arguments, alone=alone, **changes)


def flags(workdir: str = f"runs/{NAME}", *more: str) -> list[str]:
    return [f"--config={CONFIG}", *more, f"--workdir={workdir}"]


class TestUsage:
    def test_config_is_needed_once(self, sandbox: Sandbox) -> None:
        assert_usage_error(launch(sandbox), "configs/flow_100k.py", "--help")
        assert_usage_error(launch(sandbox, "a.py", "b.py"), "one CONFIG", "b.py")

    def test_flags_of_training_follow_two_dashes(self, sandbox: Sandbox) -> None:
        assert_usage_error(launch(sandbox, CONFIG, "--config.seed=1"), "--config.seed=1", "--")

    def test_a_workdir_must_give_the_job_a_name(self, sandbox: Sandbox) -> None:
        sandbox.python()
        assert_usage_error(launch(sandbox, CONFIG, "--", "--workdir=/"), "--workdir=/", "FOLDER/NAME")


class TestChecks:
    """Checks come before anything that costs money."""

    @pytest.mark.parametrize(
        ("target", "missing"),
        [
            ("--slurm", ["sbatch is missing", "squeue is missing", "scancel is missing"]),
            ("--tpu", ["gcloud is missing", "TPU_ZONE is not set", "needs --workdir or RUNS in a bucket"]),
            ("--sky", ["sky is missing", "needs --workdir or RUNS in a bucket"]),
            (
                "--ovh",
                [
                    "ovhai is missing",
                    "docker is missing",
                    "OVH_IMAGE is not set",
                    "OVH_DATASTORE is not set",
                    "needs --workdir or RUNS in a bucket",
                ],
            ),
        ],
    )
    def test_all_that_is_missing_is_named_a_line_each(self, sandbox: Sandbox, target: str, missing: list[str]) -> None:
        sandbox.python()
        lines = error_lines(launch(sandbox, CONFIG, target, alone=True))
        assert len(lines) == len(missing)
        for line, words in zip(lines, missing, strict=True):
            assert line.startswith("error: ")
            assert words in line
        assert sandbox.calls() == []

    def test_docker_is_not_missed_where_nothing_is_built(self, sandbox: Sandbox) -> None:
        sandbox.python()
        lines = error_lines(launch(sandbox, CONFIG, "--ovh", "--skip-build", alone=True, **ON_OVH))
        assert ["docker" in line for line in lines] == [False]

    def test_missing_interpreter_is_named(self, sandbox: Sandbox) -> None:
        assert_usage_error(launch(sandbox, CONFIG, PYTHON="/nowhere/python"), "/nowhere/python", "make .venv")

    @pytest.mark.parametrize("target", ["--tpu", "--sky"])
    def test_key_of_weights_and_biases_is_missed_where_it_is_used(self, sandbox: Sandbox, target: str) -> None:
        sandbox.python()
        for program in ("gcloud", "sky"):
            sandbox.program(program)
        assert_usage_error(launch(sandbox, CONFIG, target, "--", "--config.wandb=True", **ON_TPU), "WANDB_API_KEY")

    @pytest.mark.parametrize(("target", "scheme"), [("--tpu", "gs"), ("--sky", "gs"), ("--ovh", "s3")])
    def test_clouds_do_not_see_folders_of_this_machine(self, sandbox: Sandbox, target: str, scheme: str) -> None:
        sandbox.python(data="data/local")
        for program in ("gcloud", "sky", "ovhai", "docker"):
            sandbox.program(program)
        keys = {**ON_TPU, **ON_OVH, "RUNS": f"{scheme}://bucket/runs", "DATA": "data/local"}
        result = launch(sandbox, CONFIG, target, **keys)
        assert_usage_error(result, target, "--config.data.root or DATA", "'data/local'", f"{scheme}://BUCKET/FOLDER")

    def test_an_account_of_ovh_is_needed(self, sandbox: Sandbox) -> None:
        sandbox.python()
        sandbox.program("docker")
        sandbox.program("ovhai", "exit 1")
        assert_usage_error(launch(sandbox, CONFIG, "--ovh", **ON_OVH), "ovhai login")

    @pytest.mark.slow
    def test_wrong_config_is_told_before_anything_else(self, sandbox: Sandbox) -> None:
        result = launch(sandbox, "configs/flow_100k.py", "--", "--config.data.batch_size=-1", PYTHON=sys.executable)
        assert_usage_error(result, "data.batch_size=-1")

    def test_faulty_local_data_end_it(self, sandbox: Sandbox) -> None:
        sandbox.python(data="data/faulty", check=1)
        for program in ("sbatch", "squeue", "scancel"):
            sandbox.program(program)
        assert_usage_error(launch(sandbox, CONFIG, "--slurm"), "data/faulty", "not fit")
        assert ["-m", "data_pipeline.check", "data/faulty", "--spec=surge_simple"] in sandbox.calls("python")
        assert sandbox.calls("sbatch") == []

    def test_data_set_in_a_bucket_must_be_whole(self, sandbox: Sandbox) -> None:
        sandbox.python(data="gs://bucket/data", files="val.h5 nested/train.h5")
        sandbox.program("sky")
        lines = error_lines(launch(sandbox, CONFIG, "--sky", **BUCKETS))
        assert [line.split("holds no ")[1].split(":")[0] for line in lines] == ["train.h5", "stats.npz"]
        assert ["-m", "data_pipeline.storage", "ls", "gs://bucket/data"] in sandbox.calls("python")
        assert sandbox.calls("sky") == []

    def test_checks_of_data_can_be_skipped(self, sandbox: Sandbox) -> None:
        sandbox.python(data="data/faulty", check=1)
        result = launch(sandbox, CONFIG, "--local", "--skip-check")
        assert result.returncode == 0, result.stderr

    def test_without_data_none_are_checked(self, sandbox: Sandbox) -> None:
        """The k-osc task."""
        sandbox.python(data="")
        assert launch(sandbox, CONFIG, "--local").returncode == 0
        assert ["data_pipeline" in " ".join(call) for call in sandbox.calls("python")].count(True) == 0


class TestFlags:
    def test_data_and_runs_come_from_the_environment(self, sandbox: Sandbox) -> None:
        sandbox.python()
        launch(sandbox, CONFIG, DATA="data/set", RUNS="elsewhere/")
        expected = flags(f"elsewhere/{NAME}", "--config.data.root=data/set")
        assert sandbox.calls("python")[0] == ["scripts/data_of_run.py", *expected]

    def test_or_from_an_env_file(self, sandbox: Sandbox, tmp_path: Path) -> None:
        sandbox.python()
        (tmp_path / "keys").write_text("DATA=data/set\nRUNS='my runs'\n")
        launch(sandbox, CONFIG, ENV_FILE=str(tmp_path / "keys"))
        expected = flags(f"my runs/{NAME}", "--config.data.root=data/set")
        assert sandbox.calls("python")[0] == ["scripts/data_of_run.py", *expected]

    def test_flags_go_before_the_environment(self, sandbox: Sandbox) -> None:
        sandbox.python()
        given = ["--workdir", "runs/mine", "--config.data.root=data/mine", "--config.seed=1"]
        launch(sandbox, CONFIG, "--", *given, DATA="data/set", RUNS="elsewhere")
        assert sandbox.calls("python")[0] == ["scripts/data_of_run.py", f"--config={CONFIG}", *given]


class TestLocal:
    def test_trains_in_the_background_and_says_how_to_watch_and_stop(self, sandbox: Sandbox) -> None:
        sandbox.program("python", 'case "$*" in *synthjax.train*) echo trained; sleep 300 & wait ;; esac')
        result = launch(sandbox, CONFIG, "--", "--config.note=it's two words")
        assert result.returncode == 0, result.stderr
        told = said(result)
        assert told["job"].startswith(f"{JOB} (process ")
        assert told["watch"] == f"scripts/background.sh logs {JOB} --follow"
        assert told["status"] == f"scripts/background.sh status {JOB}"
        assert told["stop"] == f"scripts/background.sh stop {JOB}"
        try:
            log = sandbox.root / "runs" / "jobs" / f"{JOB}.log"
            deadline = time.monotonic() + 60
            while "trained" not in (log.read_text() if log.exists() else ""):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            expected = ["-m", "synthjax.train", *flags(), "--config.note=it's two words"]
            assert sandbox.calls("python")[-1] == expected
            again = launch(sandbox, CONFIG)
            assert_usage_error(again, f"{JOB} runs already", "stop")
        finally:
            assert sandbox.run("background.sh", "stop", JOB).returncode == 2  # From another folder it is unknown.
            stopped = sandbox_background(sandbox, "stop", JOB)
            assert stopped.returncode == 0, stopped.stderr

    def test_stream_follows_and_ends_with_the_runs_code(self, sandbox: Sandbox) -> None:
        sandbox.program("python", 'case "$*" in *synthjax.train*) echo step 1; sleep 1; echo step 2; exit 3 ;; esac')
        result = launch(sandbox, CONFIG, "--stream")
        assert result.returncode == 3
        assert result.stdout.splitlines()[-2:] == ["step 1", "step 2"]


def sandbox_background(sandbox: Sandbox, *arguments: str) -> subprocess.CompletedProcess:
    command = ["sh", "scripts/background.sh", *arguments]
    return subprocess.run(command, cwd=sandbox.root, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_real_training_runs_to_its_end(sandbox: Sandbox, tiny_root: Path, tmp_path: Path) -> None:
    config, *flags = tiny_flags(tiny_root, tmp_path / "run", train__steps=2)
    arguments = [config.removeprefix("--config="), "--stream", "--", *flags]
    result = subprocess.run(
        ["sh", "scripts/launch.sh", *arguments],
        cwd=sandbox.root,
        env=sandbox.environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    assert "no faults" in result.stderr
    assert "finished 2 steps" in result.stdout
    assert sandbox_background(sandbox, "status", "run").stdout == "run ended with code 0\n"


class TestSlurm:
    def test_submits_and_tells(self, sandbox: Sandbox) -> None:
        python = sandbox.python()
        sandbox.program("sbatch", "echo '123;cluster'; echo $PYTHON >&2")
        for program in ("squeue", "scancel"):
            sandbox.program(program)
        result = launch(sandbox, CONFIG, "--slurm", "--", "--config.seed=1", SBATCH_FLAGS="--nodes=2 --time=60")
        assert (result.returncode, result.stderr) == (0, f"{python}\n")
        assert sandbox.calls("sbatch") == [
            [
                "--parsable",
                f"--job-name={JOB}",
                "--output=runs/jobs/%x-%j.log",
                "--dependency=singleton",
                "--nodes=2",
                "--time=60",
                "scripts/slurm/train.sbatch",
                *flags(),
                "--config.seed=1",
            ]
        ]
        assert said(result) == {
            "job": "123",
            "watch": f"tail -F runs/jobs/{JOB}-123.log",
            "status": "squeue --job=123",
            "stop": "scancel 123",
        }
        assert (sandbox.root / "runs" / "jobs").is_dir()

    def test_refused_submission_ends_it(self, sandbox: Sandbox) -> None:
        sandbox.python()
        sandbox.program("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
        for program in ("squeue", "scancel"):
            sandbox.program(program)
        result = launch(sandbox, CONFIG, "--slurm")
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == "sbatch: error: invalid partition\n"

    @pytest.mark.slow
    def test_stream_follows_until_the_job_is_gone(self, sandbox: Sandbox) -> None:
        sandbox.python()
        log = f"runs/jobs/{JOB}-7.log"
        sandbox.program("sbatch", f"echo step 1 >{log}; echo 7")
        sandbox.program("squeue", f'[ "$number" -gt 4 ] || {{ echo step 2 >>{log}; echo 7; }}')
        sandbox.program("scancel")
        result = launch(sandbox, CONFIG, "--slurm", "--stream")
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[4:6] == ["step 1", "step 2"]


class TestSky:
    LAUNCHED = "echo 'Job submitted, ID: 41'; printf '\\n📋 Useful Commands\\nManaged Job ID: 42\\n'"

    def test_submits_a_managed_job(self, sandbox: Sandbox) -> None:
        sandbox.python(data="gs://bucket/data")
        sandbox.program("sky", self.LAUNCHED)
        result = launch(
            sandbox, CONFIG, "--sky", "--", "--config.note=it's", **BUCKETS, SKY_FLAGS="--num-nodes 2 --infra gcp"
        )
        assert result.returncode == 0, result.stderr
        extra = f"'--config.data.root=gs://bucket/data' '--workdir=gs://bucket/runs/{NAME}' '--config.note=it'\\''s' "
        assert sandbox.calls("sky") == [
            [
                *["jobs", "launch", "--name", JOB, "--yes", "--detach-run"],
                *["--env", f"CONFIG={CONFIG}", "--env", f"WORKDIR=gs://bucket/runs/{NAME}"],
                *["--env", "DATA=gs://bucket/data", "--env", f"FLAGS={extra}"],
                *["--num-nodes", "2", "--infra", "gcp", "scripts/sky/train_gpu.yaml"],
            ]
        ]
        assert said(result)["job"] == "42"
        assert said(result)["watch"] == "sky jobs logs 42"
        assert said(result)["status"] == "sky jobs queue"
        assert said(result)["stop"] == "sky jobs cancel 42"

    def test_secrets_go_by_name_and_only_where_they_are_used(self, sandbox: Sandbox) -> None:
        sandbox.python(data="gs://bucket/data")
        sandbox.program("sky", self.LAUNCHED)
        launch(sandbox, CONFIG, "--sky", **BUCKETS, **SECRETS)
        call = sandbox.calls("sky")[0]
        assert [call[i + 1] for i, word in enumerate(call) if word == "--secret"] == ["WANDB_API_KEY"]
        buckets = {"DATA": "s3://bucket/data", "RUNS": "s3://bucket/runs", "AWS_ENDPOINT_URL_S3": "https://s3.test"}
        sandbox.python(data="s3://bucket/data")
        launch(sandbox, CONFIG, "--sky", **buckets, **SECRETS)
        call = sandbox.calls("sky")[1]
        assert [call[i + 1] for i, word in enumerate(call) if word == "--secret"] == list(SECRETS)
        assert call[-3:] == ["--env", "AWS_ENDPOINT_URL_S3", "scripts/sky/train_gpu.yaml"]

    def test_another_task_file_and_its_log(self, sandbox: Sandbox) -> None:
        sandbox.python(data="gs://bucket/data")
        sandbox.program("sky", 'case "$*" in *launch*) echo started ;; *) echo a line of the log ;; esac')
        result = launch(sandbox, CONFIG, "--sky", "--stream", **BUCKETS, SKY_TASK="train_tpu.yaml")
        first, second = sandbox.calls("sky")
        assert first[-1] == "scripts/sky/train_tpu.yaml"
        assert second == ["jobs", "logs", "-n", JOB]  # No id was told.
        assert said(result)["stop"] == f"sky jobs cancel -n {JOB}"
        assert result.stdout.endswith("a line of the log\n")

    def test_refused_submission_ends_it(self, sandbox: Sandbox) -> None:
        sandbox.python(data="gs://bucket/data")
        sandbox.program("sky", "echo no cloud >&2; exit 5")
        result = launch(sandbox, CONFIG, "--sky", **BUCKETS)
        assert (result.returncode, result.stdout, result.stderr) == (5, "", "no cloud\n")


class TestOvh:
    def test_builds_pushes_and_runs(self, sandbox: Sandbox) -> None:
        sandbox.python(data="s3://bucket/data")
        sandbox.program("docker")
        sandbox.program("ovhai", """case "$*" in *run*) echo '{"id": "job-7"}' ;; *logs*) echo a line ;; esac""")
        result = launch(sandbox, CONFIG, "--ovh", "--stream", **ON_OVH)
        assert result.returncode == 0, result.stderr
        build = ["build", "--platform=linux/amd64", "--file=scripts/docker/train-gpu.Dockerfile"]
        assert sandbox.calls("docker") == [[*build, "--tag=registry/train:1", "."], ["push", "registry/train:1"]]
        me, run, logs = sandbox.calls("ovhai")
        assert me == ["me"]
        assert run[:2] == ["job", "run"]
        assert run[run.index("--name") + 1] == JOB
        assert logs == ["job", "logs", "job-7", "--follow"]
        assert said(result)["job"] == "job-7"
        assert said(result)["stop"] == "scripts/ovh.sh stop job-7"
        assert result.stdout.endswith("a line\n")

    def test_build_can_be_skipped(self, sandbox: Sandbox) -> None:
        sandbox.python(data="s3://bucket/data")
        sandbox.program("docker")
        sandbox.program("ovhai", """case "$*" in *run*) echo '{"id": "job-7"}' ;; esac""")
        assert launch(sandbox, CONFIG, "--ovh", "--skip-build", **ON_OVH).returncode == 0
        assert sandbox.calls("docker") == []

    @pytest.mark.parametrize("step", ["build", "push"])
    def test_failed_build_starts_nothing(self, sandbox: Sandbox, step: str) -> None:
        sandbox.python(data="s3://bucket/data")
        sandbox.program("docker", f'[ "$1" != {step} ] || exit 9')
        sandbox.program("ovhai")
        assert launch(sandbox, CONFIG, "--ovh", **ON_OVH).returncode == 9
        assert sandbox.calls("ovhai") == [["me"]]


class TestTpu:
    def test_makes_the_slice_installs_and_runs(self, sandbox: Sandbox) -> None:
        sandbox.python(data="gs://bucket/data")
        sandbox.program("git", "echo README.md")
        (sandbox.root / "README.md").touch()
        sandbox.program("gcloud", 'case "$*" in *"tpu-vm describe"*) echo READY ;; esac')
        result = launch(sandbox, CONFIG, "--tpu", "--stream", **ON_TPU)
        assert result.returncode == 0, result.stderr
        actions = [call[3] for call in sandbox.calls("gcloud")]
        assert actions == ["describe", "scp", "ssh", "ssh", "ssh"]
        assert said(result)["job"] == "synthjax in us-central1-a"
        assert said(result)["watch"] == "scripts/tpu_pod.sh logs --follow"
        assert "scripts/tpu_pod.sh delete" in said(result)["stop"]


@pytest.mark.parametrize("target", ["--local", "--slurm", "--tpu", "--sky", "--ovh"])
def test_no_secret_is_ever_shown_or_written(sandbox: Sandbox, tmp_path: Path, target: str) -> None:
    url = "s3" if target == "--ovh" else "gs"
    sandbox.python(data=f"{url}://bucket/data")
    sandbox.program("git", "echo README.md")
    (sandbox.root / "README.md").touch()
    sandbox.program("gcloud", 'case "$*" in *"tpu-vm describe"*) echo READY ;; esac')
    sandbox.program("ovhai", """case "$*" in *run*) echo '{"id": "job-7"}' ;; esac""")
    sandbox.program("sbatch", "echo 123")
    for program in ("squeue", "scancel", "docker"):
        sandbox.program(program)
    sandbox.program("sky", TestSky.LAUNCHED)
    keys = {**ON_TPU, **ON_OVH, **SECRETS, "DATA": f"{url}://bucket/data", "RUNS": f"{url}://bucket/runs"}
    result = launch(sandbox, CONFIG, target, "--stream", "--", "--config.wandb=True", **keys, TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    for value in SECRETS.values():
        assert value not in result.stdout + result.stderr + sandbox.everything_written()
