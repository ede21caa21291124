"""Two processes on one machine (gloo collectives) are one run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import REPOSITORY, run_cli, tiny_flags


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train_together(root: Path, workdir: Path, processes: int = 2, **changes: Any) -> list[subprocess.Popen]:
    flags = [
        *tiny_flags(root, workdir, **changes),
        f"--coordinator=127.0.0.1:{free_port()}",
        f"--process_count={processes}",
    ]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    started = []
    for index in range(processes):
        command = [sys.executable, "-m", "synthjax.train", *flags, f"--process_index={index}"]
        started.append(
            subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
        )  # fmt: skip
    return started


def finish(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def records(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def alone(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    result = run_cli("synthjax.train", *tiny_flags(tiny_root, workdir), cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_multihost_training_gives_the_figures_of_one_process(
    alone: Path, tiny_root: Path, tmp_path: Path, fsdp: bool
) -> None:
    workdir = tmp_path / "run"
    finish(train_together(tiny_root, workdir, mesh__fsdp=fsdp))
    expected, together = records(alone), records(workdir)
    assert [r["step"] for r in together] == [r["step"] for r in expected]
    for first, second in zip(expected, together, strict=True):
        assert first.keys() == second.keys()
        np.testing.assert_allclose(list(second.values()), list(first.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_multihost_run_goes_on_where_one_process_stopped(alone: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    first = tiny_flags(tiny_root, workdir, train__steps=6)
    assert run_cli("synthjax.train", *first, cwd=REPOSITORY).returncode == 0
    finish(train_together(tiny_root, workdir, optim__lr=1e-4))
    assert [r["step"] for r in records(workdir)] == [r["step"] for r in records(alone)]
