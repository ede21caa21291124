"""How commands end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.console import cli
from tests.helpers import REPOSITORY, assert_usage_error, run_cli

WITH_A_THREAD = """
import threading
from data_pipeline.console import cli

def main(argv):
    threading.Thread(target=threading.Event().wait).start()
    cli.exit_without_threads()
    print("written before the end")
    {end}

cli.run(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [("return 0", 0, ""), ("return 3", 3, ""), ("cli.fail('no disk', 1)", 1, "error: no disk\n")],
)
def test_a_command_ends_although_a_thread_never_does(end: str, code: int, told: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITH_A_THREAD.format(end=end)], capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, "written before the end\n", told)


def test_a_defect_keeps_its_traceback_although_a_thread_never_ends() -> None:
    script = WITH_A_THREAD.format(end="raise ZeroDivisionError('ours')")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (1, "written before the end\n")
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: ours\n")


def test_a_failure_says_why_to_whoever_catches_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(cli.Failure) as failure:
        cli.fail("no\n disk", 1)
    assert (failure.value.code, failure.value.message) == (1, "no disk")
    assert capsys.readouterr().err == "error: no disk\n"


def test_flags_that_are_missing_are_asked_for_in_one_line() -> None:
    assert_usage_error(run_cli("synthjax.evaluate"), "error: give --workdir (see --help)")
    assert_usage_error(run_cli("data_pipeline.render_shards"), "error: give --config, --output, --shards (")


def told_by_help(module: str) -> str:
    command = [sys.executable, "-m", module, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_help_tells_the_flags_of_all_our_modules_and_is_no_failure() -> None:
    """--plugin, --solver and --coordinator are those of modules that evaluate imports."""
    told = told_by_help("synthjax.evaluate")
    assert all(f"  --{flag}: " in told for flag in ("workdir", "plugin", "solver", "coordinator"))
    assert "--logger_levels" not in told  # absl's own.


def test_help_tells_no_flags_that_a_command_does_not_use() -> None:
    """Several processes train and evaluate together; predict is one."""
    told = told_by_help("synthjax.predict")
    assert all(f"  --{flag}: " in told for flag in ("workdir", "plugin", "solver"))
    assert not [flag for flag in ("coordinator", "process_count", "heartbeat_seconds") if f"--{flag}" in told]


@pytest.mark.parametrize("end", ["sys.exit(3)", "sys.exit()"])
def test_a_config_that_ends_the_program_is_a_failure(tmp_path: Path, end: str) -> None:
    config = tmp_path / "config.py"
    config.write_text(f"import sys\n{end}\n")
    result = subprocess.run(
        [sys.executable, "-m", "data_pipeline.render_shards", "--config", str(config), f"--output={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=REPOSITORY,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: a config file ended the program")


def test_one_is_no_plural() -> None:
    assert [cli.counted(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
