"""Trains a model: python -m synthjax.train --config=configs/flow_100k.py --workdir=DIR [--config.KEY=VALUE ...]

Started again in the same workdir it goes on from the latest checkpoint, to the same figures as if never stopped.
SIGTERM saves and exits 0, Ctrl-C saves and exits 130.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NoReturn

import jax
import ml_collections
from absl import flags
from jax.sharding import Mesh

from data_pipeline import cli, config_flag
from data_pipeline.stats import MelStats
from synthjax import cloud_runs, compilation_cache, distributed, sharding
from synthjax.check_config import check_config
from synthjax.checkpoints import BEST_BY, CheckpointError, Checkpoints
from synthjax.console import TrainingDisplay
from synthjax.data import HostBatch, TrainBatches, from_model_scale, prefetch
from synthjax.flops import program_flops
from synthjax.interrupts import StopRequest
from synthjax.k_osc_task import KOscBatches
from synthjax.logbook import Logbook, NonFinite
from synthjax.probe import Probe, start_probe
from synthjax.profiling import Profiler, parse_window
from synthjax.run_summary import summary
from synthjax.tasks import Batch
from synthjax.train_step import NO_BAD_STEP, Trainer, TrainState, abstract_state, jit_init, jit_train_step
from synthjax.training_data import ShardTrainingData, TrainingData, open_training_data
from synthjax.validation import Validator
from synthjax.workdir import Workdir
from synthjax.writers import Writers


@dataclass(frozen=True)
class Run:
    """What a run is made of and does not change while it trains."""

    config: ml_collections.ConfigDict
    data: TrainingData
    mesh: Mesh
    trainer: Trainer
    shardings: TrainState
    batches: TrainBatches | KOscBatches
    stats: MelStats | None
    validator: Validator | None


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: config values are set as --config.KEY=VALUE")
    config = config_flag.read()
    with distributed.joined(), cloud_runs.training(flags.FLAGS.workdir) as workdir:
        compilation_cache.enable()
        return train(config, workdir)


def train(config: ml_collections.ConfigDict, workdir: Workdir) -> int:
    """Trains ``config`` in ``workdir``, from its latest checkpoint where it has one; returns the exit code."""
    run = set_up(config)
    with ExitStack() as stack:
        if distributed.is_main():
            stack.enter_context(workdir.held(lambda line: print(line, file=sys.stderr, flush=True)))
        workdir.prepare(config, run.data.identity, write=distributed.is_main())
        checkpoints = stack.enter_context(Checkpoints(workdir.checkpoints, keep=config.checkpoint.keep))
        state, start = _restore_or_init(run, checkpoints)
        display = stack.enter_context(TrainingDisplay(start, config.train.steps, enabled=distributed.is_main()))
        _announce(run, display, start, checkpoints)
        if start >= config.train.steps:
            return 0
        if distributed.is_main():
            workdir.note_start(start, jax.process_count())
        writers = Writers.open(workdir, config, start) if distributed.is_main() else None
        if writers:
            stack.callback(writers.close)
        logbook = Logbook(writers, display, config.data.batch_size)
        stack.callback(logbook.close)
        to_batch = _load(run, display)  # A signal ends it at once: there is nothing to save.
        stop = stack.enter_context(StopRequest())
        probe = _start_probe(run, writers, display)
        if probe:
            stack.callback(probe.close)
        profiler = Profiler(parse_window(config.profile), workdir.tensorboard)
        stack.callback(profiler.close)
        display.start_bar()
        code = Loop(run, to_batch, checkpoints, logbook, display, stop, probe, profiler).go(state, start)
        display.say(summary(logbook.count(), config, workdir.starts()))
        return code


def set_up(config: ml_collections.ConfigDict) -> Run:
    """Checks that config, data and devices fit each other, and builds what the loop needs.

    Raises:
      UserError: if they do not.
    """
    check_config(config)
    data = open_training_data(config)
    trainer = Trainer.create(config, data.task)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.data.batch_size, mesh, config.train.accumulate)
    placement = sharding.batch_sharding(mesh)
    held_out = data.held_out(placement)
    return Run(
        config=config,
        data=data,
        mesh=mesh,
        trainer=trainer,
        shardings=trainer.state_shardings(mesh),
        batches=data.batches(sharding.rows_of_this_process(placement, config.data.batch_size)),
        stats=jax.device_put(data.stats, sharding.replicated(mesh)),
        validator=None if held_out is None else Validator(trainer, mesh, held_out),
    )


def _restore_or_init(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    latest = checkpoints.latest
    settings = run.config.to_dict()
    settings["data"].pop("root", None)  # Every host may have a copy of its own.
    distributed.require_same(
        {"the config": settings, "the training data": run.data.identity, "the latest checkpoint": latest},
        "start all with the same flags and data, and --workdir in a folder or bucket that all of them see",
    )
    if latest is None:
        return jit_init(run.trainer, run.shardings)(), 0
    return checkpoints.restore(latest, abstract_state(run.trainer, run.shardings)), latest


def _announce(run: Run, display: TrainingDisplay, start: int, checkpoints: Checkpoints) -> None:
    millions = run.trainer.parameter_count() / 1e6
    shape = sharding.shape_of(run.mesh)
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
    data, wanted = run.data, run.config.validation
    if writers is None or run.validator is None or not isinstance(data, ShardTrainingData) or not wanted.probe_sounds:
        return None
    targets = data.sounds(min(wanted.probe_sounds, wanted.sampled_rows, wanted.rows))
    return start_probe(data.spec, targets, writers, display.say)


def _load(run: Run, display: TrainingDisplay) -> Callable[[HostBatch], Batch]:
    """Fills the data's cache, where it has one."""
    started = time.perf_counter()
    to_batch = run.data.load(run.mesh)
    if run.config.data.get("cache", "none") != "none":
        display.say(f"read the training data into memory in {time.perf_counter() - started:.1f} s")
    return to_batch


