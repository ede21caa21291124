"""Background commands: started once, followed, stopped, and their exit code reported."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, assert_usage_error, wait_until

SCRIPT = REPOSITORY / "scripts" / "background.sh"
# Waits for SIGTERM and then needs a moment to save.
SAVES = "trap 'sleep 0.3; echo saved; exit 0' TERM; echo ready; while :; do sleep 0.1; done"

Background = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    def run(*arguments: object) -> subprocess.CompletedProcess:
        command = ["sh", SCRIPT, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    yield run
    for path in (tmp_path / "runs" / "jobs").glob("*.pid"):
        if "runs (process" in run("status", path.stem).stdout:
            os.killpg(int(path.read_text()), signal.SIGKILL)


def wait_for(background: Background, words: str) -> None:
    wait_until(lambda: words in background("logs", "job").stdout, seconds=60)


def wait_for_end(background: Background) -> str:
    wait_until(lambda: "(process" not in background("status", "job").stdout, seconds=60)
    return background("status", "job").stdout


def test_command_runs_detached_and_its_output_is_kept(background: Background, tmp_path: Path) -> None:
    started = background("start", "job", "sh", "-c", SAVES)
    assert started.returncode == 0, started.stderr
    process = int(started.stdout)
    wait_for(background, "ready")
    assert os.getpgid(process) == process  # Ctrl-C of the terminal is not for it.
    assert background("status", "job").stdout == f"job runs (process {process})\n"
    assert background("stop", "job").returncode == 0
    assert wait_for_end(background) == "job ended with code 0\n"
    assert background("logs", "job").stdout == "ready\nsaved\n"


def test_arguments_arrive_as_they_are(background: Background) -> None:
    background("start", "job", "printf", "[%s]", "two words", "it's", "*", "")
    wait_for_end(background)
    assert background("logs", "job").stdout == "[two words][it's][*][]"


def test_a_name_runs_once_at_a_time_and_then_again(background: Background) -> None:
    background("start", "job", "sh", "-c", SAVES)
    wait_for(background, "ready")
    assert_usage_error(background("start", "job", "true"), "job runs already")
    background("stop", "job")
    wait_for_end(background)
    assert background("start", "job", "false").returncode == 0
    assert wait_for_end(background) == "job ended with code 1\n"
    assert background("logs", "job").stdout == "ready\nsaved\n"


def test_follow_shows_all_and_ends_with_the_commands_code(background: Background) -> None:
    background("start", "job", "sh", "-c", "echo one; sleep 1; echo two; exit 7")
    result = background("logs", "job", "--follow")
    assert (result.returncode, result.stdout) == (7, "one\ntwo\n")


def test_killed_command_is_told(background: Background) -> None:
    process = int(background("start", "job", "sleep", "300").stdout)
    os.killpg(process, signal.SIGKILL)
    assert wait_for_end(background) == "job was killed\n"
    assert background("logs", "job", "--follow").returncode == 137
    assert_usage_error(background("stop", "job"), "does not run")


def test_number_of_another_process_is_not_taken_for_it(background: Background, tmp_path: Path) -> None:
    """Such as after a reboot."""
    background("start", "job", "true")
    wait_for_end(background)
    (tmp_path / "runs/jobs/job.pid").write_text(f"{os.getpid()}\n")
    assert background("status", "job").stdout == "job ended with code 0\n"
    assert_usage_error(background("stop", "job"), "does not run")


def test_it_outlives_the_session_that_started_it(background: Background, tmp_path: Path) -> None:
    with subprocess.Popen(
        ["sh", "-c", f"sh '{SCRIPT}' start job sleep 300; sleep 300"],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # nohup make test has it ignored.
    ) as shell:
        wait_until(lambda: "runs" in background("status", "job").stdout, shell, seconds=60)
        os.killpg(shell.pid, signal.SIGHUP)
        shell.wait(timeout=60)
    time.sleep(0.5)
    assert "job runs (process" in background("status", "job").stdout


def test_wrong_use_is_one_line(background: Background) -> None:
    assert_usage_error(background(), "--help")
    assert_usage_error(background("begin", "job"), "begin")
    assert_usage_error(background("start", "job"), "name a command")
    assert_usage_error(background("start", "../job", "true"), "'../job'")
    assert_usage_error(background("status"), "''")
    assert_usage_error(background("logs", "job"), "never started")
    assert background("status", "job").stdout == "job was never started here\n"
