"""The train step as the loop calls it: waiting for a batch, compiling once, and tracing the steps of a profile."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from synthjax.methods.examples import Batch, HostBatch
from synthjax.tasks.batches import prefetch
from synthjax.training.flops import program_flops
from synthjax.training.logbook import Logbook
from synthjax.training.setup import Run
from synthjax.training.trainer import Metrics, TrainState, jit_train_step


class TimedBatches:
    """An iterator over batches on the devices. ``waited`` is how many seconds the loop waited for the last one.

    The first wait counts as 0: it is the time in which the worker processes start. The iterator keeps no batch, and no
    caller may keep one: it lies in memory that a worker shares, which must be free when the workers end.
    """

    def __init__(self, stream: Iterator[HostBatch], to_batch: Callable[[HostBatch], Batch]) -> None:
        self._stream, self._to_batch = stream, to_batch
        self._started = False
        self.waited = 0.0

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        host_batch = next(self._stream)
        self.waited = time.perf_counter() - asked if self._started else 0.0
        self._started = True
        return self._to_batch(host_batch)


@contextmanager
def timed_batches(run: Run, start: int, to_batch: Callable[[HostBatch], Batch]) -> Generator[TimedBatches, None, None]:
    """The batches from step ``start`` on, made ahead of the steps."""
    with prefetch(run.batches, workers=run.data.workers, start=start) as stream:
        yield TimedBatches(stream, to_batch)


class CompiledStep:
    """The jitted train step, compiled when it is first called."""

    def __init__(self, run: Run, logbook: Logbook, say: Callable[[str], None]) -> None:
        self._run, self._logbook, self._say = run, logbook, say
        self._compiled: jax.stages.Compiled | None = None

    def __call__(self, state: TrainState, batch: Batch, step: int) -> tuple[TrainState, Metrics]:
        """Dispatches step number ``step``, without waiting for its result; ``state`` is donated."""
        if self._compiled is None:
            self._compiled = self._compile(state, batch)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):  # Marks the step in a trace.
            return self._compiled(state, batch, self._run.stats)

    def _compile(self, state: TrainState, batch: Batch) -> jax.stages.Compiled:
        started = time.perf_counter()
        jitted = jit_train_step(self._run.trainer, self._run.mesh, self._run.shardings)
        traced = jitted.trace(state, batch, self._run.stats)
        self._logbook.totals.flops_per_step = program_flops(traced)
        compiled = traced.lower().compile()
        self._say(f"compiled the step in {time.perf_counter() - started:.1f} s")
        self._logbook.restart_clock()
        return compiled


class Profiler:
    """Traces the steps of ``window`` for XProf (TensorBoard's Profile tab), in every process."""

    def __init__(self, window: range, folder: Path, logbook: Logbook) -> None:
        self._window, self._folder, self._logbook, self._running = window, folder, logbook, False

    def before(self, step: int) -> None:
        """Begins the trace if ``step`` enters the window, and ends it if ``step`` leaves the window."""
        if (step in self._window) == self._running:
            return
        self._logbook.settle()  # A step that is still running must not end up on the wrong side.
        if self._running:
            self.close()
        else:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        self._logbook.restart_clock()

    def close(self) -> None:
        """Writes the trace under way."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
