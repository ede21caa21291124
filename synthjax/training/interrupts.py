"""SIGTERM and Ctrl-C as requests to stop after the current step."""

from __future__ import annotations

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from data_pipeline.console.cli import INTERRUPTED

_EXIT_CODES: dict[int, int] = {signal.SIGTERM: 0, signal.SIGINT: INTERRUPTED}


class StopRequest:
    """Catches SIGTERM and SIGINT while active. A second signal has its usual effect at once."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Several processes must stop at the same step: JAX's preemption service, which catches SIGTERM, sees to that.
        mine = _EXIT_CODES if jax.process_count() == 1 else {signal.SIGINT: INTERRUPTED}
        self._previous = {number: signal.signal(number, self._caught) for number in mine}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # Ctrl-C reaches the preemption service as SIGTERM.

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def due(self, step: int) -> bool:
        """Whether to stop after ``step``. All processes get the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """The exit code of a run that was asked to stop: 0 after SIGTERM, 130 after Ctrl-C."""
        return _EXIT_CODES.get(self._signal, 0) if self._signal is not None else 0
