"""How commands end."""

from __future__ import annotations

import os
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
    assert_usage_error(run_cli("synthjax.train"), "error: give --config, --workdir (see --help)")
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


LIMIT = """
import resource
from data_pipeline.console import cli
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 500))
cli.run(lambda argv: print(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""


def run_script(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", script, *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, timeout=300, cwd=REPOSITORY, env=variables)


def test_every_command_may_open_as_many_files_as_the_system_allows() -> None:
    result = run_script(LIMIT)
    assert (result.returncode, result.stdout) == (0, b"(500, 500)\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("OSError(24, 'x', '/a/b')", "error: /a/b: Too many open files: raise the limit of open files (ulimit -n)\n"),
        ("OSError(116, 'x', '/a/b')", "error: /a/b: Stale file handle: look at the disk or its network mount"),
        ("OSError(28, 'x')", "error: No space left on device: make room, or write to another disk\n"),
        ("PermissionError(13, 'x', '/a/b')", "error: /a/b: Permission denied\n"),
    ],
)
def test_an_error_of_the_system_is_one_line(error: str, line: str) -> None:
    script = f"from data_pipeline.console import cli\ndef main(argv):\n    raise {error}\ncli.run(main)"
    result = run_script(script)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.decode().startswith(line)
    assert result.stderr.count(b"\n") == 1


def test_a_file_that_a_defect_does_not_find_keeps_its_traceback() -> None:
    result = run_script("from data_pipeline.console import cli\ncli.run(lambda argv: open('/nowhere'))")
    assert result.returncode == 1
    assert b"Traceback" in result.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {},
    ],
)
@pytest.mark.parametrize("name", ["'Fl\\xf6te'", "os.fsdecode(b'Fl\\xf6te')"])
def test_a_name_that_the_terminal_cannot_show_ends_no_command(name: str, environment: dict[str, str]) -> None:
    main = f"lambda argv: print('made', {name}) or print('seen', {name}, file=sys.stderr)"
    script = f"import os, sys\nfrom data_pipeline.console import cli\ncli.run({main})"
    result = run_script(script, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(b"made Fl")
    assert result.stderr.startswith(b"seen Fl")


def test_names_of_any_bytes_become_text() -> None:
    assert cli.printable(Path("Flöte")) == "Flöte"
    assert cli.printable(os.fsdecode(b"Fl\xf6te")) == "Fl\\udcf6te"


def test_the_home_folder_is_known_after_an_equals_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    arguments = ["--output=~/data", "-o=~", "--config.data.root=~/set", "--shards=0-3", "a=~/b", "~/c", "--tilde=a~/b"]
    cli.expand_home(arguments)
    assert arguments == [
        *("--output=/home/me/data", "-o=/home/me", "--config.data.root=/home/me/set"),
        *("--shards=0-3", "a=~/b", "~/c", "--tilde=a~/b"),
    ]


def test_a_command_writes_to_the_home_folder(tmp_path: Path) -> None:
    flags = ("--output=~/out", "--shards=0", "--samples_per_shard=1", "--workers=1")
    config = "--config=configs/render_dexed.py"
    result = run_cli("data_pipeline.render_shards", config, *flags, cwd=REPOSITORY, HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "shard-0.h5").exists()


def test_one_is_no_plural() -> None:
    assert [cli.counted(count, "shard") for count in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]


PRINTS = "from data_pipeline.console import cli\ncli.run(lambda argv: print('x' * {length}))"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("length", [1, 100_000])  # Python keeps the first in a buffer until the end.
def test_a_full_disk_under_standard_output_is_one_line(length: int, unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", PRINTS.format(length=length)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    line = "error: standard output: No space left on device: make room, or write to another disk\n"
    assert (result.returncode, result.stderr) == (1, line)


TALKS = """
import sys
from data_pipeline.console import cli

def main(argv):
    print("note", "x" * 100_000, file=sys.stderr)
    print("done")
    {end}

cli.run(main)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("end", "code"), [("return 0", 0), ("return 3", 3), ("cli.fail('no', 2)", 2), ("raise ValueError", 1)]
)
def test_a_full_disk_under_standard_error_ends_no_command(end: str, code: int, unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", TALKS.format(end=end)],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            timeout=300,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert (result.returncode, result.stdout) == (code, "done\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("script", [PRINTS.format(length=1), PRINTS.format(length=100_000), "--help"])
def test_a_reader_that_goes_away_ends_a_command_in_silence(script: str, unbuffered: str) -> None:
    """``| head`` closes the pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command = ["-m", "data_pipeline.check", "--help"] if script == "--help" else ["-c", script]
    try:
        result = subprocess.run(
            [sys.executable, *command],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (cli.READER_GONE, "")


def test_a_command_needs_no_standard_output() -> None:
    script = WITH_A_THREAD.format(end="return 3")
    result = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "$1" >&-', "sh", script], capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stderr) == (3, "")


def test_a_deleted_working_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f'cd gone && rmdir ../gone && exec "{sys.executable}" -m data_pipeline.check data'
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment
    )
    assert_usage_error(result, "the working folder was deleted")
