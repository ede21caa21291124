"""Records a run step by step without making the device wait for the host."""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from synthjax import host_figures
from synthjax.console import TrainingDisplay
from synthjax.step_clock import AHEAD, StepClock, StepTime
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
    """Figures of logged steps go out a few steps later, when the devices are done with them: nobody waits for them.

    How much later is a number of steps, not of seconds, so that all processes of a run find a non-finite step at the
    same one.

    Args:
      writers: None on processes that write nothing; they still look for non-finite steps.
    """

    def __init__(self, writers: Writers | None, display: TrainingDisplay, batch_size: int) -> None:
        self._writers, self._display, self._batch_size = writers, display, batch_size
        self._pending: deque[tuple[int, Metrics]] = deque()  # On the devices.
        self._records: dict[int, dict[str, float]] = {}  # Here, not written yet.
        self._clock = StepClock()
        self._warned: set[int] = set()
        self.totals = Totals()

    def close(self) -> None:
        """Ends the clock; nothing is written."""
        self._clock.close()

    def restart_clock(self) -> None:
        """Starts a new interval of the timings: after compilation, validation and checkpoints."""
        self._clock.restart()

    def stepped(self, step: int, metrics: Metrics, waited: float) -> None:
        """Takes note of a dispatched step that waited so many seconds for data; sends what is there by now."""
        self._clock.started(step, metrics["bad_step"], waited)
        self._fetch(step - AHEAD - 1)
        self._write()
        self._display.step(step)

    def note(self, step: int, metrics: Metrics) -> None:
        """Takes the figures of a logged step, still on their way from the device."""
        for value in metrics.values():
            value.copy_to_host_async()
        self._pending.append((step, metrics))

    def settle(self) -> None:
        """Waits for all steps, and for the figures that are pending.

        Raises:
          NonFinite: if a step up to theirs was.
        """
        self._clock.restart()
        if self._pending:
            self._fetch(self._pending[-1][0])

    def flush(self, validation: tuple[int, dict[str, float]] | None = None) -> None:
        """Writes what is pending, the last together with the validation figures of the same step where given.

        Raises:
          NonFinite: as ``settle`` does.
        """
        self.settle()
        if validation is not None:
            step, figures = validation
            self._records[step] = self._records.get(step, {}) | figures
        self._write()

    def _fetch(self, step: int) -> None:
        """Reads the figures of logged steps up to ``step``, which are done."""
        while self._pending and self._pending[0][0] <= step:
            logged, metrics = self._pending.popleft()
            fetched = jax.device_get(metrics)
            values = {name: fetched[name].item() for name in sorted(fetched, key=lambda name: ("/" in name, name))}
            bad_step = int(values.pop("bad_step"))
            if bad_step != NO_BAD_STEP:
                self._write()  # What came before it tells how it came.
                raise NonFinite(bad_step)
            self._timings(logged, values["loss"])
            self._records[logged] = values

    def _write(self) -> None:
        for step, figures in self._records.items():
            if self._writers:
                self._writers.scalars(step, figures)
        self._records = {}

    def _timings(self, step: int, loss: float) -> None:
        times = self._take(step)
        seconds, waited = [one.seconds for one in times], [one.waited for one in times]
        mine = {
            "step_seconds": statistics.mean(seconds),
            "step_jitter_seconds": statistics.pstdev(seconds),
            "data_wait_seconds": statistics.mean(waited),
        }
        memory = host_figures.accelerator_memory_gb()
        if memory is not None:
            mine["accelerator_memory_gb"] = memory
        everyone = host_figures.exchange(mine)
        rate = self._batch_size / mine["step_seconds"]
        if self._writers:
            self._writers.timings(step, {"samples_per_second": rate, **mine} | _by_host(everyone))
            self._warn(everyone)
        self._display.logged(step, loss, rate)

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

    def count(self) -> Totals:
        """Of all steps so far, those after the last logged one included; waits for them."""
        self._clock.restart()
        self._take(sys.maxsize)
        return self.totals

    def _take(self, step: int) -> list[StepTime]:
        """The times of the steps up to ``step`` that were not counted before."""
        times = self._clock.take(step)
        self.totals.steps += len(times)
        self.totals.seconds += sum(one.seconds for one in times)
        self.totals.waited += sum(one.waited for one in times)
        return times

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
