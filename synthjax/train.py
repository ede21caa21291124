"""Trains a model: python -m synthjax.train --config=configs/flow_100k.py --workdir=DIR [--config.KEY=VALUE ...]

Started again in the same workdir it goes on from the latest checkpoint, to the same figures as if never stopped.
SIGTERM saves and exits 0, Ctrl-C saves and exits 130.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import ml_collections
import numpy as np
from absl import flags
from jax.sharding import Mesh

from data_pipeline import cli, config_flag
from data_pipeline.param_spec import ParamSpec, load_spec
from data_pipeline.shards import ShardReader
from data_pipeline.stats import STATS_FILE, MelStats, load_stats
from synthjax import distributed, sharding
from synthjax.checkpoints import BEST_BY, CheckpointError, Checkpoints
from synthjax.console import TrainingDisplay
from synthjax.data import HostBatch, TrainBatches, open_split, prefetch
from synthjax.interrupts import StopRequest
from synthjax.logbook import Logbook, NonFinite
from synthjax.probe import Probe, start_probe
from synthjax.train_step import NO_BAD_STEP, Trainer, TrainState, abstract_state, jit_init, jit_train_step
from synthjax.validation import Validator
from synthjax.workdir import Workdir
from synthjax.writers import Writers

# Rows whose parameters tell one data set from another of the same size.
FINGERPRINT_ROWS = 64


@dataclass(frozen=True)
class Run:
    """What a run is made of and does not change while it trains."""

    config: ml_collections.ConfigDict
    spec: ParamSpec
    mesh: Mesh
    trainer: Trainer
    shardings: TrainState
    batches: TrainBatches
    stats: MelStats
    validator: Validator | None


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: config values are set as --config.KEY=VALUE")
    config = config_flag.read()
    workdir = Workdir(flags.FLAGS.workdir)
    distributed.initialise()
    return train(config, workdir)


def train(config: ml_collections.ConfigDict, workdir: Workdir) -> int:
    """Trains ``config`` in ``workdir``, from its latest checkpoint where it has one; returns the exit code."""
    spec = load_spec(config.data.spec)
    reader = open_split(config.data.root, "train", spec, allow_external=config.data.allow_external)
    run = set_up(config, spec, reader)
    workdir.prepare(config, dataset_identity(reader, spec, run.stats), write=distributed.is_main())
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir.checkpoints, keep=config.checkpoint.keep))
        state, start = _restore_or_init(run, checkpoints)
        display = stack.enter_context(TrainingDisplay(start, config.train.steps, enabled=distributed.is_main()))
        _announce(run, display, start, checkpoints)
        if start >= config.train.steps:
            return 0
        writers = Writers.open(workdir, config, start) if distributed.is_main() else None
        if writers:
            stack.callback(writers.close)
        logbook = Logbook(writers, display, config.data.batch_size)
        stop = stack.enter_context(StopRequest())
        probe = _start_probe(run, writers, display)
        if probe:
            stack.callback(probe.close)
        return Loop(run, checkpoints, logbook, display, stop, probe).go(state, start)


def set_up(config: ml_collections.ConfigDict, spec: ParamSpec, reader: ShardReader) -> Run:
    """Checks that config, data and devices fit each other, and builds what the loop needs.

    Raises:
      UserError: if they do not.
    """
    stats = load_stats(Path(config.data.root) / STATS_FILE)
    trainer = Trainer.create(config, width=spec.width, spectrogram_shape=stats.mean.shape)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data.batch_size, mesh)
    batches = TrainBatches(
        reader,
        batch_size=config.data.batch_size,
        seed=config.seed,
        coupled=config.flow.coupling,
        local_rows=sharding.rows_of_this_process(sharding.batch_sharding(mesh), config.data.batch_size),
        steps=config.train.steps,
    )
    validator = None
    if config.train.eval_every and (Path(config.data.root) / "val.h5").exists():
        held_out = open_split(config.data.root, "val", spec, allow_external=config.data.allow_external)
        validator = Validator(trainer, mesh, held_out, spec)
    return Run(
        config=config,
        spec=spec,
        mesh=mesh,
        trainer=trainer,
        shardings=trainer.state_shardings(mesh),
        batches=batches,
        stats=jax.device_put(stats, sharding.replicated(mesh)),
        validator=validator,
    )


def dataset_identity(reader: ShardReader, spec: ParamSpec, stats: MelStats) -> dict[str, Any]:
    """What a workdir remembers of its training data: a moved data set is the same, another one is not."""
    rows = reader.read_rows("param_array", np.arange(min(FINGERPRINT_ROWS, len(reader))))
    return {
        "rows": len(reader),
        "spec_hash": spec.content_hash,
        "first_rows_sha256": _digest(rows),
        "statistics_sha256": _digest(np.stack(stats)),
    }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()


def _restore_or_init(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    latest = checkpoints.latest
    if latest is None:
        return jit_init(run.trainer, run.shardings)(), 0
    return checkpoints.restore(latest, abstract_state(run.trainer, run.shardings)), latest


def _announce(run: Run, display: TrainingDisplay, start: int, checkpoints: Checkpoints) -> None:
    millions = run.trainer.parameter_count() / 1e6
    shape = " x ".join(f"{size} {axis}" for axis, size in run.mesh.shape.items())
    display.say(f"{millions:.1f} M parameters on {jax.device_count()} {jax.default_backend()} devices ({shape})")
    if start >= run.config.train.steps:
        display.say(f"this run is complete: {start} steps are done; raise --config.train.steps to train on")
    elif start:
        best = checkpoints.best
        display.say(f"going on from step {start}" + (f"; best validation loss {best[1]:.4f}" if best else ""))
    if run.validator is None and run.config.train.eval_every:
        display.say(f"no val.h5 under {run.config.data.root}: no validation while training")


def _start_probe(run: Run, writers: Writers | None, display: TrainingDisplay) -> Probe | None:
    """The validation probe, where it is wanted and can be: on the process that writes, and with a renderer."""
    count = run.config.validation.probe_sounds
    if writers is None or run.validator is None or not count:
        return None
    return start_probe(run.spec, run.validator.sounds(count), writers, display.say)


class Loop:
    """Validate -> save -> next batch -> step, so that figures describe the saved state and its data position."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        logbook: Logbook,
        display: TrainingDisplay,
        stop: StopRequest,
        probe: Probe | None,
    ) -> None:
        self._run, self._checkpoints, self._logbook = run, checkpoints, logbook
        self._display, self._stop, self._probe = display, stop, probe
        self._compiled: jax.stages.Compiled | None = None
        self._last_save: int | None = None

    def go(self, state: TrainState, start: int) -> int:
        """Steps from ``start`` to the end or until asked to stop; returns the exit code."""
        config, step = self._run.config, start
        with prefetch(self._run.batches, workers=config.data.workers, start=start) as stream:
            try:
                while step < config.train.steps and not self._stop.due(step):
                    state = self._step(state, step, stream)
                    step += 1
                    self._validate_and_save(state, step)
                return self._end(state, step)
            except NonFinite as error:
                self._give_up(error.step)
            except OSError as error:  # The logs share the disk with the checkpoints.
                self._settle()
                cli.fail(f"step {step}: {error}; the last good checkpoint is {self._checkpoints.latest}", 1)

    def _validate_and_save(self, state: TrainState, step: int) -> None:
        config = self._run.config
        last = step == config.train.steps
        validation = self._validate(state, step) if last or _due(step, config.train.eval_every) else None
        if self._improves(validation) or last or _due(step, config.checkpoint.every):
            self._save(state, step, validation)

    def _improves(self, validation: float | None) -> bool:
        if validation is None:
            return False
        best = self._checkpoints.best
        return best is None or validation < best[1]

    def _step(self, state: TrainState, step: int, stream: Iterator[HostBatch]) -> TrainState:
        """Takes the next batch, dispatches the step on it, and notes its figures if it is a logged one."""
        asked = time.perf_counter()
        host_batch = next(stream)
        waited = time.perf_counter() - asked
        batch = sharding.place(host_batch, sharding.batch_sharding(self._run.mesh))
        if self._compiled is None:
            self._compiled = self._compile(state, batch)
            self._logbook.restart_clock(step)
        state, metrics = self._compiled(state, batch, self._run.stats)
        self._logbook.stepped(step + 1, waited)
        if _due(step + 1, self._run.config.train.log_every):
            self._logbook.note(step + 1, metrics)
        return state

    def _compile(self, state: TrainState, batch: dict[str, jax.Array]) -> jax.stages.Compiled:
        started = time.perf_counter()
        jitted = jit_train_step(self._run.trainer, self._run.mesh, self._run.shardings)
        compiled = jitted.lower(state, batch, self._run.stats).compile()
        self._display.say(f"compiled the step in {time.perf_counter() - started:.1f} s")
        return compiled

    def _validate(self, state: TrainState, step: int) -> float | None:
        """Logs validation figures and pictures of the averaged weights, and has them heard; returns the loss."""
        if self._run.validator is None:
            return None
        self._logbook.fetch()  # Else the time that validation takes would count as the step's.
        result = self._run.validator(state.ema, self._run.stats)
        self._logbook.flush((step, result.scalars))
        if self._probe:
            self._probe.submit(step, result.sampled)
        if distributed.is_main():
            for name, pixels in result.pictures(self._run.spec.column_names).items():
                self._logbook.image(step, name, pixels)
        self._logbook.restart_clock(step)
        return result.scalars[BEST_BY]

    def _save(self, state: TrainState, step: int, validation: float | None) -> None:
        """Starts to write a finite state; that an earlier write failed is told, and training goes on."""
        self._logbook.sync()
        if int(state.bad_step) != NO_BAD_STEP:
            raise NonFinite(int(state.bad_step))
        self._last_save = step
        with self._telling_failures():
            self._checkpoints.save(step, state, None if validation is None else {BEST_BY: validation})
        self._logbook.restart_clock(step)

    @contextmanager
    def _telling_failures(self) -> Generator[None, None, None]:
        try:
            yield
        except CheckpointError as error:
            if jax.process_count() > 1:  # The others know nothing of it and would wait for this one.
                cli.fail(error, 1)
            self._display.say(f"warning: {error}")

    def _settle(self) -> None:
        """Waits for the write under way."""
        with self._telling_failures():
            self._checkpoints.wait()

    def _end(self, state: TrainState, step: int) -> int:
        """Makes sure that ``step`` is on disk, says what was reached and returns the exit code."""
        self._settle()
        if step not in self._checkpoints.steps and step != self._last_save:
            self._save(state, step, None)
            self._settle()
        if step not in self._checkpoints.steps:
            cli.fail(f"step {step} is not saved; the last good checkpoint is {self._checkpoints.latest}", 1)
        if step < self._run.config.train.steps:
            self._display.say(f"stopped at step {step}; the same command goes on from there")
            return self._stop.exit_code
        best = self._checkpoints.best
        told = f"; best validation loss {best[1]:.4f} at step {best[0]}" if best else ""
        self._display.say(f"finished {step} steps{told}")
        return 0

    def _give_up(self, index: int) -> NoReturn:
        """Ends the run over a non-finite update; ``index`` counts from 0, what people see from 1."""
        self._settle()
        rows = self._run.batches.indices(index).tolist()
        good = self._checkpoints.latest
        cli.fail(
            f"loss or gradient of step {index + 1} is not finite; training stopped; rows of train.h5 in its batch: "
            f"{rows}; "
            + (f"last good checkpoint: {good}" if good is not None else "no checkpoint was written yet")
            + "; look at the data with python -m data_pipeline.check, or lower optim.lr",
            1,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_string("workdir", None, "Folder of the run: config, logs, checkpoints. Made if missing.")
    flags.mark_flag_as_required("workdir")
    cli.run(main)
