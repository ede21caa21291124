"""Commands that run other commands of the project, as a person would type them."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence


def run_command(target: str, arguments: Sequence[str]) -> int:
    """Prints and runs ``python -m TARGET ARGUMENTS``, or a script if it ends in .py; returns its exit code.

    Ctrl-C reaches the command as well as this process, which leaves it time to save what it has.
    """
    how = [target] if target.endswith(".py") else ["-m", target]
    print(f"\n$ {shlex.join(['python', *how, *arguments])}", flush=True)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.Popen([sys.executable, *how, *arguments]).wait()
    finally:
        signal.signal(signal.SIGINT, before)
