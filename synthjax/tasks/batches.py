"""Batches of HDF5 splits. A batch depends on seed and step alone, not on the number of workers or hosts.

Shapes: B global batch, b rows of this process, W row width, C channels, M mels, F frames.

A batch holds ``mel_spec`` (b, C, M, F) in dB as stored, ``x1`` (b, W) float32 in [-1, 1], ``x0`` (b, W) float32 noise.
If the devices hold the spectrograms (``device_cache``), ``row`` (b,) int32 replaces ``mel_spec``.

grain shuffles the rows anew in every epoch, by the seed, and keeps the order of batches for every number of workers. A
resumed run starts at the batch of its step. Another batch size gives other batches.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, SupportsIndex

import grain
import ml_collections
import numpy as np
from grain.multiprocessing import SharedMemoryArray
from jaxtyping import Int

from data_pipeline.cloud.staging import local_root
from data_pipeline.console.cli import UserError
from data_pipeline.console.machine import keep_freed_memory
from data_pipeline.params.spec import ParamSpec
from data_pipeline.shards.cached_reader import CachedReader
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY, ShardReader
from synthjax.methods.coupling import couple, group_rows
from synthjax.methods.examples import EVAL_NOISE, TRAIN_NOISE, HostBatch, draw_noise, to_model_scale

# Batches that each worker keeps ready: with two, one slow read does not delay a step.
BATCHES_AHEAD = 2
# Seconds between two checks of a worker whether its training process still runs.
ORPHAN_CHECK_SECONDS = 1.0
# Worker processes of grain hand over their batches here. Docker gives a container 64 MB by default.
SHARED_MEMORY = "/dev/shm"


def open_split(
    root: str | Path,
    split: str,
    spec: ParamSpec,
    *,
    allow_external: bool = False,
    flag: str = "--config.data.root",
) -> ShardReader:
    """The reader of ROOT/SPLIT.h5; ROOT may be a URL, see ``staging``.

    Args:
      flag: the command's flag for ROOT, for error messages.

    Raises:
      UserError: for a missing, broken or moved split, or one whose rows do not fit the spec.
    """
    path = local_root(str(root)) / f"{split}.h5"
    if not path.is_file():
        raise UserError(
            f"no {split}.h5 under {root}: set {flag} to a data set, "
            "or make its splits with python -m data_pipeline.splits"
        )
    reader = ShardReader(path, allow_external=allow_external)
    if reader.width != spec.width:
        raise UserError(
            f"{path} has {reader.width} parameter columns but spec {spec.name} has {spec.width}: "
            f"set {flag} to a data set of that spec, or train with another --config.data.spec"
        )
    return reader


def is_coupled(config: ml_collections.ConfigDict) -> bool:
    """Whether noise rows are paired with data rows (``methods.coupling``)."""
    return config.model.kind == "flow" and config.flow.coupling


class Rows(Protocol):
    """Rows of a data set, read by number."""

    def read_rows(self, name: str, indices: Int[np.ndarray, " n"]) -> np.ndarray:
        """``MEL_SPEC`` (n, C, M, F) or ``PARAM_ARRAY`` (n, W) of the rows."""
        ...


class StoredRows(Rows, Protocol):
    """A known number of rows, of ``width`` W."""

    @property
    def width(self) -> int: ...

    def __len__(self) -> int: ...


class Order(Protocol):
    """The rows of every step."""

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        """The numbers of the rows in the global batch of ``step``."""
        ...


class Shuffled:
    """All rows of a split, shuffled anew every epoch; a batch may span two epochs."""

    def __init__(self, reader: ShardReader | CachedReader, batch_size: int, seed: int) -> None:
        if batch_size > len(reader):
            raise UserError(
                f"data.batch_size={batch_size} is larger than the {len(reader)} training rows of {reader.path}"
            )
        self._batch_size = batch_size
        self._order = grain.MapDataset.range(len(reader)).seed(seed).shuffle().repeat()

    def __getitem__(self, step: int) -> Int[np.ndarray, " B"]:
        first = step * self._batch_size
        return np.array([self._order[first + i] for i in range(self._batch_size)], np.int64)


class TrainBatches:
    """This process's rows of the global batch of every step.

    Noise is drawn and coupled for whole groups of the global batch, even if a process holds only a part of a group.

    Args:
      order: the rows of every step.
      spectrograms: False if the devices hold them; batches then hold row numbers.
    """

    def __init__(
        self,
        reader: Rows,
        order: Order,
        *,
        batch_size: int,
        seed: int,
        coupled: bool,
        local_rows: range,
        steps: int,
        spectrograms: bool = True,
    ) -> None:
        self._group = group_rows(batch_size)
        self._reader, self._order, self._seed = reader, order, seed
        self._coupled, self._local_rows, self._steps = coupled, local_rows, steps
        self._spectrograms = spectrograms

    def __len__(self) -> int:
        return self._steps

    def indices(self, step: int) -> Int[np.ndarray, " B"]:
        """The numbers of the rows in the global batch of ``step``."""
        return self._order[step]

    def __getitem__(self, step: SupportsIndex) -> HostBatch:
        step, rows = int(step), self._local_rows
        indices = self.indices(step)
        # Coupling needs the parameters of whole groups; spectrograms are read for this process's rows only.
        start = rows.start // self._group * self._group
        stop = -(-rows.stop // self._group) * self._group
        x1 = to_model_scale(self._reader.read_rows(PARAM_ARRAY, indices[start:stop]))
        x0 = np.concatenate(
            [self._noise(step, first // self._group, x1[first - start :][: self._group])
             for first in range(start, stop, self._group)]
        )  # fmt: skip
        mine = slice(rows.start - start, rows.stop - start)
        named = indices[rows.start : rows.stop]
        if self._spectrograms:
            sounds = {"mel_spec": self._reader.read_rows(MEL_SPEC, named)}
        else:
            sounds = {"row": named.astype(np.int32)}
        return sounds | {"x1": x1[mine], "x0": x0[mine]}

    def _noise(self, step: int, group: int, x1: np.ndarray) -> np.ndarray:
        noise = draw_noise(*x1.shape, TRAIN_NOISE, self._seed, step, group)
        return couple(noise, x1) if self._coupled else noise


class EvalBatches:
    """The first ``limit`` rows of a split in order, in global batches; the last batch is padded.

    A batch also holds ``index`` (b,) int32 and ``valid`` (b,) float32, which is 0 on padding. The noise of a row
    depends on the seed and the row's index alone, so that results do not depend on the batch size.
    """

    def __init__(
        self, reader: StoredRows, *, batch_size: int, seed: int, local_rows: range, limit: int | None = None
    ) -> None:
        self._reader, self._batch_size, self._seed = reader, batch_size, seed
        self._local_rows = local_rows
        self.rows = len(reader) if limit is None else min(limit, len(reader))

    def __len__(self) -> int:
        return -(-self.rows // self._batch_size)

    def __getitem__(self, item: SupportsIndex) -> HostBatch:
        first = int(item) * self._batch_size
        if not 0 <= first < self.rows:
            raise IndexError(item)
        local = np.arange(first + self._local_rows.start, first + self._local_rows.stop)
        index = np.minimum(local, self.rows - 1)  # Padding repeats the last row.
        return {
            "mel_spec": self._reader.read_rows(MEL_SPEC, index),
            "x1": to_model_scale(self._reader.read_rows(PARAM_ARRAY, index)),
            "x0": np.concatenate([draw_noise(1, self._reader.width, EVAL_NOISE, self._seed, i) for i in index]),
            "index": index.astype(np.int32),
            "valid": (local < self.rows).astype(np.float32),
        }


class Batches(Protocol):
    """Host batches by step."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: SupportsIndex) -> HostBatch: ...


