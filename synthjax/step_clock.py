"""When each step was done, told by a thread that waits for the devices in place of the one that feeds them."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import jax

from data_pipeline import cli

# Steps that wait on the devices beside the one they compute: enough for the devices never to wait for the host, few
# enough for the batches that these steps hold.
AHEAD = 4


@dataclass(frozen=True)
class StepTime:
    """Of one step, in seconds: from the end of the one before it to its own, and of the host waiting for its data."""

    step: int
    seconds: float
    waited: float


class StepClock:
    """Times the steps in the order in which they were started. A step counts from the end of the one before it."""

    def __init__(self) -> None:
        self._started: queue.Queue[tuple[int, jax.Array, float] | None] = queue.Queue(AHEAD)
        self._times: deque[StepTime] = deque()
        self._last = time.perf_counter()
        self._thread = threading.Thread(target=self._watch, name="step clock", daemon=True)
        self._thread.start()

    def started(self, step: int, result: jax.Array, waited: float) -> None:
        """Takes note of a dispatched step by one of its results; waits while ``AHEAD`` steps are waiting before it.

        When this returns, all steps up to ``step - AHEAD - 1`` are done.
        """
        self._started.put((step, result, waited))

    def take(self, step: int) -> list[StepTime]:
        """The times of the steps up to ``step``, all done, that were not taken before."""
        taken = []
        while self._times and self._times[0].step <= step:
            taken.append(self._times.popleft())
        return taken

    def restart(self) -> None:
        """Waits for all steps; what passes until now counts for none of them."""
        self._started.join()
        self._last = time.perf_counter()

    def close(self) -> None:
        """Ends the thread; one that still waits for steps, which may never be done, ends with the command."""
        with suppress(queue.Full):
            self._started.put(None, timeout=1.0)
        self._thread.join(timeout=1.0)
        if self._thread.is_alive():  # Python's own end would break into its waiting, and abort.
            cli.exit_without_threads()

    def _watch(self) -> None:
        while (started := self._started.get()) is not None:
            step, result, waited = started
            with suppress(Exception):  # Whoever reads the results of the step is told.
                jax.block_until_ready(result)
            now = time.perf_counter()
            self._times.append(StepTime(step, now - self._last, waited))
            self._last = now
            del started, result  # Else they would be held until the next step.
            self._started.task_done()
