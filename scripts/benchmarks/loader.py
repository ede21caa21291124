"""Measures the training input: python -m scripts.benchmarks.loader --config=configs/flow_100k.py

    python -m scripts.benchmarks.loader --config=configs/flow_100k.py --config.data.root=DIR

Without a data set it makes one of --rows rows, which lies in the page cache: parameters drawn from the config's spec,
and spectrograms of 320 sounds of the built-in synthesizer again and again, compressed as in any shard (stored_kb_a_row;
of 205 kB, sounds of Surge XT take 34). With a data set on a disk, the first run measures the disk. For each setting of
data.cache for which there is memory, the table has batches made in one thread, with and without coupling; then batches
prefetched by each number of processes in --workers (a cache needs none); and the same with every batch placed on the
device and standardised there before the next one is asked for.

The limit is a bare h5py loop over the same random rows: percent_of_bare_loops is the share of as many such loops as
there are processes that read. Processor seconds are those of this process and its workers. Bytes are those of the
batch's arrays on the host. Bandwidth is that of numpy's copy between two large arrays, in one thread.

The last rows compare with old shards: spectrograms in float32, in the chunks that h5py guesses for a shard of 10,000
rows, read and normalised one after another in random order, against batches from the shard that data_pipeline.rechunk
makes of it. --old_rows=0 leaves them out.
"""

from __future__ import annotations

import itertools
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import jax
import ml_collections
import numpy as np
import psutil
from absl import flags

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.cached_reader import TooLarge
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats, standardise
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY, ShardReader
from scripts.benchmarks import report
from scripts.benchmarks.data_sets import (
    FIRST_SHARD,
    given_or_made,
    repeat_shard,
    stored_bytes_a_row,
    write_old_shard,
)
from scripts.benchmarks.roofline import median_seconds
from synthjax.cluster import sharding
from synthjax.methods.coupling import couple, group_rows
from synthjax.methods.examples import HostBatch, draw_noise, to_model_scale
from synthjax.tasks.batches import BATCHES_AHEAD, open_split, prefetch
from synthjax.tasks.shards import ShardTrainingData

ROUNDS = 5
CACHES = ("none", "host", "device")
# Rows of an old shard that are read in a round: each one decompresses a hundred megabytes.
OLD_ROWS_A_ROUND = 8
COPY_BYTES = 1 << 28


def measure(config: ml_collections.ConfigDict) -> report.Report:
    """Measures each kind of input that the flags name."""
    f = flags.FLAGS
    if config.data.source != "shards":
        raise UserError(f"data.source={config.data.source} reads nothing: use a config of shards")
    config.train.eval_every = 0  # So that no val.h5 is needed.
    config.train.steps = 1 << 20  # More batches than are measured.
    with tempfile.TemporaryDirectory(prefix="bench_loader-") as folder:
        config.data.root = given_or_made(f["config"], f.rows, folder)
        bench = LoaderBench(config)
        bench.measure_bare_loop()
        for cache in f.caches:
            try:
                bench.measure_cache(cache, list(map(int, f.workers)))
            except TooLarge as error:
                print(f"not measured: {error}", file=sys.stderr, flush=True)
        bench.measure_coupling()
        if f.old_rows:
            bench.measure_old_shard(Path(folder), f.old_rows)
    return bench.report


