"""Measures the training input: python scripts/bench_loader.py --config=configs/flow_100k.py [--config.data.root=DIR]

Without a data set it makes one of --rows rows that lies in the page cache: parameters drawn from the config's spec,
spectrograms of 320 sounds of the built-in synthesizer again and again, compressed as in any shard (stored_kb_a_row; of
205 kB, sounds of Surge XT take 34). Of a data set on a disk, the first run measures the disk. For each setting of
data.cache that memory has room for the table has batches made in one thread, with and without coupling, then by
prefetching with as many processes as --workers says, of which a cache needs none, and the same with every batch placed
on the device and standardised there before the next one is asked for.

The roofline is a bare h5py loop over the same random rows: percent_of_bare_loops is the share of as many of them as
there are processes that read. Processor seconds are those of this process and its workers. Bytes are those of the
batch's arrays on the host, and bandwidth is that of numpy's copy from one large array to another, in one thread.

In the end the comparison with old shards: spectrograms in float32, in the chunks that h5py guesses for a shard of
10,000 rows, read and normalised one after another in random order, against batches of what data_pipeline.rechunk makes
of that shard; --old_rows=0 leaves it out.
"""

from __future__ import annotations

import itertools
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
from bench_data import FIRST_SHARD, given_or_made, repeat_shard, stored_bytes_a_row, write_old_shard
from bench_report import Report
from roofline import median_seconds

from data_pipeline import cli, config_flag
from data_pipeline.cached_reader import TooLarge
from data_pipeline.param_spec import load_spec
from data_pipeline.rechunk import rechunk
from data_pipeline.shards import MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.stats import STATS_FILE, MelStats, load_stats, standardise
from synthjax import sharding
from synthjax.coupling import couple, group_rows
from synthjax.data import BATCHES_AHEAD, HostBatch, draw_noise, open_split, prefetch, to_model_scale
from synthjax.training_data import ShardTrainingData

ROUNDS = 5
CACHES = ("none", "host", "device")
# Rows of an old shard that are read in a round: for each, a hundred megabytes are decompressed.
OLD_ROWS_A_ROUND = 8
COPY_BYTES = 1 << 28


def main(argv: list[str]) -> None:
    """The command."""
    f = flags.FLAGS
    config = config_flag.read()
    if config.data.source != "shards":
        raise cli.UserError(f"data.source={config.data.source} reads nothing: use a config of shards")
    config.train.eval_every = 0  # Else val.h5 would be opened.
    config.train.steps = 1 << 20  # More than are measured.
    with tempfile.TemporaryDirectory(prefix="bench_loader-") as folder:
        config.data.root = given_or_made(f["config"], f.rows, folder)
        bench = LoaderBench(config, f.batches)
        bench.measure_bare_loop()
        for cache in f.caches:
            try:
                bench.measure_cache(cache, list(map(int, f.workers)))
            except TooLarge as error:
                print(f"not measured: {error}", file=sys.stderr, flush=True)
        bench.measure_coupling()
        if f.old_rows:
            bench.measure_old_shard(Path(folder), f.old_rows)
    bench.report.tell(f.json)


