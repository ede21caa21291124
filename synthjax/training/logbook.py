"""The log of a run's figures. It never makes the devices wait for the host."""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import ml_collections
import numpy as np

from data_pipeline.console.cli import counted
from synthjax.training import process_figures
from synthjax.training.display import TrainingDisplay
from synthjax.training.flops import peak_flops
from synthjax.training.step_clock import AHEAD, StepClock, StepTime
from synthjax.training.trainer import NO_BAD_STEP, Metrics, NonFinite
from synthjax.training.writers import Writers


@dataclass
class Totals:
    """Sums over the measured steps of this start, without compilation, validation and checkpoints."""

    flops_per_step: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Logbook:
    """Writes the figures of logged steps a few steps later, when the devices have computed them.

    The delay is a number of steps, not of seconds. So all processes of a run find a non-finite step at the same step.
    """

    def __init__(self, writers: Writers, display: TrainingDisplay, config: ml_collections.ConfigDict) -> None:
        self._writers, self._display = writers, display
        self._batch_size, self._log_every = config.data.batch_size, config.train.log_every
        self._pending: deque[tuple[int, Metrics]] = deque()  # On the devices.
        self._records: dict[int, dict[str, float]] = {}  # On the host, not written yet.
        self._clock = StepClock()
        self._warned: set[int] = set()
        self.totals = Totals()

    def close(self) -> None:
        """Ends the clock; writes nothing."""
        self._clock.close()

    def restart_clock(self) -> None:
        """Waits for all steps and starts a new interval of the timings: after compilation, validation and saving."""
        self._clock.restart()

    def stepped(self, step: int, metrics: Metrics, waited: float) -> None:
        """Notes that step number ``step``, counted from 1, was dispatched; every ``log_every``-th is logged.

        Args:
          waited: seconds that the step waited for its data.

        Raises:
          NonFinite: if an earlier logged step was not finite.
        """
        self._clock.started(step, metrics["bad_step"], waited)
        self._fetch(step - AHEAD - 1)
        self._write()
        self._display.step(step)
        if step % self._log_every == 0:
            for value in metrics.values():
                value.copy_to_host_async()
            self._pending.append((step, metrics))

    def settle(self) -> None:
        """Waits for all steps, and fetches the figures of the logged ones.

        Raises:
          NonFinite: if a step was not finite.
        """
        self._clock.restart()
        if self._pending:
            self._fetch(self._pending[-1][0])

    def flush(self, validation: tuple[int, dict[str, float]] | None = None) -> None:
        """Writes all figures so far. Validation figures of a step join the training figures of the same step.

        Raises:
          NonFinite: as ``settle`` does.
        """
        self.settle()
        if validation is not None:
            step, figures = validation
            self._records[step] = self._records.get(step, {}) | figures
        self._write()

    def sync(self) -> None:
        """Writes all figures so far to disk: a checkpoint must not be newer than the log."""
        self.flush()
        self._writers.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture (rows, columns, 3) uint8."""
        self._writers.image(step, name, pixels)

    def summary(self, starts: int) -> str:
        """One line: steps of this start, samples/s, MFU if the device's peak is known, data wait, restarts of the run.

        MFU, the model FLOPs utilisation (Chowdhery et al. 2022, appendix B), is the arithmetic of the step divided by
        the peak arithmetic of the devices in the same time. Values that the program computes twice count twice.
        """
        self._clock.restart()
        self._take(sys.maxsize)  # Steps after the last logged one.
        totals, restarts = self.totals, f"restarts {max(starts - 1, 0)}"
        if not totals.steps:
            return f"no step was measured; {restarts}"
        seconds = totals.seconds / totals.steps
        peak = peak_flops(jax.devices()[0].device_kind)
        rate = totals.flops_per_step / seconds / jax.device_count()
        return (
            f"{counted(totals.steps, 'step')} measured, {self._batch_size / seconds:.1f} samples/s, "
            f"{seconds:.4g} s a step, data wait {100 * totals.waited / totals.seconds:.1f} %, "
            f"{rate / 1e12:.3g} TFLOP/s a device{f' (MFU {100 * rate / peak:.1f} %)' if peak else ''}, {restarts}"
        )

    def _fetch(self, step: int) -> None:
        """Reads the figures of the logged steps up to ``step``, all of which are done."""
        while self._pending and self._pending[0][0] <= step:
            logged, metrics = self._pending.popleft()
            fetched = jax.device_get(metrics)
            values = {name: fetched[name].item() for name in sorted(fetched, key=lambda name: ("/" in name, name))}
            bad_step = int(values.pop("bad_step"))
            if bad_step != NO_BAD_STEP:
                self._write()  # Figures of the steps before may show the cause.
                raise NonFinite(bad_step)
            self._log_timings(logged, values["loss"])
            self._records[logged] = values

    def _write(self) -> None:
        for step, figures in self._records.items():
            self._writers.scalars(step, figures)
        self._records = {}

    def _log_timings(self, step: int, loss: float) -> None:
        times = self._take(step)
        seconds = [one.seconds for one in times]
        mine = {
            "step_seconds": statistics.mean(seconds),
            "step_jitter_seconds": statistics.pstdev(seconds),
            "data_wait_seconds": statistics.mean(one.waited for one in times),
        }
        memory = process_figures.accelerator_memory_gb()
        if memory is not None:
            mine["accelerator_memory_gb"] = memory
        processes = process_figures.exchange(mine)
        rate = self._batch_size / mine["step_seconds"]
        timings = {"samples_per_second": rate, **mine}
        if len(processes) > 1:
            timings |= {f"process_{i}/{name}": value for i, one in processes.items() for name, value in one.items()}
            self._warn_of_stragglers(processes)
        self._writers.timings(step, timings)
        self._display.logged(step, loss, rate)

    def _warn_of_stragglers(self, processes: Mapping[int, process_figures.Figures]) -> None:
        """Warns once of each process whose data delay the others."""
        for index in set(process_figures.stragglers(processes)) - self._warned:
            self._warned.add(index)
            figures = processes[index]
            self._display.say(
                f"warning: process {index} waits {figures['data_wait_seconds']:.3f} s for the data of a step of "
                f"{figures['step_seconds']:.3f} s, and all others wait for it: check its disk and data.workers"
            )

    def _take(self, step: int) -> list[StepTime]:
        """The times of the steps up to ``step`` that are not in the totals yet; adds them to the totals."""
        times = self._clock.take(step)
        self.totals.steps += len(times)
        self.totals.seconds += sum(one.seconds for one in times)
        self.totals.waited += sum(one.waited for one in times)
        return times
