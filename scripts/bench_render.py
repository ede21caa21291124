"""Measures the renderer: python scripts/bench_render.py --config=configs/render_surge_simple.py [--workers=1,2]

Renders in this process, with the code of the workers, and prints the accepted rows a second, and how the process's
memory grows; then, for each number in --workers, the rows a second of so many worker processes. The table has the
median of each stage a render and of a whole row. Stages follow each other: parameters drawn and decoded, the
synthesizer (for a plugin also its parts: state set, silence played before the note, note played), loudness, and for
accepted rows the mel spectrogram and the compression. percent_of_real_time is the time of a core beside the length of
the sound, 4 s: at a hundredth a core renders a hundred sounds in the time of one. FLOPs and bytes of a plugin cannot
be counted.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psutil
from absl import flags
from bench_report import Report

from data_pipeline import cli, config_flag, row_renderer
from data_pipeline.batch_renderer import Batch
from data_pipeline.progress import progress_bar
from data_pipeline.render_config import render_settings, supervision
from data_pipeline.row_renderer import ATTEMPTS_AT_ONCE, RenderSettings, RowRenderer
from data_pipeline.synths import hosting
from data_pipeline.synths.protocol import SECONDS, open_synth
from data_pipeline.worker_pool import Supervision, WorkerPool

FLAGS = flags.FLAGS
MIB = 2**20


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def wrap(self, stage: str, function: Callable, sounds: int = 1) -> Callable:
        """The function, with the time of every call noted, for each of the sounds that it works for."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.seconds[stage].append((time.perf_counter() - start) / sounds)

        return timed


def main(argv: list[str]) -> int:
    """Entry point of the command."""
    config = config_flag.read()
    settings = render_settings(
        config, seed=FLAGS.seed, plugin=FLAGS.plugin, allow_other_version=FLAGS.allow_other_version
    )
    report = Report()
    report.setting["spec"] = config.spec
    bench_process(report, copy.deepcopy(settings), config.batch_rows)  # Its spec gets a stopwatch.
    for workers in map(int, FLAGS.workers):
        bench_workers(report, settings, supervision(config), config.batch_rows, workers)
    report.tell(FLAGS.json)
    return 0


def bench_process(report: Report, settings: RenderSettings, batch_rows: int) -> None:
    """One worker's work in this process."""
    watch = Stopwatch()
    start = time.perf_counter()
    synth = open_synth(settings.synth)
    opening = time.perf_counter() - start
    renderer = RowRenderer(settings, synth)
    _instrument(watch, synth, renderer, batch_rows)
    renderer.render(Batch(tuple(range(batch_rows))), lambda attempt: None)  # Caches fill, buffers grow.
    watch.seconds.clear()
    memory, batch_seconds = [_memory()], []
    with progress_bar("rendering", FLAGS.rows) as advance:
        for first in range(batch_rows, FLAGS.rows + batch_rows, batch_rows):
            start = time.perf_counter()
            renderer.render(Batch(tuple(range(first, first + batch_rows))), lambda attempt: None)
            batch_seconds.append(time.perf_counter() - start)
            memory.append(_memory())
            advance(batch_rows)
    rows, seconds = len(batch_seconds) * batch_rows, sum(batch_seconds)
    report.setting |= {
        "opening_seconds": opening,
        "renders": len(watch.seconds["synthesizer"]),
        "accepted_rows": rows,
        "rows_per_second_in_process": rows / seconds,
        "ms_per_accepted_row": 1e3 * seconds / rows,
        "memory_mib_first_half_last": [memory[0], memory[len(memory) // 2], memory[-1]],
    }
    for stage, times in watch.seconds.items():
        _add(report, stage, statistics.median(times))
    _add(report, "an accepted row, in this process", statistics.median(batch_seconds) / batch_rows)


def bench_workers(report: Report, settings: RenderSettings, limits: Supervision, batch_rows: int, workers: int) -> None:
    """Rows a second of a pool, from its first outcome on, when every worker has started."""
    rows = (FLAGS.rows + batch_rows) * workers
    batches = [Batch(tuple(range(first, first + batch_rows))) for first in range(0, rows, batch_rows)]
    with WorkerPool(settings, workers, limits) as pool:
        outcomes = pool.run(batches)
        for _ in range(workers):
            next(outcomes)
        times = [time.perf_counter(), *(time.perf_counter() for _ in outcomes)]
    rate = (len(times) - 1) * batch_rows / (times[-1] - times[0])
    report.setting[f"rows_per_second_{workers}_workers"] = rate
    # Outcomes of workers that keep step come together, so that single intervals say nothing.
    rounds = [later - earlier for earlier, later in pairwise(times[::workers])]
    _add(report, f"an accepted row, workers {workers}", statistics.median(rounds) / (workers * batch_rows), workers)


def _add(report: Report, name: str, seconds: float, cores: int = 1) -> None:
    """A row of what makes a sound in so many seconds, on so many cores."""
    report.add(
        {
            "name": name,
            "median_ms": 1e3 * seconds,
            "samples_per_second": 1 / seconds,
            "gflop": None,
            "gb_moved": None,
            "percent_of_peak": None,
            "percent_of_real_time": 100 * cores * seconds / SECONDS,
        }
    )


def _instrument(watch: Stopwatch, synth: Any, renderer: RowRenderer, batch_rows: int) -> None:
    """Puts the stopwatch around every stage of the renderer."""
    synth.render = watch.wrap("synthesizer", synth.render)
    synth.verify = watch.wrap("verification", synth.verify)
    spec, encoder = renderer._spec, renderer._encoder
    object.__setattr__(spec, "decode", watch.wrap("decoding", spec.decode))
    object.__setattr__(spec, "sample", watch.wrap("drawing", spec.sample, batch_rows * ATTEMPTS_AT_ONCE))
    encoder.encode = watch.wrap("compression", encoder.encode)  # type: ignore[method-assign]
    row_renderer.fault = watch.wrap("loudness", row_renderer.fault)
    row_renderer.mel_spectrogram = watch.wrap("mel spectrogram", row_renderer.mel_spectrogram)
    hosting.settle = watch.wrap("plugin: silence before the note", hosting.settle)


def _memory() -> int:
    return psutil.Process(os.getpid()).memory_info().rss // MIB


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_string("plugin", "", "Path of the VST3 plugin, as in data_pipeline.render_shards.")
    flags.DEFINE_bool("allow_other_version", False, "Accept a Surge XT that was never tested.")
    flags.DEFINE_integer("rows", 320, "Accepted rows to measure.", lower_bound=16)
    flags.DEFINE_integer("seed", 0, "Seed of the data set.")
    flags.DEFINE_list("workers", [], "Numbers of worker processes to measure, such as 1,2.")
    flags.register_validator(
        "workers",
        lambda counts: all(count.isdecimal() and int(count) for count in counts),
        "must be numbers above 0, such as 1,2",
    )
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
