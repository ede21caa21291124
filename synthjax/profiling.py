"""A trace of some steps for XProf (TensorBoard's Profile tab), asked for as --config.profile=100:110."""

from __future__ import annotations

import re
from pathlib import Path

import jax

from data_pipeline.cli import UserError


def parse_window(text: str) -> range:
    """``100:110`` is steps 100 to 109; nothing for an empty text. Raises UserError."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if text and (match is None or int(match[1]) >= int(match[2])):
        raise UserError(f"profile={text!r} must be FIRST:END steps, such as 100:110")
    return range(int(match[1]), int(match[2])) if match else range(0)


class Profiler:
    """Traces the steps of a window that lie ahead; one trace for every process."""

    def __init__(self, window: range, folder: Path) -> None:
        self._window, self._folder, self._running = window, folder, False

    def due(self, step: int) -> bool:
        """Whether the trace begins or ends before ``step`` is dispatched."""
        return (step in self._window) != self._running

    def switch(self) -> None:
        """Begins or ends it."""
        if self._running:
            self.close()
        else:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def annotated(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The context of one step, by which XProf tells steps apart."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def close(self) -> None:
        """Writes the trace under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