class LoaderBench:
    """Measures batches of a config's data set, ``batches`` in each of ``ROUNDS`` rounds."""

    def __init__(self, config: ml_collections.ConfigDict, batches: int) -> None:
        self._config, self._batches, self._size = config, batches, config.data.batch_size
        self._mesh = sharding.make_mesh(config.mesh)
        spec = load_spec(config.data.spec)
        self._reader = open_split(config.data.root, "train", spec, allow_external=config.data.allow_external)
        self._order = ShardTrainingData(self._copy(cache="none")).batches(range(self._size))
        self._bandwidth, self._bare_rate = copy_bandwidth(), 0.0
        self.report = Report()
        self.report.setting |= {
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "copy_gb_per_second": self._bandwidth / 1e9,
            "data_rows": len(self._reader),
            "stored_kb_a_row": stored_bytes_a_row(self._reader) / 1e3,
            "batch_size": self._size,
        }

    def measure_bare_loop(self) -> None:
        """What the other rows are compared with; which rows to read is known beforehand."""
        steps = [self._order.indices(step) for step in range(1 + ROUNDS * self._batches)]
        self._add("bare h5py loop", bare_loop(self._reader, steps), self._size)

    def measure_cache(self, cache: str, workers: list[int]) -> None:
        """Batches where they are asked for, then prefetched ones, coupled where training couples."""
        config = self._copy(cache=cache)
        data = ShardTrainingData(config)
        to_batch, trained = data.load(self._mesh), config.flow.coupling
        for coupled in (False, True) if config.model.kind == "flow" else (False,):
            config.flow.coupling = coupled  # Read whenever batches are made.
            name = f"cache {cache}, one thread, {'' if coupled else 'not '}coupled"
            self._add(name, in_turn(data.batches(range(self._size)).__getitem__), self._size)
        config.flow.coupling = trained
        for count in workers if cache == "none" else [data.workers]:
            self._measure_prefetching(f"cache {cache}, workers {count}", data, to_batch, count)

    def _measure_prefetching(
        self, name: str, data: ShardTrainingData, to_batch: Callable[[HostBatch], Any], workers: int
    ) -> None:
        stats, inputs = jax.device_put(data.stats, sharding.replicated(self._mesh)), jax.jit(data.task.inputs)
        loops = max(1, workers)
        with prefetch(data.batches(range(self._size)), workers=workers) as stream:
            for _ in range(1 + 2 * BATCHES_AHEAD * loops):  # What was made while nobody asked does not count.
                next(stream)
            self._add(name, partial(next, stream), self._size, loops=loops)
            placed = partial(on_device, stream, to_batch, inputs, stats)
            self._add(f"{name}, on device", placed, self._size, loops=loops)

    def measure_coupling(self) -> None:
        """One group of rows and noise."""
        rows = group_rows(self._size)
        x1 = to_model_scale(self._reader.read_rows(PARAM_ARRAY, self._order.indices(0)[:rows]))
        noise = draw_noise(*x1.shape, self._config.seed)
        self._add(f"coupling {rows} rows", lambda: {"x0": couple(noise, x1)}, rows, loops=None)

    def measure_old_shard(self, folder: Path, rows: int) -> None:
        """The PyTorch code's way with its shards, then ours with what becomes of these."""
        old, root = folder / "old.h5", folder / "rechunked"
        write_old_shard(old, self._reader, min(len(self._reader), rows))
        (root / "shards").mkdir(parents=True)
        rechunk(old, root / FIRST_SHARD, self._config.data.spec)
        repeat_shard(root, max(len(self._reader), self._size))
        shutil.copy(Path(self._config.data.root) / STATS_FILE, root)
        config = self._copy(cache="none", root=str(root))
        config.flow.coupling = False
        batches = ShardTrainingData(config).batches(range(self._size))
        order = iter(np.random.default_rng(0).integers(len(ShardReader(old)), size=2 * ROUNDS * OLD_ROWS_A_ROUND))
        loop = row_by_row(old, load_stats(root / STATS_FILE), order)
        self._add("old shard, row by row", loop, OLD_ROWS_A_ROUND, batches=1)
        self._add("rechunked, one thread, not coupled", in_turn(batches.__getitem__), self._size)

    def _copy(self, **data: Any) -> ml_collections.ConfigDict:
        """The config with other values in its ``data``."""
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
        """A row of what makes so many samples a call, beside so many bare loops; None where it reads nothing."""
        seconds, cpu, batch = measure_rounds(advance, batches or self._batches)
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
    """Seconds of a call, the median of ``ROUNDS`` rounds; its processor seconds, the mean of them; what it gives.

    Rounds follow each other without a pause, in which something could be read ahead; what was before them is lost in
    the median.
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
    """Processor time of this process and of its workers, those that have ended too, so far."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    workers = ended.ru_utime + ended.ru_stime + sum(times.user + times.system for times in running)
    return time.process_time() + workers


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy in one thread."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)
    return 2 * COPY_BYTES / median_seconds(partial(np.copyto, target, source))


def in_turn(make: Callable[[int], HostBatch]) -> Callable[[], HostBatch]:
    """Batch 0, then 1, and so on, one a call."""
    numbers = itertools.count()
    return lambda: make(next(numbers))


def bare_loop(reader: ShardReader, steps: Sequence[np.ndarray]) -> Callable[[], HostBatch]:
    """Reads the rows of each step in turn one by one, and does nothing else."""
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


def row_by_row(path: Path, stats: MelStats, rows: Iterator[int]) -> Callable[[], HostBatch]:
    """Samples as a loader of single rows makes them, ``OLD_ROWS_A_ROUND`` a call."""
    file, generator = h5py.File(path), np.random.default_rng(0)

    def sample(row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        params = to_model_scale(file[PARAM_ARRAY][row])
        return standardise(file[MEL_SPEC][row], stats), params, generator.standard_normal(params.shape, np.float32)

    def make() -> HostBatch:
        samples = [sample(next(rows)) for _ in range(OLD_ROWS_A_ROUND)]
        return dict(zip((MEL_SPEC, "x1", "x0"), map(np.stack, zip(*samples, strict=True)), strict=True))

    return make


def on_device(
    stream: Iterator[HostBatch], to_batch: Callable[[HostBatch], Any], inputs: Callable[..., jax.Array], stats: MelStats
) -> HostBatch:
    """The next batch, once it is on the device and standardised."""
    batch = next(stream)
    jax.block_until_ready(inputs(to_batch(batch), stats))
    return batch


if __name__ == "__main__":
    config_flag.define()
    flags.DEFINE_integer(
        "rows", 4096, "Rows of the data set that is made where none is named, at least.", lower_bound=1
    )
    flags.DEFINE_integer("batches", 8, f"Batches in each of {ROUNDS} rounds.", lower_bound=1)
    flags.DEFINE_list("caches", [*CACHES], "Values of data.cache to measure.")
    flags.register_validator("caches", lambda names: {*names} <= {*CACHES}, f"must be some of {','.join(CACHES)}")
    flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to measure.")
    flags.register_validator("workers", lambda counts: all(map(str.isdecimal, counts)), "must be numbers, such as 0,2")
    flags.DEFINE_integer("old_rows", 320, "Rows of the old shard; 0 makes none.", lower_bound=0)
    flags.DEFINE_string("json", None, "File for the figures.")
    cli.run(main)