class LoaderBench:
    """Measures batches of a config's data set, --batches in each of ``ROUNDS`` rounds."""

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self._config, self._size = config, config.data.batch_size
        self._mesh = sharding.make_mesh(config.mesh)
        spec = load_spec(config.data.spec)
        self._reader = open_split(config.data.root, "train", spec, allow_external=config.data.allow_external)
        self._order = ShardTrainingData(self._copy(cache="none")).batches(range(self._size))
        source, target = np.ones(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)
        self._bandwidth = 2 * COPY_BYTES / median_seconds(partial(np.copyto, target, source))
        self._bare_rate = 0.0
        self.report = report.Report(
            device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            copy_gb_per_second=self._bandwidth / 1e9,
            data_rows=len(self._reader),
            stored_kb_a_row=stored_bytes_a_row(self._reader) / 1e3,
            batch_size=self._size,
        )

    def measure_bare_loop(self) -> None:
        """Measures the limit of the other rows; its row numbers are known beforehand."""
        steps = [self._order.indices(step) for step in range(1 + ROUNDS * flags.FLAGS.batches)]
        self._add("bare h5py loop", bare_loop(self._reader, steps), self._size)

    def measure_cache(self, cache: str, workers: list[int]) -> None:
        """Measures batches made in this thread, then prefetched ones, coupled where training couples."""
        config = self._copy(cache=cache)
        data = ShardTrainingData(config)
        to_batch, trained = data.load(self._mesh), config.flow.coupling
        for coupled in (False, True) if config.model.kind == "flow" else (False,):
            config.flow.coupling = coupled  # ``batches`` reads it.
            name = f"cache {cache}, one thread, {'' if coupled else 'not '}coupled"
            self._add(name, in_turn(data, self._size), self._size)
        config.flow.coupling = trained
        stats, inputs = jax.device_put(data.stats, sharding.replicated(self._mesh)), jax.jit(data.task.inputs)
        for count in workers if cache == "none" else [data.workers]:
            name, loops = f"cache {cache}, workers {count}", max(1, count)
            with prefetch(data.batches(range(self._size)), workers=count) as stream:
                for _ in range(1 + 2 * BATCHES_AHEAD * loops):  # Batches that were made before the clock started.
                    next(stream)

                def on_device(stream: Any = stream) -> HostBatch:
                    batch = next(stream)
                    jax.block_until_ready(inputs(to_batch(batch), stats))
                    return batch

                self._add(name, partial(next, stream), self._size, loops=loops)
                self._add(f"{name}, on device", on_device, self._size, loops=loops)

    def measure_coupling(self) -> None:
        """Measures the pairing of one group of rows and noise."""
        rows = group_rows(self._size)
        x1 = to_model_scale(self._reader.read_rows(PARAM_ARRAY, self._order.indices(0)[:rows]))
        noise = draw_noise(*x1.shape, self._config.seed)
        self._add(f"coupling {rows} rows", lambda: {"x0": couple(noise, x1)}, rows, loops=None)

    def measure_old_shard(self, folder: Path, rows: int) -> None:
        """Measures the PyTorch code's way with its shards, then ours after data_pipeline.rechunk."""
        old, root = folder / "old.h5", folder / "rechunked"
        write_old_shard(old, self._reader, min(len(self._reader), rows))
        (root / "shards").mkdir(parents=True)
        command = ["data_pipeline.rechunk", str(old), str(root / FIRST_SHARD), f"--spec={self._config.data.spec}"]
        subprocess.run([sys.executable, "-m", *command], stdout=sys.stderr, check=True)
        repeat_shard(root, max(len(self._reader), self._size))
        shutil.copy(Path(self._config.data.root) / STATS_FILE, root)
        config = self._copy(cache="none", root=str(root))
        config.flow.coupling = False
        self._add("old shard, row by row", row_by_row(old, root / STATS_FILE), OLD_ROWS_A_ROUND, batches=1)
        self._add("rechunked, one thread, not coupled", in_turn(ShardTrainingData(config), self._size), self._size)

    def _copy(self, **data: Any) -> ml_collections.ConfigDict:
        """Returns the config with other values in its ``data``."""
        config = self._config.copy_and_resolve_references()
        config.data.update(data)
        return config

    def _add(
        self,
        name: str,
        advance: Callable[[], HostBatch],
        samples: int,
        *,
        loops: int | None = 1,
        batches: int | None = None,
    ) -> None:
        """Adds a row for ``samples`` samples a call, beside ``loops`` bare loops (None: it reads nothing)."""
        seconds, cpu, batch = measure_rounds(advance, batches or flags.FLAGS.batches)
        rate, moved = samples / seconds, sum(array.nbytes for array in batch.values())
        self._bare_rate = self._bare_rate or rate  # The bare loop comes first.
        self.report.add(
            {
                "name": name,
                "median_ms": 1e3 * seconds,
                "samples_per_second": rate,
                "cpu_seconds_per_1000": 1e3 * cpu / samples,
                "gflop": None,
                "gb_moved": moved / 1e9,
                "percent_of_bandwidth": 100 * moved / seconds / self._bandwidth,
                "percent_of_bare_loops": loops and 100 * rate / (loops * self._bare_rate),
            }
        )


