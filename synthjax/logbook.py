"""Records a run step by step without making the device wait for the host."""

from __future__ import annotations

import time

import jax
import numpy as np

from synthjax.console import TrainingDisplay
from synthjax.train_step import NO_BAD_STEP, Metrics
from synthjax.writers import Writers


class NonFinite(Exception):
    """Loss or gradient of ``step`` was NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Logbook:
    """Figures of logged steps go out when the step after them is already under way.

    Args:
      writers: None on processes that write nothing; they still look for non-finite steps.
    """

    def __init__(self, writers: Writers | None, display: TrainingDisplay, batch_size: int) -> None:
        self._writers, self._display, self._batch_size = writers, display, batch_size
        self._pending: tuple[int, Metrics] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts a new interval of the timings: after compilation, validation and checkpoints."""
        self._started, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def stepped(self, step: int, waited: float) -> None:
        """Counts a dispatched step that waited so many seconds for data; sends what was pending."""
        self._steps += 1
        self._waited += waited
        self.flush()
        self._display.step(step)

    def note(self, step: int, metrics: Metrics) -> None:
        """Takes the figures of a logged step, still on their way from the device."""
        self._pending = step, metrics

    def flush(self, validation: dict[str, float] | None = None, step: int | None = None) -> None:
        """Writes what is pending, with the validation figures of the same step where given.

        Raises:
          NonFinite: if a step up to the pending one was.
        """
        record: dict[str, float] = {}
        if self._pending is not None:
            step, metrics = self._pending
            self._pending = None
            record = self._fetch(step, metrics)
        record |= validation or {}
        if record and step is not None and self._writers:
            self._writers.scalars(step, record)

    def _fetch(self, step: int, metrics: Metrics) -> dict[str, float]:
        fetched = jax.device_get(metrics)
        values = {name: fetched[name].item() for name in sorted(fetched, key=lambda name: ("/" in name, name))}
        bad_step = int(values.pop("bad_step"))
        if bad_step != NO_BAD_STEP:
            raise NonFinite(bad_step)
        if self._steps:
            self._timings(step, values["loss"])
        return values

    def _timings(self, step: int, loss: float) -> None:
        seconds = (time.perf_counter() - self._started) / self._steps
        rate = self._batch_size / seconds
        timings = {"samples_per_second": rate, "step_seconds": seconds, "data_wait_seconds": self._waited / self._steps}
        if self._writers:
            self._writers.timings(step, timings)
        self._display.logged(step, loss, rate)
        self.restart_clock()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture."""
        if self._writers:
            self._writers.image(step, name, pixels)

    def sync(self) -> None:
        """Writes what is pending and puts it on disk, before a checkpoint that says it is there."""
        self.flush()
        if self._writers:
            self._writers.flush()
