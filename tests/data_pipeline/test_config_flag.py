"""Which config a command line names, and what is told where it names none or a wrong key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPOSITORY, assert_usage_error

CONFIG = """
import ml_collections

def get_config(arg=""):
    return ml_collections.ConfigDict({"variant": arg, "data": {"batch_size": 1}})
"""
COMMAND = """
from data_pipeline import cli, config_flag

config_flag.define(default={default!r})
cli.run(lambda argv: print(config_flag.read().to_json()))
"""


def run(folder: Path, default: str | None, *arguments: str) -> subprocess.CompletedProcess:
    """A command with this default, in a folder that has the config ``here.py``."""
    (folder / "here.py").write_text(CONFIG)
    command = [sys.executable, "-c", COMMAND.format(default=default), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "variant", "batch_size"),
    [
        ((), "default", 1),
        (("--config.data.batch_size=4",), "default", 4),
        (("--config=here.py:named",), "named", 1),
        (("--config=here.py:named", "--config.data.batch_size=4"), "named", 4),
        (("-config", "here.py:named", "--config.data.batch_size=4"), "named", 4),
    ],
)
def test_the_default_is_read_where_no_config_is_named(
    tmp_path: Path, arguments: tuple[str, ...], variant: str, batch_size: int
) -> None:
    result = run(tmp_path, "here.py:default", *arguments)
    assert result.returncode == 0, result.stderr
    expected: dict[str, Any] = {"variant": variant, "data": {"batch_size": batch_size}}
    assert json.loads(result.stdout) == expected


@pytest.mark.parametrize(
    ("default", "arguments", "words"),
    [
        ("here.py", ("--config.data.rows=4",), ("unknown config key 'data.rows'", "there are batch_size")),
        ("here.py", ("--config.data.batch_size=four",), ("data.batch_size",)),
        ("none.py", (), ("the config cannot be read", "none.py")),
        ("none.py", ("--config.data.batch_size=4",), ("none.py",)),
        (None, (), ("--config",)),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path, default: str | None, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_usage_error(run(tmp_path, default, *arguments), *words)
