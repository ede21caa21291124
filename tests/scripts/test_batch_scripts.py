"""Error messages of the batch scripts, before they start anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, assert_usage_error

SCRIPTS = REPOSITORY / "scripts" / "slurm"


def run_by_hand(name: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    return subprocess.run(
        ["sh", SCRIPTS / name], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=60
    )


TASK = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}


@pytest.mark.parametrize("name", ["train.sbatch", "render.sbatch"])
def test_batch_scripts_say_how_they_are_used(name: str, tmp_path: Path) -> None:
    assert_usage_error(run_by_hand(name), "sbatch", f"scripts/slurm/{name}", "--config=")
    assert_usage_error(run_by_hand(name, tmp_path, **TASK), "root of the repository", str(tmp_path))
    assert_usage_error(run_by_hand(name, PYTHON="/nowhere/python", **TASK), "/nowhere/python", "PYTHON")


@pytest.mark.parametrize("value", ["0", "many", "-1", "1x"])
def test_shards_per_task_is_a_number(value: str) -> None:
    result = run_by_hand("render.sbatch", SHARDS_PER_TASK=value, PYTHON=sys.executable, **TASK)
    assert_usage_error(result, f"SHARDS_PER_TASK={value}")
