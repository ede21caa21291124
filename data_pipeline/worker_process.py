"""The parent's side of one render worker: start it, give it work, hear from it, end it."""

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
from data_pipeline.batch_renderer import Attempt, BatchT, RendererSettings
from data_pipeline.worker_messages import Announced, Failed, Finished, Message, Ready

# Scanning a machine's first plugin, on a cold disk, takes its time.
START_SECONDS = 180.0
# Of what a worker has printed: a traceback of some twenty calls.
MAX_LOG_BYTES = 4000


class WorkerProcess(Generic[BatchT]):
    """One worker. ``batch`` is what it works on, ``attempt`` the render it announced last, ``ready`` its greeting."""

    def __init__(self, settings: RendererSettings[BatchT, Any], render_seconds: float) -> None:
        self.batch: BatchT | None = None
        self.attempt: Attempt | None = None
        self.ready: Ready | None = None
        self._render_seconds = render_seconds
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process.
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "data_pipeline.worker", str(theirs.fileno())],
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
        """Whether it waits for a batch."""
        return self.ready is not None and self.batch is None

    def assign(self, batch: BatchT) -> None:
        """Gives it work."""
        self.batch, self.attempt = batch, None
        self._expect_news()
        self._send(batch)

    def receive(self) -> Message:
        """Its next message, once ``connection`` has one. Raises EOFError where it has died."""
        try:
            message = self.connection.recv()
        except OSError as error:  # It died halfway through a message.
            raise EOFError from error
        self._note(message)
        return message

    def kill(self) -> str:
        """Ends it without asking, and returns the end of what it and its plugin printed. May be repeated."""
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
        """How it ended, such as ``killed by signal 11``, once its pipe is closed."""
        try:
            code = self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"killed by signal {-code}" if code < 0 else f"exited with code {code}"

    def _send(self, item: RendererSettings[BatchT, Any] | BatchT) -> None:
        with contextlib.suppress(OSError):  # It may have died; its end of the pipe will say so.
            self.connection.send(item)

    def _note(self, message: Message) -> None:
        if isinstance(message, Announced):
            self.attempt = message.attempt
            self._expect_news()
        elif isinstance(message, Ready):
            self.ready = message
            self.deadline = math.inf
        elif isinstance(message, Finished):
            self.batch = self.attempt = None
            self.deadline = math.inf
            # A plugin may complain at every render; what it says matters only if it dies. The file's position is
            # shared with the worker.
            self._log.seek(0)
            self._log.truncate()
        elif isinstance(message, Failed):
            self._expect_news()

    def _expect_news(self) -> None:
        self.deadline = time.monotonic() + self._render_seconds


def _environment() -> dict[str, str]:
    """One thread for each worker, for there are as many as cores; this package findable from any folder."""
    root = str(Path(data_pipeline.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)}
