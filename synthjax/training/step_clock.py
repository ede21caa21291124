"""The time of each step, measured by a thread that waits for the devices: the main thread only dispatches steps."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import jax

from data_pipeline.console import cli

# Steps that wait on the devices while they compute another one. With fewer, the devices may have to wait for the host;
# with more, the batches of the waiting steps take more memory.
AHEAD = 4


@dataclass(frozen=True)
class StepTime:
    """Times of one step in seconds: from the end of the step before to its own end, and of waiting for its data."""

    step: int
    seconds: float
    waited: float


class StepClock:
    """Measures steps in the order in which they were started, each from the end of the step before."""

    def __init__(self) -> None:
        self._started: queue.Queue[tuple[int, jax.Array, float] | None] = queue.Queue(AHEAD)
        self._times: deque[StepTime] = deque()
        self._last = time.perf_counter()
        self._thread = threading.Thread(target=self._watch, name="step clock", daemon=True)
        self._thread.start()

    def started(self, step: int, result: jax.Array, waited: float) -> None:
        """Notes a dispatched step. Waits while ``AHEAD`` earlier steps wait for the devices.

        When this returns, all steps up to ``step - AHEAD - 1`` are done.

        Args:
          result: one of the step's results.
          waited: seconds that the step waited for its data.
        """
        self._started.put((step, result, waited))

    def take(self, step: int) -> list[StepTime]:
        """The times of the steps up to ``step``, all of which are done, without those taken before."""
        taken = []
        while self._times and self._times[0].step <= step:
            taken.append(self._times.popleft())
        return taken

    def restart(self) -> None:
        """Waits for all steps. The next step is measured from now on."""
        self._started.join()
        self._last = time.perf_counter()

    def close(self) -> None:
        """Ends the thread. If it still waits for steps, which may never be done, it ends with the command."""
        with suppress(queue.Full):
            self._started.put(None, timeout=1.0)
        self._thread.join(timeout=1.0)
        if self._thread.is_alive():  # Python's usual exit would interrupt the waiting thread and abort.
            cli.exit_without_threads()

    def _watch(self) -> None:
        while (started := self._started.get()) is not None:
            step, result, waited = started
            with suppress(Exception):  # Reading the results of the step raises the error again.
                jax.block_until_ready(result)
            now = time.perf_counter()
            self._times.append(StepTime(step, now - self._last, waited))
            self._last = now
            del started, result  # They would keep device memory until the next step.
            self._started.task_done()