def measure_rounds(advance: Callable[[], HostBatch], batches: int) -> tuple[float, float, HostBatch]:
    """Returns a call's median seconds over ``ROUNDS`` rounds, its mean processor seconds, and its last batch.

    There is no pause between rounds in which something could be read ahead. The median leaves out batches that were
    read ahead before the first round.
    """
    batch = advance()
    cpu_started, times = cpu_seconds(), [time.perf_counter()]
    for _ in range(ROUNDS):
        for _ in range(batches):
            batch = advance()
        times.append(time.perf_counter())
    cpu = (cpu_seconds() - cpu_started) / (ROUNDS * batches)
    return statistics.median(later - earlier for earlier, later in pairwise(times)) / batches, cpu, batch


def cpu_seconds() -> float:
    """Returns the processor time so far of this process and its workers, ended ones too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    workers = ended.ru_utime + ended.ru_stime + sum(times.user + times.system for times in running)
    return time.process_time() + workers


def in_turn(data: ShardTrainingData, batch_size: int) -> Callable[[], HostBatch]:
    """Returns a function that makes batch 0, then 1, and so on, one a call."""
    batches, numbers = data.batches(range(batch_size)), itertools.count()
    return lambda: batches[next(numbers)]


def bare_loop(reader: ShardReader, steps: Sequence[np.ndarray]) -> Callable[[], HostBatch]:
    """Returns a function that reads the rows of each step in turn, one by one, and does nothing else."""
    names, files = (MEL_SPEC, PARAM_ARRAY), {path: h5py.File(path) for path in reader.source_files()}
    datasets = {(path, name): file[name] for path, file in files.items() for name in names}
    batch = {name: np.empty((len(steps[0]), *reader.row_shape(name)), reader.dtype(name)) for name in names}
    numbers = itertools.cycle(steps)

    def read() -> HostBatch:
        rows = next(numbers)
        for name, array in batch.items():
            for position, row in enumerate(rows):
                path, number = reader.source_of(name, row)
                array[position] = datasets[path, name][number]
        return batch

    return read


def row_by_row(path: Path, stats_file: Path) -> Callable[[], HostBatch]:
    """Returns a function that makes ``OLD_ROWS_A_ROUND`` random samples as a loader of single rows makes them."""
    file, generator, stats = h5py.File(path), np.random.default_rng(0), load_stats(stats_file)

    def sample(row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        params = to_model_scale(file[PARAM_ARRAY][row])
        return standardise(file[MEL_SPEC][row], stats), params, generator.standard_normal(params.shape, np.float32)

    def make() -> HostBatch:
        samples = map(sample, generator.integers(len(file[MEL_SPEC]), size=OLD_ROWS_A_ROUND))
        return dict(zip((MEL_SPEC, "x1", "x0"), map(np.stack, zip(*samples, strict=True)), strict=True))

    return make


if __name__ == "__main__":
    flags.DEFINE_integer("rows", 4096, "Rows, at least, of the data set that is made without data.root.", lower_bound=1)
    flags.DEFINE_integer("batches", 8, f"Batches in each of {ROUNDS} rounds.", lower_bound=1)
    flags.DEFINE_list("caches", [*CACHES], "Values of data.cache to measure.")
    flags.register_validator("caches", lambda names: {*names} <= {*CACHES}, f"must be some of {','.join(CACHES)}")
    flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to measure.")
    flags.register_validator("workers", lambda counts: all(map(str.isdecimal, counts)), "must be numbers, such as 0,2")
    flags.DEFINE_integer("old_rows", 320, "Rows of the old shard; 0 makes none.", lower_bound=0)
    report.run(measure)
