"""Signals as requests to stop after the current step: SIGTERM, Ctrl-C, SIGUSR1 (Slurm, SGE), SIGHUP (lost terminal)."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from data_pipeline.console.cli import INTERRUPTED

_EXIT_CODES: dict[int, int] = {
    signal.SIGTERM: 0,
    signal.SIGINT: INTERRUPTED,
    signal.SIGUSR1: 0,
    signal.SIGHUP: 0,
}


class StopRequest:
    """Catches the signals while active. A second Ctrl-C has its usual effect at once.

    The others may come again, as clusters send them, and must not end the run before it has saved.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Several processes must stop at the same step: JAX's preemption service, which catches SIGTERM, sees to that.
        mine = set(_EXIT_CODES) - ({signal.SIGTERM} if jax.process_count() > 1 else set())
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # By nohup: the run outlives its terminal.
            mine.remove(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._caught) for number in mine}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # After a request the command only closes its logs: a signal that comes again must not cut that short.
            ignored = self._signal is not None and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if ignored else handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            return
        self._signal = number
        signal.signal(signal.SIGINT, self._previous[signal.SIGINT])
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # The signal reaches the preemption service as SIGTERM.

    def due(self, step: int) -> bool:
        """Whether to stop after ``step``. All processes get the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a run that was asked to stop: 130 after Ctrl-C, else 0."""
        return _EXIT_CODES.get(self._signal, 0) if self._signal is not None else 0