@contextmanager
def prefetch(batches: Batches, *, workers: int, start: int = 0) -> Generator[Iterator[HostBatch], None, None]:
    """Iterates over the batches from ``start`` on. Worker processes read ahead; with ``workers=0``, a thread does."""
    dataset = grain.MapDataset.source(batches)[start:]
    # Threads inside a worker process would not read faster and would hold more batches in memory.
    threads = grain.ReadOptions(num_threads=0 if workers else 1, prefetch_buffer_size=0 if workers else BATCHES_AHEAD)
    stream = dataset.to_iter_dataset(threads)
    if workers:
        keep_freed_memory()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=BATCHES_AHEAD)
        stream = stream.mp_prefetch(options, worker_init_fn=_tie_to_parent)
    iterator = iter(stream)
    try:
        yield iterator
    finally:
        iterator.close()


@atexit.register
def _finish_unlinking() -> None:
    """Unlinks the shared memory of all batches, which would leak otherwise, with a warning."""
    gc.collect()  # Reference cycles of grain's closed iterators hold some of it.
    # A thread of grain unlinks, in the order of its tasks. The interpreter's exit would drop those that are left. An
    # empty task at the end waits for them.
    if thread := getattr(SharedMemoryArray, "_del_thread_pool", None):
        thread.apply(int)


def require_shared_memory(workers: int, batch_bytes: int, processes: int = 1) -> None:
    """Raises UserError if the worker processes cannot hand over their batches: they would die of SIGBUS later.

    Args:
      workers: those of one training process.
      batch_bytes: the size of its rows of a batch.
      processes: the training processes that share the memory.
    """
    # Measured: per worker a queue here and one there, and a batch under way on each side; two batches in the loop.
    needed = (workers * (2 * BATCHES_AHEAD + 2) + 2) * batch_bytes * processes
    try:
        room = os.statvfs(SHARED_MEMORY)
    except OSError:
        if sys.platform != "linux":
            return  # Other systems keep shared memory elsewhere.
        free = 0
    else:
        free = room.f_bavail * room.f_frsize if os.access(SHARED_MEMORY, os.W_OK) else 0
    if free < needed:
        sharing = f" in {processes} processes of this host" if processes > 1 else ""
        raise UserError(
            f"data.workers={workers}{sharing} needs {needed >> 20} MB in {SHARED_MEMORY}, which has {free >> 20} MB: "
            "start the container with a larger one (docker run --shm-size=4g), or set --config.data.workers=0"
        )


def _tie_to_parent(worker: int, workers: int) -> None:
    """Makes a worker process ignore signals, use no accelerator, and end when the training process ends.

    Ctrl-C and the signals of a job scheduler reach workers too, but the training process decides when they end. If it
    is killed, no signal reaches them.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # JAX has read the environment already.
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    threading.Thread(target=_exit_when_orphaned, args=(os.getppid(),), daemon=True).start()


def _exit_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)
