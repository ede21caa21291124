"""Records a run step by step without making the device wait for the host."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from synthjax import host_figures
from synthjax.console import TrainingDisplay
from synthjax.train_step import NO_BAD_STEP, Metrics
from synthjax.writers import Writers


class NonFinite(Exception):
    """Loss or gradient of ``step`` was NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass
class Totals:
    """Of the measured steps of this start, without compilation, validation and checkpoints."""

    flops_per_step: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Logbook:
    """Figures of logged steps go out when the step after them is already under way.

    Args:
      writers: None on processes that write nothing; they still look for non-finite steps.
    """

    def __init__(self, writers: Writers | None, display: TrainingDisplay, batch_size: int) -> None:
        self._writers, self._display, self._batch_size = writers, display, batch_size
        self._pending: tuple[int, Metrics] | None = None  # On the device.
        self._record: tuple[int, dict[str, float]] | None = None  # Here, not written yet.
        self._warned: set[int] = set()
        self.totals = Totals()
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
        steps, seconds = step - self._first_step, time.perf_counter() - self._started
        self.totals.steps += steps
        self.totals.seconds += seconds
        self.totals.waited += self._waited
        rate = self._batch_size * steps / seconds
        mine = {"step_seconds": seconds / steps, "data_wait_seconds": self._waited / steps}
        memory = host_figures.accelerator_memory_gb()
        if memory is not None:
            mine["accelerator_memory_gb"] = memory
        everyone = host_figures.exchange(mine)
        if self._writers:
            self._writers.timings(step, {"samples_per_second": rate, **mine} | _by_host(everyone))
            self._warn(everyone)
        self._display.logged(step, loss, rate)
        self.restart_clock(step)

    def _warn(self, everyone: Mapping[int, host_figures.Figures]) -> None:
        """Names each process that holds up the others, once."""
        for index in host_figures.stragglers(everyone) if len(everyone) > 1 else ():
            if index not in self._warned:
                self._warned.add(index)
                figures = everyone[index]
                self._display.say(
                    f"warning: process {index} waits {figures['data_wait_seconds']:.3f} s a step for its data, of "
                    f"{figures['step_seconds']:.3f} s, and all others with it: look at its disk and data.workers"
                )

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture."""
        if self._writers:
            self._writers.image(step, name, pixels)

    def sync(self) -> None:
        """Writes what is pending and puts it on disk, before a checkpoint that says it is there."""
        self.flush()
        if self._writers:
            self._writers.flush()


def _by_host(everyone: Mapping[int, host_figures.Figures]) -> dict[str, float]:
    """Figures of several processes under names of their own."""
    if len(everyone) == 1:
        return {}
    return {f"process_{index}/{name}": value for index, one in everyone.items() for name, value in one.items()}
