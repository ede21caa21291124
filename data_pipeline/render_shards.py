"""Renders a data set's shards.

    python -m data_pipeline.render_shards --config=configs/render_dexed.py --output=DIR --shards=0-11

writes DIR/shard-0.h5 to DIR/shard-11.h5. A patch depends on --seed, its row k and the number of the attempt alone, so
the jobs of an array can share the work by --shards. With --prior it also depends on the patches of that folder. With
Surge XT about one row in 120 differs between runs, since another attempt is the first that is loud enough; every row
has the label of its own audio. Every batch of rows is committed when it is rendered: after Ctrl-C, a crash or a full
disk the same command continues where it stopped.
Rendering uses every core unless --workers says otherwise. Surge XT is hosted by pedalboard; both are GPL-3.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import ml_collections
from absl import flags

from data_pipeline.console import cli, config_flag
from data_pipeline.console.cli import UserError, counted
from data_pipeline.console.machine import usable_cores
from data_pipeline.params.counter_rng import MAX_SEED
from data_pipeline.render.config import render_settings, supervision, with_prior
from data_pipeline.render.progress import RenderProgress
from data_pipeline.render.run import Plan, open_shards, render
from data_pipeline.render.worker_pool import WorkerPool
from data_pipeline.shards.splits import parse_shards
from data_pipeline.synths.choice import why_no_renderer

if TYPE_CHECKING:
    from data_pipeline.render.ray_executor import RayExecutor

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: this command takes flags alone, see --help")
    config = config_flag.read()
    plan = _plan(config)
    shards = open_shards(plan)
    total = len(plan.numbers) * plan.samples_per_shard
    missing = sum(len(shard.missing) for shard in shards)
    refused = sum((shard.refused for shard in shards), Counter())
    try:
        with _executor(config, plan, missing) as executor, RenderProgress(total, total - missing, refused) as progress:
            signal.signal(signal.SIGTERM, _interrupt)  # After Ray has installed its own handler.
            render(plan, shards, executor, progress)
    except KeyboardInterrupt:
        missing = sum(len(shard.missing) for shard in shards)
        cli.fail(f"interrupted; {total - missing} of {total} rows are safe, the same command goes on", cli.INTERRUPTED)
    finally:
        for shard in shards:
            shard.close()
    print(f"{counted(total, 'row')} in {counted(len(plan.numbers), 'shard')} are complete in {plan.output}")


def _plan(config: ml_collections.ConfigDict) -> Plan:
    settings = render_settings(
        config,
        seed=FLAGS.seed,
        plugin=FLAGS.plugin,
        preset=FLAGS.preset,
        plugin_name=FLAGS.plugin_name,
        allow_other_version=FLAGS.allow_other_version,
        verify_each=FLAGS.verify_each,
        store_audio=FLAGS.store_audio,
    )
    settings = with_prior(settings, FLAGS.prior)
    numbers = tuple(parse_shards(FLAGS.shards))
    return Plan(settings, Path(FLAGS.output), numbers, FLAGS.samples_per_shard, config.batch_rows)


def _executor(config: ml_collections.ConfigDict, plan: Plan, missing: int) -> WorkerPool | RayExecutor:
    if FLAGS.executor == "ray":
        from data_pipeline.render.ray_executor import RayExecutor

        return RayExecutor(plan.settings, supervision(config))
    if missing and (reason := why_no_renderer(plan.settings.synth)):
        raise UserError(reason)
    batches = -(-missing // plan.batch_rows)
    return WorkerPool(plan.settings, min(FLAGS.workers, batches), supervision(config))


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_string("output", None, "Folder for the shards.", required=True)
    flags.DEFINE_string("shards", None, "Numbers of the shards to render, such as 0-11 or 0,3,5-7.", required=True)
    flags.DEFINE_integer("samples_per_shard", 10_000, "Rows of each shard.", lower_bound=1, upper_bound=10_000_000)
    flags.DEFINE_integer(
        "workers", usable_cores(), "Worker processes on this machine, at most one for each core.", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "Seed of the data set.", lower_bound=0, upper_bound=MAX_SEED)
    flags.DEFINE_string(
        "prior",
        "",
        "Folder of preset files: patches are drawn as mixtures of theirs. Default: by the weights of the spec.",
    )
    flags.DEFINE_string("plugin", "", "Path of the VST3 plugin. Default for Surge XT: that of `make surge-xt`.")
    flags.DEFINE_string("plugin_name", "", "The plugin's name, where the file holds several.")
    flags.DEFINE_string("preset", "", "Base patch: a .vital, or a .vstpreset of a plugin other than Surge XT.")
    flags.DEFINE_bool("verify_each", False, "Check after every render that the plugin holds the patch.")
    flags.DEFINE_bool(
        "store_audio", True, "Store the sounds. Training needs spectrograms only, a quarter of the bytes or less."
    )
    flags.DEFINE_bool("allow_other_version", False, "Accept an untested version of Surge XT.")
    flags.DEFINE_enum("executor", "local", ["local", "ray"], "Where to render: on this machine, or a Ray cluster.")
    cli.run(main)