class Loop:
    """Validate -> save -> next batch -> step, so that figures describe the saved state and its data position."""

    def __init__(
        self,
        run: Run,
        to_batch: Callable[[HostBatch], Batch],
        checkpoints: Checkpoints,
        logbook: Logbook,
        display: TrainingDisplay,
        stop: StopRequest,
        probe: Probe | None,
        profiler: Profiler,
    ) -> None:
        self._run, self._to_batch, self._checkpoints, self._logbook = run, to_batch, checkpoints, logbook
        self._display, self._stop, self._probe, self._profiler = display, stop, probe, profiler
        self._compiled: jax.stages.Compiled | None = None
        self._last_save: int | None = None

    def go(self, state: TrainState, start: int) -> int:
        """Steps from ``start`` to the end or until asked to stop; returns the exit code."""
        config, step = self._run.config, start
        with prefetch(self._run.batches, workers=self._run.data.workers, start=start) as stream:
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
        if self._profiler.due(step):
            self._logbook.settle()  # Else steps of before would be in the trace.
            self._profiler.switch()
            self._logbook.restart_clock()
        asked = time.perf_counter()
        host_batch = next(stream)
        waited = time.perf_counter() - asked
        batch = self._to_batch(host_batch)
        if self._compiled is None:
            self._compiled = self._compile(state, batch)
            self._logbook.restart_clock()
            waited = 0.0  # For workers that start: no more a part of the step than its compilation.
        with self._profiler.annotated(step):
            state, metrics = self._compiled(state, batch, self._run.stats)
        self._logbook.stepped(step + 1, metrics, waited)
        if _due(step + 1, self._run.config.train.log_every):
            self._logbook.note(step + 1, metrics)
        return state

    def _compile(self, state: TrainState, batch: dict[str, jax.Array]) -> jax.stages.Compiled:
        started = time.perf_counter()
        jitted = jit_train_step(self._run.trainer, self._run.mesh, self._run.shardings)
        traced = jitted.trace(state, batch, self._run.stats)
        self._logbook.totals.flops_per_step = program_flops(traced)
        compiled = traced.lower().compile()
        self._display.say(f"compiled the step in {time.perf_counter() - started:.1f} s")
        return compiled

    def _validate(self, state: TrainState, step: int) -> float | None:
        """Logs validation figures and pictures of the averaged weights, and has them heard; returns the loss."""
        if self._run.validator is None:
            return None
        self._logbook.settle()  # Else validation would wait for them, and seem to take longer than it does.
        result = self._run.validator(state.ema, self._run.stats)
        self._logbook.flush((step, result.scalars))
        if self._probe:
            self._probe.submit(step, from_model_scale(result.sampled))
        if distributed.is_main():
            for name, pixels in result.pictures(self._run.trainer.task.column_names).items():
                self._logbook.image(step, name, pixels)
        self._logbook.restart_clock()
        return result.scalars[BEST_BY]

    def _save(self, state: TrainState, step: int, validation: float | None) -> None:
        """Starts to write a finite state; that an earlier write failed is told, and training goes on."""
        self._logbook.sync()
        if int(state.bad_step) != NO_BAD_STEP:
            raise NonFinite(int(state.bad_step))
        self._last_save = step
        with self._telling_failures():
            self._checkpoints.save(step, state, None if validation is None else {BEST_BY: validation})
        self._logbook.restart_clock()

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
        if step < self._run.config.train.steps:
            self._display.say("asked to stop: finishing the steps under way and saving; a second Ctrl-C ends at once")
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
        good, batches = self._checkpoints.latest, self._run.batches
        rows, remedy = "", "lower optim.lr"
        if isinstance(batches, TrainBatches):
            rows = f"; rows of train.h5 in its batch: {batches.indices(index).tolist()}"
            remedy = f"look at the data with python -m data_pipeline.check, or {remedy}"
        cli.fail(
            f"loss or gradient of step {index + 1} is not finite; training stopped{rows}; "
            + (f"last good checkpoint: {good}" if good is not None else "no checkpoint was written yet")
            + f"; {remedy}",
            1,
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_string("workdir", None, "Folder or gs:// or s3:// URL of the run: config, logs, checkpoints.")
    flags.mark_flag_as_required("workdir")
    distributed.define()
    cli.run(main)
