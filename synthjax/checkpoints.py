"""Checkpoints of a run; the only module that knows Orbax.

A checkpoint holds three trees, so that evaluation reads only the weights it uses: ``params``, ``ema`` and ``training``
(optimizer state and counters).
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from data_pipeline import cli
from data_pipeline.cli import UserError
from synthjax.train_step import TrainState

Weights = Literal["params", "ema"]
# Validation metric that ranks checkpoints; lower is better.
BEST_BY = "val/loss"

# Orbax logs a page of tracebacks for a failure that it also raises, and that we tell in a line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.levelno >= logging.CRITICAL)
# Warns of every bucket whose kind it may not ask for.
logging.getLogger("gcsfs").setLevel(logging.ERROR)


def _ignore_late_writes(tell: Callable[[Any], object]) -> Callable[[Any], None]:
    """An ``unraisablehook`` without the arrays of a failed write that end after Orbax closed their event loop."""

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            tell(unraisable)

    return hook


sys.unraisablehook = _ignore_late_writes(sys.unraisablehook)


class CheckpointError(Exception):
    """A checkpoint could not be written; the ones before it are untouched."""


def _trees(state: TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "ema": state.ema,
        "training": {"opt_state": state.opt_state, "step": state.step, "bad_step": state.bad_step},
    }


class Checkpoints:
    """The checkpoints under one folder or gs:// URL: written in the background, the latest ``keep`` and the best kept.

    Use as a context manager; ``wait`` before leaving it tells whether the last write succeeded.
    """

    def __init__(self, directory: str | Path, *, keep: int = 1, read_only: bool = False) -> None:
        self._remote = "://" in str(directory)
        self._directory = epath.Path(directory) if self._remote else epath.Path(directory).absolute()
        if read_only and not self._directory.is_dir():
            raise UserError(f"no checkpoints under {self._directory.parent}: train first, or check --workdir")
        self._keep = keep
        self._writing: int | None = None  # The step whose write is under way.
        self._failed: set[int | None] = set()
        try:
            self._open(cleanup=not read_only)
        except Exception as error:  # Damaged metadata of any checkpoint, in whatever way.
            raise UserError(f"the checkpoints in {self._directory} cannot be read: {error}") from error

    def _open(self, *, cleanup: bool = False) -> None:
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: -metrics[BEST_BY], n=1, keep_checkpoints_without_metrics=False
        )
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
            cleanup_tmp_directories=cleanup,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # A failed write was or will be told by ``wait``.
            self._checkpointer.close()
        self._sweep()

    def _sweep(self) -> None:
        """Removes what failed writes left: it would keep a full disk full. Their threads may outlive their failure."""
        for step in self._failed:
            with suppress(OSError):
                (self._directory / f"{step}.orbax-checkpoint-tmp").rmtree(missing_ok=True)

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def latest(self) -> int | None:
        """The newest step."""
        return self.steps[-1] if self.steps else None

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and validation loss of the best checkpoint that was validated."""
        ranked = [
            (checkpoint.metrics[BEST_BY], checkpoint.step)
            for checkpoint in self._checkpointer.checkpoints
            if checkpoint.metrics and BEST_BY in checkpoint.metrics
        ]
        if not ranked:
            return None
        loss, step = min(ranked)
        return step, loss

    def resolve(self, name: str) -> int:
        """The step that ``latest``, ``best`` or a number names.

        Raises:
          UserError: if there is no such checkpoint.
        """
        if self.latest is None:
            raise UserError(f"no checkpoints in {self._directory}: train first, or check --workdir")
        if name == "latest":
            return self.latest
        if name == "best":
            return self.best[0] if self.best else self.latest
        if name.isdecimal() and int(name) in self.steps:
            return int(name)
        raise UserError(f"no checkpoint {name!r} in {self._directory}: use best, latest or one of {self.steps}")

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts writing ``state`` in the background, once the write before it has ended.

        Raises:
          CheckpointError: if the write before it failed (a full disk), this one being under way nevertheless; or if
            this one cannot be started.
        """
        try:
            self.wait()
        finally:
            self._sweep()
            self._check_space(step, state)
            self._writing = step
            self._guarded(
                lambda: self._checkpointer.save_checkpointables_async(step, _trees(state), force=True, metrics=metrics)
            )

    def _check_space(self, step: int, state: TrainState) -> None:
        """Orbax writes until the disk is full, and leaves it so: better not to begin."""
        if self._remote:
            return
        needed = sum(array.nbytes for array in jax.tree.leaves(_trees(state)))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise CheckpointError(
                f"checkpoint {step} could not be written: it takes {needed / 1e6:,.0f} MB, "
                f"{free / 1e6:,.0f} MB are free under {self._directory}"
            )

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          CheckpointError: if the write under way failed.
        """
        if self._writing is not None:
            self._guarded(self._checkpointer.wait)
            self._writing = None

    def _guarded(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # Orbax wraps what the file system says in errors of several kinds.
            step, self._writing = self._writing, None
            # It is unusable now, and its threads may wait minutes for each other: nobody waits for them.
            cli.exit_without_threads()
            self._open()
            self._failed.add(step)
            raise CheckpointError(f"checkpoint {step} could not be written: {error}") from error

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The whole state of ``step``, placed as ``abstract`` says, whatever mesh wrote it."""
        trees = self._load(step, _trees(abstract))
        return TrainState(params=trees["params"], ema=trees["ema"], **trees["training"])

    def restore_weights(self, step: int, abstract_params: Any, weights: Weights) -> Any:
        """Only the parameters, or their average, of ``step``."""
        return self._load(step, {weights: abstract_params})[weights]

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except Exception as error:
            raise UserError(f"checkpoint {step} in {self._directory} cannot be read: {error}") from error
