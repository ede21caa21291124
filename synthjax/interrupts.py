"""SIGTERM and Ctrl-C as requests to stop after the step under way."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from data_pipeline.cli import INTERRUPTED

_EXIT_CODES: dict[int, int] = {signal.SIGTERM: 0, signal.SIGINT: INTERRUPTED}


class StopRequest:
    """Catches SIGTERM and SIGINT while active; a second signal takes its usual effect at once."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        # Several processes agree through JAX's own preemption service, which listens for SIGTERM itself.
        mine = _EXIT_CODES if jax.process_count() == 1 else {signal.SIGINT: INTERRUPTED}
        self._previous = {number: signal.signal(number, self._caught) for number in mine}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._restore()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # What the preemption service listens for.

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def due(self, step: int) -> bool:
        """Whether to stop after ``step``; all processes get the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """What a run that was asked to stop exits with: 0 after SIGTERM, 130 after Ctrl-C."""
        return _EXIT_CODES.get(self._signal, 0) if self._signal is not None else 0
