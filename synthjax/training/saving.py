"""Saving a run: in the background, finite states only, and with a warning instead of an end if the disk is full."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import jax

from data_pipeline.console import cli
from synthjax.runs.checkpoints import BEST_BY, CheckpointError, Checkpoints
from synthjax.training.logbook import Logbook
from synthjax.training.trainer import NO_BAD_STEP, NonFinite, TrainState


class Saver:
    """Writes the checkpoints of a run, and its logs before them."""

    def __init__(self, checkpoints: Checkpoints, logbook: Logbook, say: Callable[[str], None]) -> None:
        self._checkpoints, self._logbook, self._say = checkpoints, logbook, say
        self._last: int | None = None  # The step of the last save, whether it succeeded or not.

    def is_best(self, loss: float | None) -> bool:
        """Whether a validation loss is lower than that of every checkpoint."""
        best = self._checkpoints.best
        return loss is not None and (best is None or loss < best[1])

    def save(self, state: TrainState, step: int, loss: float | None) -> None:
        """Starts to write ``state``. If the previous write failed, prints a warning, and training goes on.

        Args:
          loss: the validation loss of ``step``, if it was measured.

        Raises:
          NonFinite: if a step was not finite; nothing is written then.
        """
        self._logbook.sync()
        if int(state.bad_step) != NO_BAD_STEP:
            raise NonFinite(int(state.bad_step))
        self._last = step
        with self._warning_of_failures():
            self._checkpoints.save(step, state.trees(), None if loss is None else {BEST_BY: loss})
        self._logbook.restart_clock()

    def wait(self) -> None:
        """Waits for the write under way."""
        with self._warning_of_failures():
            self._checkpoints.wait()

    def finish(self, state: TrainState, step: int) -> None:
        """Returns when ``step`` is on disk; ends the command if it cannot be written.

        Raises:
          NonFinite: as ``save`` does.
        """
        self.wait()
        if step not in self._checkpoints.steps and step != self._last:
            self.save(state, step, None)
            self.wait()
        if step not in self._checkpoints.steps:
            cli.fail(f"step {step} is not saved; the last good checkpoint is {self._checkpoints.latest}", 1)

    @contextmanager
    def _warning_of_failures(self) -> Generator[None, None, None]:
        try:
            yield
        except CheckpointError as error:
            if jax.process_count() > 1:  # The other processes do not know of the failure and would wait for this one.
                cli.fail(error, 1)
            self._say(f"warning: {error}")
