"""Several processes on this machine that are one run, as a pod's hosts are."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers import REPOSITORY

# Whoever waits for another process waits at most so long.
SECONDS = 300


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_together(
    module: str,
    flags: list[str],
    processes: int = 2,
    devices: int = 1,
    each: dict[int, list[str]] | None = None,
    absent: int = 0,
    within: Sequence[str] = (),
) -> list[subprocess.Popen]:
    """``python -m module`` as so many processes of so many CPU devices.

    Args:
      each: flags of one process beside the others'.
      absent: so many, the last, are not started.
      within: the command that starts each process, such as unshare.
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(REPOSITORY)}
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    started = []
    for index in range(processes - absent):
        place = [coordinator, f"--process_count={processes}", f"--process_index={index}", *(each or {}).get(index, [])]
        command = [*within, sys.executable, "-m", module, *flags, *place]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes))
    return started


def ends(processes: list[subprocess.Popen], seconds: float = SECONDS) -> list[tuple[int, str]]:
    """Exit code and stderr of every process; what takes longer is killed."""
    told = []
    for process in processes:
        try:
            told.append(process.communicate(timeout=seconds)[1])
        except subprocess.TimeoutExpired:
            for late in processes:
                late.kill()
            told.append(process.communicate()[1])
    return list(zip([process.returncode for process in processes], told, strict=True))


def finish(processes: list[subprocess.Popen]) -> None:
    for code, told in ends(processes):
        assert code == 0, told


def records(workdir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
