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
        self._pending: tuple[int, Metrics] | None = None  # On the device.
        self._record: tuple[int, dict[str, float]] | None = None  # Here, not written yet.
        self.restart_clock(0)

    def restart_clock(self, step: int) -> None:
        """Starts a new interval of the timings at ``step``: after compilation, validation and checkpoints."""
        self._started, self._first_step, self._waited = time.perf_counter(), step, 0.0

    def stepped(self, step: int, waited: float) -> None:
        """Takes note of a dispatched step that waited so many seconds for data; sends what was pending."""
        self.flush()
        self._waited += waited
        self._display.step(step)

    def note(self, step: int, metrics: Metrics) -> None:
        """Takes the figures of a logged step, still on their way from the device."""
        self._pending = step, metrics

    def fetch(self) -> None:
        """Waits for the figures that are pending.

        Raises:
          NonFinite: if a step up to theirs was.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        fetched = jax.device_get(metrics)
        values = {name: fetched[name].item() for name in sorted(fetched, key=lambda name: ("/" in name, name))}
        bad_step = int(values.pop("bad_step"))
        if bad_step != NO_BAD_STEP:
            raise NonFinite(bad_step)
        self._timings(step, values["loss"])
        self._record = step, values

    def flush(self, validation: tuple[int, dict[str, float]] | None = None) -> None:
        """Writes what is pending, as one record with the validation figures of the same step where given.

        Raises:
          NonFinite: as ``fetch`` does.
        """
        self.fetch()
        records = dict(filter(None, [self._record]))
        self._record = None
        if validation is not None:
            step, figures = validation
            records[step] = records.get(step, {}) | figures
        for step, figures in records.items():
            if self._writers:
                self._writers.scalars(step, figures)

    def _timings(self, step: int, loss: float) -> None:
        """Measured when the figures of ``step`` have arrived: the device has then done it."""
        steps = step - self._first_step
        seconds = (time.perf_counter() - self._started) / steps
        rate = self._batch_size / seconds
        timings = {"samples_per_second": rate, "step_seconds": seconds, "data_wait_seconds": self._waited / steps}
        if self._writers:
            self._writers.timings(step, timings)
        self._display.logged(step, loss, rate)
        self.restart_clock(step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture."""
        if self._writers:
            self._writers.image(step, name, pixels)

    def sync(self) -> None:
        """Writes what is pending and puts it on disk, before a checkpoint that says it is there."""
        self.flush()
        if self._writers:
            self._writers.flush()
