"""Runs commands of the project in forks of one Python that has imported their libraries.

A command that imports JAX, Flax and Orbax spends two seconds of processor time on that, and most commands of the tests
little on anything else. A fork is a process of its own, with its own arguments, environment, folder and exit code. Only
the imports are shared. Variables that a library reads while it is imported must not differ from the server's own.

The server reads requests from its standard input, a JSON object a line, and answers each with an exit code.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

LIBRARIES = [
    "absl.app",
    "absl.flags",
    "etils.epath",
    "flax.nnx",
    "grain",
    "h5py",
    "hdf5plugin",
    "jax",
    "jax.numpy",
    "jax.experimental.multihost_utils",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "ml_collections.config_flags",
    "numpy",
    "optax",
    "orbax.checkpoint.experimental.v1",
    "PIL.Image",
    "pyloudnorm",
    "rich.progress",
    "scipy.fft",
    "scipy.optimize",
    "scipy.signal",
    "soundfile",
    "soxr",
    "tensorboardX",
]
READ_AT_IMPORT = re.compile("JAX|XLA|NPROC|PYTHON|HDF5|OMP|LD_|MPL|TF_")


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that libraries read while they are imported."""
    return {name: value for name, value in environment.items() if READ_AT_IMPORT.match(name)}


class CommandServer:
    """A server with the present environment; ended with this process."""

    def __init__(self, repository: Path) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(repository)}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=repository,
            start_new_session=True,
        )
        atexit.register(self.close)

    def close(self) -> None:
        """Kills the server and the command that it runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a command in this environment finds the libraries as it would import them itself."""
        return read_at_import(environment) == read_at_import(self.environment)

    def run(
        self, command: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess:
        """Runs ``python COMMAND``, of ``-m MODULE ...`` or ``SCRIPT ...``. Raises TimeoutExpired."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            fds = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
            request = {"command": command, "cwd": str(cwd), "environment": dict(environment), "files": fds}
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], timeout)
            if not ready:
                self.close()
                raise subprocess.TimeoutExpired(command, timeout)
            code = int(self._process.stdout.readline())
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess(command, code, *texts)


def serve() -> None:
    """Serves requests until the standard input ends."""
    for name in LIBRARIES:
        __import__(name)
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # No backend has started, so no thread is lost.
    gc.freeze()  # Else the collector of a fork would touch, and so copy, all that was imported.
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run_command(**request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run_command(command: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> NoReturn:
    """Does what ``python COMMAND`` does, of ``-m MODULE ...`` or ``SCRIPT ...``, and ends this process.

    The interpreter is not torn down, which would take a second for all that was imported.
    """
    for descriptor, path in enumerate(["/dev/null", *files]):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    module = command[1] if command[0] == "-m" else None
    sys.argv = command[1:] if module else command
    sys.path[0] = cwd if module else str(Path(cwd, command[0]).parent)
    code = 0
    try:
        if module:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
