"""Measures rendering: python -m scripts.benchmarks.renderer --config=configs/render_surge_simple.py [--workers=1,2]

Renders in this process with the workers' code, and reports accepted rows a second and the growth of the process's
memory; then, for each number in --workers, the rows a second of that many worker processes. The table has the median of
each stage of a render, and of a whole row. The stages follow each other: drawing and decoding of parameters, the
synthesizer (of a plugin also the silence before the note), loudness, and for accepted rows the mel spectrogram and the
compression. percent_of_real_time is one core's time beside the length of the sound, 4 s: at a hundredth, a core renders
a hundred sounds in the time of one. FLOPs and bytes of a plugin cannot be counted.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psutil
from absl import flags

from data_pipeline.audio.contract import SECONDS
from data_pipeline.console.progress import progress_bar
from data_pipeline.render import row_renderer
from data_pipeline.render.config import render_settings, supervision
from data_pipeline.render.row_renderer import ATTEMPTS_AT_ONCE, RenderSettings, RowRenderer
from data_pipeline.render.worker_messages import Batch
from data_pipeline.render.worker_pool import Supervision, WorkerPool
from data_pipeline.synths import hosting
from data_pipeline.synths.choice import open_synth
from scripts.benchmarks import report

FLAGS = flags.FLAGS


def measure(config: Any) -> report.Report:
    """Measures this process, then each number of workers."""
    chosen = {"plugin": FLAGS.plugin, "allow_other_version": FLAGS.allow_other_version}
    settings = render_settings(config, seed=FLAGS.seed, **chosen)
    results = report.Report(spec=config.spec)
    measure_process(results, copy.deepcopy(settings), config.batch_rows)  # A copy: its spec gets a stopwatch.
    for workers in map(int, FLAGS.workers):
        measure_workers(results, settings, supervision(config), config.batch_rows, workers)
    return results


def measure_process(results: report.Report, settings: RenderSettings, batch_rows: int) -> None:
    """Measures one worker's work in this process."""
    start = time.perf_counter()
    synth = open_synth(settings.synth)
    opening = time.perf_counter() - start
    renderer = RowRenderer(settings, synth)
    stages = _timed_stages(synth, renderer, batch_rows)
    renderer.render(Batch(tuple(range(batch_rows))), lambda attempt: None)  # Fills caches and buffers.
    stages.clear()
    memory, batch_seconds = [_memory_mib()], []
    with progress_bar("rendering", FLAGS.rows) as advance:
        for first in range(batch_rows, FLAGS.rows + batch_rows, batch_rows):
            start = time.perf_counter()
            renderer.render(Batch(tuple(range(first, first + batch_rows))), lambda attempt: None)
            batch_seconds.append(time.perf_counter() - start)
            memory.append(_memory_mib())
            advance(batch_rows)
    rows, seconds = len(batch_seconds) * batch_rows, sum(batch_seconds)
    results.setting |= {
        "opening_seconds": opening,
        "renders": len(stages["synthesizer"]),
        "accepted_rows": rows,
        "rows_per_second_in_process": rows / seconds,
        "ms_per_accepted_row": 1e3 * seconds / rows,
        "memory_mib_first_half_last": [memory[0], memory[len(memory) // 2], memory[-1]],
    }
    for stage, times in stages.items():
        _add(results, stage, statistics.median(times))
    _add(results, "an accepted row, in this process", statistics.median(batch_seconds) / batch_rows)


def measure_workers(
    results: report.Report, settings: RenderSettings, limits: Supervision, batch_rows: int, workers: int
) -> None:
    """Measures the rows a second of a pool, once every worker has returned its first batch."""
    rows = (FLAGS.rows + batch_rows) * workers
    batches = [Batch(tuple(range(first, first + batch_rows))) for first in range(0, rows, batch_rows)]
    with WorkerPool(settings, workers, limits) as pool:
        outcomes = pool.run(batches)
        for _ in range(workers):
            next(outcomes)
        times = [time.perf_counter(), *(time.perf_counter() for _ in outcomes)]
    results.setting[f"rows_per_second_{workers}_workers"] = (len(times) - 1) * batch_rows / (times[-1] - times[0])
    # Workers return their batches together, so only the time of a round of all workers counts.
    rounds = [later - earlier for earlier, later in pairwise(times[::workers])]
    _add(results, f"an accepted row, workers {workers}", statistics.median(rounds) / (workers * batch_rows), workers)


def _add(results: report.Report, name: str, seconds: float, cores: int = 1) -> None:
    """Adds a row for the seconds of one sound on ``cores`` cores."""
    row = {"name": name, "median_ms": 1e3 * seconds, "samples_per_second": 1 / seconds}
    not_counted = dict.fromkeys(("gflop", "gb_moved", "percent_of_peak"))
    results.add(row | not_counted | {"percent_of_real_time": 100 * cores * seconds / SECONDS})


def _timed_stages(synth: Any, renderer: RowRenderer, batch_rows: int) -> dict[str, list[float]]:
    """Puts a stopwatch around every stage of the renderer; returns the seconds of a sound by stage, which then grow."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(stage: str, owner: Any, name: str, sounds: int = 1) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[stage].append((time.perf_counter() - start) / sounds)

        object.__setattr__(owner, name, call)  # Works for frozen dataclasses too.

    timed("synthesizer", synth, "render")
    timed("verification", synth, "verify")
    timed("decoding", renderer._spec, "decode")
    timed("drawing", renderer._spec, "sample", batch_rows * ATTEMPTS_AT_ONCE)
    timed("compression", renderer._encoder, "encode")
    timed("loudness", row_renderer, "fault")
    timed("mel spectrogram", row_renderer, "mel_spectrogram")
    timed("plugin: silence before the note", hosting, "settle")
    return seconds


def _memory_mib() -> int:
    return psutil.Process().memory_info().rss // 2**20


if __name__ == "__main__":
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
    report.run(measure)
