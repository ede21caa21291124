"""Measures the renderer: python scripts/bench_render.py --config=configs/render_surge_simple.py [--workers=1,2]

Renders in this process, with the code of the workers, and prints the median milliseconds of each stage a render, the
accepted rows a second, and how the process's memory grows; then, for each number in --workers, the rows a second of
so many worker processes. Stages follow each other: parameters drawn and decoded, the synthesizer (for a plugin also its
parts: state set, silence played before the note, note played), loudness, and for accepted rows the mel spectrogram and
the compression.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from absl import flags

from data_pipeline import cli, config_flag, row_renderer
from data_pipeline.batch_renderer import Batch
from data_pipeline.progress import progress_bar
from data_pipeline.render_config import render_settings, supervision
from data_pipeline.row_renderer import RenderSettings, RowRenderer
from data_pipeline.synths import hosting
from data_pipeline.synths.protocol import open_synth
from data_pipeline.worker_pool import Supervision, WorkerPool

FLAGS = flags.FLAGS
MIB = 2**20


class Stopwatch:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, list[float]] = defaultdict(list)

    def wrap(self, stage: str, function: Callable) -> Callable:
        """The function, with the time of every call noted."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.milliseconds[stage].append(1e3 * (time.perf_counter() - start))

        return timed


def main(argv: list[str]) -> int:
    """Entry point of the command."""
    config = config_flag.read()
    settings = render_settings(
        config, seed=FLAGS.seed, plugin=FLAGS.plugin, allow_other_version=FLAGS.allow_other_version
    )
    figures: dict[str, Any] = {"spec": config.spec, "python": platform.python_version()}
    figures |= bench_process(copy.deepcopy(settings), config.batch_rows)  # Its spec gets a stopwatch.
    for workers in map(int, FLAGS.workers):
        figures[f"rows_per_second_{workers}_workers"] = bench_workers(
            settings, supervision(config), config.batch_rows, workers
        )
    for name, value in figures.items():
        print(f"{name:<32} {value:.4g}" if isinstance(value, float) else f"{name:<32} {value}")
    if FLAGS.json:
        Path(FLAGS.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def bench_process(settings: RenderSettings, batch_rows: int) -> dict[str, Any]:
    """One worker's work in this process."""
    watch = Stopwatch()
    start = time.perf_counter()
    synth = open_synth(settings.synth)
    opening = time.perf_counter() - start
    renderer = RowRenderer(settings, synth)
    _instrument(watch, synth, renderer)
    renderer.render(Batch(tuple(range(batch_rows))), lambda attempt: None)  # Caches fill, buffers grow.
    watch.milliseconds.clear()
    memory = [_memory()]
    start = time.perf_counter()
    with progress_bar("rendering", FLAGS.rows) as advance:
        for first in range(batch_rows, FLAGS.rows + batch_rows, batch_rows):
            renderer.render(Batch(tuple(range(first, first + batch_rows))), lambda attempt: None)
            memory.append(_memory())
            advance(batch_rows)
    seconds = time.perf_counter() - start
    rows = (len(memory) - 1) * batch_rows
    renders = len(watch.milliseconds["synthesizer"])
    stages = {f"ms {stage}": statistics.median(times) for stage, times in watch.milliseconds.items()}
    return {
        "opening_seconds": opening,
        **stages,
        "renders": renders,
        "accepted_rows": rows,
        "rows_per_second_in_process": rows / seconds,
        "ms_per_accepted_row": 1e3 * seconds / rows,
        "memory_mib_first_half_last": [memory[0], memory[len(memory) // 2], memory[-1]],
    }


def bench_workers(settings: RenderSettings, limits: Supervision, batch_rows: int, workers: int) -> float:
    """Rows a second of a pool, from its first outcome on, when every worker has started."""
    batches = [Batch(tuple(range(first, first + batch_rows))) for first in range(0, FLAGS.rows * workers, batch_rows)]
    with WorkerPool(settings, workers, limits) as pool:
        outcomes = pool.run(batches)
        for _ in range(workers):
            next(outcomes)
        start = time.perf_counter()
        rows = sum(len(outcome.batch.rows) for outcome in outcomes)
        return rows / (time.perf_counter() - start)


def _instrument(watch: Stopwatch, synth: Any, renderer: RowRenderer) -> None:
    """Puts the stopwatch around every stage of the renderer."""
    synth.render = watch.wrap("synthesizer", synth.render)
    synth.verify = watch.wrap("verification", synth.verify)
    spec, encoder = renderer._spec, renderer._encoder
    object.__setattr__(spec, "decode", watch.wrap("decoding", spec.decode))
    object.__setattr__(spec, "sample", watch.wrap("drawing 64 patches", spec.sample))
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
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
