"""Checkpoints of a run. No other module uses Orbax.

A checkpoint holds three trees: ``params``, ``ema`` and ``training`` (optimizer state and counters). Each can be read
without the others.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from data_pipeline.console import cli
from data_pipeline.console.atomic import can_flush_folder
from data_pipeline.console.cli import UserError, printable
from data_pipeline.console.file_lock import has_locks
from data_pipeline.console.os_errors import is_of_system, why

# Pytrees of arrays by name. Abstract ones hold a ShapeDtypeStruct with a placement instead of each array.
Trees = dict[str, Any]
# The validation metric that ranks checkpoints; lower is better.
BEST_BY = "val/loss"
TREES = ("params", "ema", "training")

# Orbax logs pages of tracebacks for failures that it also raises and that we print in one line.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.levelno >= logging.CRITICAL)
# gcsfs warns of every bucket whose storage class it has no permission to read.
logging.getLogger("gcsfs").setLevel(logging.ERROR)


def _ignore_late_writes(previous: Callable[[Any], object]) -> Callable[[Any], None]:
    """An ``unraisablehook`` that ignores parts of a failed write which end after Orbax closed their event loop."""

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous(unraisable)

    return hook


sys.unraisablehook = _ignore_late_writes(sys.unraisablehook)


class _AllBut:
    """The names of Orbax's folders, one a step. It does not find some steps, of which Orbax could not read the metrics.

    Args:
      steps: the steps that are not found.
    """

    def __init__(self, steps: Collection[int]) -> None:
        self._steps, self._names = steps, ocp.path.step.standard_name_format()

    def build_name(self, step: int) -> str:
        return self._names.build_name(step)

    def find_all(self, base_path: epath.PathLike) -> Iterator[Any]:
        return (found for found in self._names.find_all(base_path) if found.step not in self._steps)

    def find_step(self, base_path: epath.PathLike, step: int) -> Any:
        return self._names.find_step(base_path, step)


class CheckpointError(Exception):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


class Checkpoints:
    """The checkpoints in a folder or gs:// URL. Writes in the background; keeps the latest ``keep`` and the best.

    A checkpoint that a copy has cut short is left out with a warning, and set aside unless ``read_only``.

    Use it as a context manager. Call ``wait`` before leaving it: it raises if the last write failed.

    Raises:
      UserError: with ``read_only``, if the folder does not exist; if its name is not UTF-8; or if the checkpoints
        cannot be read.
    """

    def __init__(self, directory: str | Path, *, keep: int = 1, read_only: bool = False) -> None:
        self._remote = "://" in str(directory)
        self._directory = epath.Path(directory) if self._remote else epath.Path(directory).absolute()
        if printable(self._directory) != str(self._directory):
            raise UserError(
                f"{self._directory.parent}: its name is not UTF-8, which checkpoints need: choose another "
                "--workdir, or in an ASCII locale set PYTHONUTF8=1"
            )
        if read_only and not self._directory.is_dir():
            raise UserError(f"no checkpoints under {self._directory.parent}: train first, or check --workdir")
        if not (read_only or self._remote):
            _suit_file_system(_existing(Path(self._directory)))
        self._keep = keep
        self._writing: int | None = None  # The step whose write is under way.
        self._failed: set[int | None] = set()
        try:
            cut_short = self._leave_out(set_aside=not read_only)
            self._open(cleanup=not read_only, without=cut_short if read_only else set())
        except Exception as error:  # Orbax raises many kinds of errors for damaged metadata.
            raise UserError(f"the checkpoints in {self._directory} cannot be read: {_reason(error)}") from error

    def _leave_out(self, *, set_aside: bool) -> set[int]:
        """The steps that a copy has cut short. ``set_aside`` renames them: Orbax would keep them as the latest."""
        present = list(self._directory.iterdir()) if self._directory.is_dir() else []
        folders = [folder for folder in present if folder.name.isdecimal() and _is_cut_short(folder)]
        for folder in folders if jax.process_index() == 0 else []:
            end = ""
            if set_aside:
                aside = folder.with_name(f"{folder.name}.incomplete")
                aside.rmtree(missing_ok=True)
                folder.rename(aside)
                end = f", is now called {aside.name}"
            print(
                f"warning: checkpoint {folder} is left out{end}: files are missing, as after a copy that was cut short",
                file=sys.stderr,
                flush=True,
            )
        if set_aside and jax.process_count() > 1:  # Orbax must find the same steps on every process.
            multihost_utils.sync_global_devices("incomplete checkpoints are set aside")
        return {int(folder.name) for folder in folders}

    def _open(self, *, cleanup: bool = False, without: Collection[int] = ()) -> None:
        """Makes Orbax read the folder, but not the steps in ``without``."""
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: -metrics[BEST_BY], n=1, keep_checkpoints_without_metrics=False
        )
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(self._keep), best]),
            step_name_format=_AllBut(without) if without else None,
            cleanup_tmp_directories=cleanup,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # ``wait`` raises the error of a failed write.
            self._checkpointer.close()
        self._sweep()

    def _sweep(self) -> None:
        """Removes the files of failed writes: they would keep a full disk full. Their threads may still add some."""
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
        """Step and validation loss of the checkpoint with the lowest loss; None if none was validated."""
        ranked = [
            (checkpoint.metrics[BEST_BY], checkpoint.step)
            for checkpoint in self._checkpointer.checkpoints
            if checkpoint.metrics and BEST_BY in checkpoint.metrics
        ]
        if not ranked:
            return None
        loss, step = min(ranked)
        return step, loss

    def best_text(self) -> str:
        """The best checkpoint as the end of a message; "" if there is none."""
        return f"; best validation loss {self.best[1]:.4f} at step {self.best[0]}" if self.best else ""

    def resolve(self, name: str) -> int:
        """The step of the checkpoint that ``latest``, ``best`` or a number names.

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

    def save(self, step: int, trees: Trees, metrics: dict[str, float] | None = None) -> None:
        """Waits for the previous write, then starts writing ``trees`` in the background.

        Raises:
          CheckpointError: if the previous write failed, such as on a full disk, although the new one was started; or
            if the new one cannot be started.
        """
        try:
            self.wait()
        finally:
            self._sweep()
            self._check_space(step, trees)
            self._writing = step
            write = self._checkpointer.save_checkpointables_async
            self._guarded(lambda: write(step, trees, force=True, metrics=metrics))

    def _check_space(self, step: int, trees: Trees) -> None:
        """Raises CheckpointError if the disk is too small. Orbax would fill it and leave its files there."""
        if self._remote:
            return
        needed = sum(array.nbytes for array in jax.tree.leaves(trees))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise CheckpointError(
                f"checkpoint {step} could not be written: it takes {needed / 1e6:,.0f} MB, "
                f"{free / 1e6:,.0f} MB are free under {self._directory}"
            )

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk.

        Raises:
          CheckpointError: if the write under way failed.
        """
        if self._writing is not None:
            self._guarded(self._checkpointer.wait)
            self._writing = None

    def _guarded(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # Orbax raises several kinds of errors for what the file system reports.
            step, self._writing = self._writing, None
            # This checkpointer is unusable now. Its threads may wait for each other for minutes: do not wait for them.
            cli.exit_without_threads()
            self._open()
            self._failed.add(step)
            raise CheckpointError(f"checkpoint {step} could not be written: {_reason(error)}") from error

    def restore(self, step: int, abstract: Trees) -> Trees:
        """The trees of ``step`` that ``abstract`` names, with its placements. Any mesh may have written them.

        Raises:
          UserError: if the checkpoint cannot be read.
        """
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except Exception as error:
            before = [other for other in self.steps if other < step]
            remedy = f"; move that folder away to take checkpoint {before[-1]}" if before else ""
            raise UserError(
                f"checkpoint {step} in {self._directory} cannot be read: {_reason(error)}{remedy}"
            ) from error


def _is_cut_short(folder: epath.Path) -> bool:
    """Whether files of a checkpoint are missing or empty. Orbax lists it all the same, but cannot read it."""
    try:
        names = set(json.loads((folder / "_CHECKPOINT_METADATA").read_text())["item_handlers"])
    except (FileNotFoundError, ValueError, KeyError):
        names = set(TREES)
    needed = [folder / name / file for name in names.intersection(TREES) for file in ("_METADATA", "manifest.ocdbt")]
    data = [folder / name / "d" for name in names.intersection(TREES)]
    metrics = folder / "metrics" / "metrics"
    try:
        files = [*needed, *(file for part in data for file in part.iterdir())]
        empty = any(file.stat().length == 0 for file in files) or (metrics.exists() and metrics.stat().length == 0)
        return empty or not all(any(part.iterdir()) for part in data)
    except FileNotFoundError:
        return True


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def _suit_file_system(folder: Path) -> None:
    """Makes TensorStore, which writes the files for Orbax, do without what the file system cannot do.

    It fails where it cannot flush a folder, or lock a file. Orbax has no settings for this. A version of it with other
    names here would fail as before.
    """
    settings: dict[str, Any] = {}
    if not can_flush_folder(folder):
        settings["file_io_sync"] = False
    if not has_locks(folder):
        settings["file_io_locking"] = {"mode": "lockfile"}
    with suppress(ImportError, AttributeError):
        from orbax.checkpoint._src.serialization import tensorstore_utils

        for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
            context.update(settings)


def _reason(error: Exception) -> object:
    """The system's words and what to do, else the error itself, which may name another file."""
    return why(error) if is_of_system(error) else error
