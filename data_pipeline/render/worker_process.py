"""The parent's side of one render worker: starts the process, sends it work, receives its messages, ends it."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Generic

import data_pipeline
from data_pipeline.console.machine import keep_freed_memory
from data_pipeline.render.worker_messages import Announced, Attempt, BatchT, Finished, Message, Ready, WorkerSettings

# A machine's first scan of a plugin on a cold disk takes long.
START_SECONDS = 180.0
# The end of a worker's output that is kept: a traceback of about twenty calls.
MAX_LOG_BYTES = 4000


class WorkerProcess(Generic[BatchT]):
    """One worker.

    ``batch`` is the batch it works on, ``attempt`` the attempt it announced last, ``ready`` its first message. Past
    ``deadline`` (of ``time.monotonic``) it counts as hung.
    """

    def __init__(self, settings: WorkerSettings[BatchT, Any], render_seconds: float) -> None:
        self.batch: BatchT | None = None
        self.attempt: Attempt | None = None
        self.ready: Ready | None = None
        self._render_seconds = render_seconds
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process.
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data_pipeline.render.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[theirs.fileno()],
            env=_environment(),
        )
        theirs.close()
        self.deadline = time.monotonic() + START_SECONDS
        self._send(settings)

    @property
    def idle(self) -> bool:
        """Whether the worker waits for a batch."""
        return self.ready is not None and self.batch is None

    def assign(self, batch: BatchT) -> None:
        """Sends the worker a batch."""
        self.batch, self.attempt = batch, None
        self.deadline = time.monotonic() + self._render_seconds
        self._send(batch)

    def receive(self) -> Message:
        """Returns the worker's next message, waiting for it. Raises EOFError where the worker has died."""
        try:
            message = self.connection.recv()
        except OSError as error:  # It died halfway through a message.
            raise EOFError from error
        self.deadline = time.monotonic() + self._render_seconds
        if isinstance(message, Announced):
            self.attempt = message.attempt
        elif isinstance(message, Ready):
            self.ready = message
            self.deadline = math.inf
        elif isinstance(message, Finished):
            self.batch = self.attempt = None
            self.deadline = math.inf
            # A plugin may print at every render, which matters only if it dies. The worker shares the file's position.
            self._log.seek(0)
            self._log.truncate()
        return message

    def kill(self) -> str:
        """Ends the worker at once. Returns the end of its and its plugin's output. May be called again."""
        if self._log.closed:
            return ""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - MAX_LOG_BYTES))
        log = self._log.read().decode(errors="replace").strip()
        self._log.close()
        return log

    def exit_text(self) -> str:
        """How the worker ended, such as ``killed by signal 11``. Call it once the pipe is closed."""
        try:
            code = self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"killed by signal {-code}" if code < 0 else f"exited with code {code}"

    def _send(self, item: WorkerSettings[BatchT, Any] | BatchT) -> None:
        with contextlib.suppress(OSError):  # Where the worker has died, ``receive`` says so.
            self.connection.send(item)


def _environment() -> dict[str, str]:
    """One thread a worker, since there are as many workers as cores; this package on the path of any folder."""
    root = str(Path(data_pipeline.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    keep_freed_memory()
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)}
