"""Trains a model: python -m synthjax.train --config=configs/flow_100k.py --workdir=DIR [--config.KEY=VALUE ...]

Started again in the same workdir, it goes on from the latest checkpoint, to the same figures as a run without a stop.
SIGTERM saves and exits with 0; Ctrl-C saves and exits with 130; a second Ctrl-C ends at once.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing

import jax
import ml_collections
from absl import flags

from data_pipeline.console import cli, config_flag
from synthjax.cluster import distributed, jax_settings
from synthjax.runs import cloud_runs
from synthjax.runs.check_config import parse_window
from synthjax.runs.checkpoints import Checkpoints
from synthjax.runs.workdir import Workdir
from synthjax.training.compiled_step import CompiledStep, Profiler, timed_batches
from synthjax.training.display import TrainingDisplay
from synthjax.training.interrupts import StopRequest
from synthjax.training.logbook import Logbook
from synthjax.training.saving import Saver
from synthjax.training.setup import Run, base_of, describe_start, load_data, restore_or_init, set_up
from synthjax.training.trainer import NonFinite
from synthjax.training.validation import LoggedValidation
from synthjax.training.writers import Writers


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: config values are set as --config.KEY=VALUE")
    config = config_flag.read()
    with distributed.joined(), cloud_runs.training(flags.FLAGS.workdir) as workdir:
        jax_settings.apply()
        return train(config, workdir)


def train(config: ml_collections.ConfigDict, workdir: Workdir) -> int:
    """Trains ``config`` in ``workdir``, from its latest checkpoint if it has one; returns the exit code."""
    base = base_of(config)
    saved = workdir.read_stats() if workdir.stats.exists() else base().stats() if base else None
    run, steps, main_process = set_up(config, saved), config.train.steps, distributed.is_main()
    with ExitStack() as stack:
        enter = stack.enter_context
        if main_process:
            enter(workdir.held(lambda line: print(line, file=sys.stderr, flush=True)))
        workdir.prepare(config, run.data.identity, run.data.stats, write=main_process)
        checkpoints = enter(Checkpoints(workdir.checkpoints, keep=config.checkpoint.keep))
        state, step = restore_or_init(run, checkpoints, base)

        display = enter(TrainingDisplay(step, steps, enabled=main_process))
        for line in describe_start(run, step, checkpoints):
            display.say(line)
        if step >= steps:
            return 0
        if main_process:
            workdir.note_start(step, jax.process_count())
        writers = enter(closing(Writers.open(workdir, config, step, write=main_process)))
        logbook = enter(closing(Logbook(writers, display, config)))
        to_batch = load_data(run, display)
        stop = enter(StopRequest())  # Before this line a signal ends the run at once: there is nothing to save.
        validate = enter(closing(LoggedValidation(run, logbook, writers, display.say)))
        profiler = enter(closing(Profiler(parse_window(config.profile), workdir.tensorboard, logbook)))
        train_step, saver = CompiledStep(run, logbook, display.say), Saver(checkpoints, logbook, display.say)
        display.start_bar()
        batches = enter(timed_batches(run, step, to_batch))

        try:
            while step < steps and not stop.due(step):
                profiler.before(step)
                state, metrics = train_step(state, next(batches), step)
                step += 1
                logbook.stepped(step, metrics, batches.waited)
                # Validation comes before saving and saving before the next batch: so the figures describe the saved
                # state, and the saved step is its position in the data.
                last, loss = step == steps, None
                if last or _due(step, config.train.eval_every):
                    loss = validate(state, step)
                if last or _due(step, config.checkpoint.every) or saver.is_best(loss):
                    saver.save(state, step, loss)
            if step < steps:
                display.say("asked to stop: finishing the steps under way and saving; a second Ctrl-C ends at once")
            saver.finish(state, step)
        except NonFinite as error:
            saver.wait()
            cli.fail(_not_finite(run, error.step, checkpoints.latest), 1)
        except OSError as error:  # The logs are on the same disk as the checkpoints.
            saver.wait()
            cli.fail(f"step {step}: {error}; the last good checkpoint is {checkpoints.latest}", 1)

        stopped = f"stopped at step {step}; the same command goes on from there"
        display.say(stopped if step < steps else f"finished {step} steps{checkpoints.best_text()}")
        display.say(logbook.summary(workdir.starts()))
        return stop.exit_code if step < steps else 0


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _not_finite(run: Run, step: int, latest: int | None) -> str:
    """The message for a NaN or an infinity in ``step``, which counts from 0; people see steps counted from 1."""
    rows, remedy = run.data.rows_of_step(step), "lower optim.lr"
    parts = [f"loss or gradient of step {step + 1} is not finite", "training stopped"]
    if rows is not None:
        parts.append(f"rows of train.h5 in its batch: {rows}")
        remedy = f"look at the data with python -m data_pipeline.check, or {remedy}"
    parts.append("no checkpoint was written yet" if latest is None else f"last good checkpoint: {latest}")
    return "; ".join([*parts, remedy])


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_string("workdir", None, "Folder or gs:// or s3:// URL of the run: config, logs, checkpoints.")
    flags.mark_flag_as_required("workdir")
    distributed.define()
    cli.run(main)
