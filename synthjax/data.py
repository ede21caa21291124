"""Batches from HDF5 splits: a pure function of (seed, step), whatever the number of workers or hosts.

Shapes: B global batch, b rows of this process, W row width, C channels, M mels, F frames.

A batch is ``mel_spec`` (b, C, M, F) in dB as stored, ``x1`` (b, W) float32 in [-1, 1], ``x0`` (b, W) float32 noise.
Where the devices hold the spectrograms (``device_cache``), ``row`` (b,) int32 stands for ``mel_spec``.
"""

from __future__ import annotations

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
import numpy as np
from jaxtyping import Float, Int

from data_pipeline.cached_reader import CachedReader
from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec
from data_pipeline.shards import MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.staging import local_root
from synthjax.coupling import couple, group_rows

HostBatch = dict[str, np.ndarray]
# First words of the random streams, so that no two uses of a seed share numbers.
TRAIN_NOISE, EVAL_NOISE, PREDICT_NOISE = 1, 2, 3
# Batches that each worker holds ready; two hide one slow read.
BATCHES_AHEAD = 2
# How soon a worker notices that its training process was killed.
ORPHAN_CHECK_SECONDS = 1.0


def open_split(
    root: str | Path,
    split: str,
    spec: ParamSpec,
    *,
    allow_external: bool = False,
    flag: str = "--config.data.root",
) -> ShardReader:
    """The reader of ROOT/SPLIT.h5, checked against the spec's width; ROOT may be a URL, see ``staging``.

    ``flag`` is the one by which the command is told ROOT.

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


def to_model_scale(rows: Float[np.ndarray, "*B W"]) -> Float[np.ndarray, "*B W"]:
    """Stored rows in [0, 1] to the model's [-1, 1]."""
    return 2.0 * rows.astype(np.float32) - 1.0


def from_model_scale(rows: Float[np.ndarray, "*B W"]) -> Float[np.ndarray, "*B W"]:
    """The model's scale back to rows in [0, 1], not clipped."""
    return (rows + 1.0) / 2.0


def draw_noise(rows: int, width: int, *stream: int) -> Float[np.ndarray, "N W"]:
    """Standard normal rows from a counter-based generator keyed by ``stream``."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(stream)))
    return generator.standard_normal((rows, width), np.float32)


class TrainBatches:
    """Random access from a step to this process's rows of its global batch.

    Rows are shuffled anew every epoch and batches run across epochs. Noise belongs to coupling groups of the global
    batch, which are coupled whole even where a process holds only a part of one.

    Args:
      spectrograms: False where the devices hold them: batches then name rows.
    """

    def __init__(
        self,
        reader: ShardReader | CachedReader,
        *,
        batch_size: int,
        seed: int,
        coupled: bool,
        local_rows: range,
        steps: int,
        spectrograms: bool = True,
    ) -> None:
        if batch_size > len(reader):
            raise UserError(
                f"data.batch_size={batch_size} is larger than the {len(reader)} training rows of {reader.path}"
            )
        self._group = group_rows(batch_size)
        self._reader, self._batch_size, self._seed = reader, batch_size, seed
        self._coupled, self._local_rows, self._steps = coupled, local_rows, steps
        self._spectrograms = spectrograms
        self._order = grain.MapDataset.range(len(reader)).seed(seed).shuffle().repeat()

    def __len__(self) -> int:
        return self._steps

    def indices(self, step: int) -> Int[np.ndarray, " B"]:
        """Rows of the split that make up the global batch of ``step``."""
        first = step * self._batch_size
        return np.array([self._order[first + i] for i in range(self._batch_size)], np.int64)

    def __getitem__(self, step: SupportsIndex) -> HostBatch:
        step, rows = int(step), self._local_rows
        indices = self.indices(step)
        # Whole groups around this process's rows: coupling needs them all, spectrograms only its own.
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
    """The first ``limit`` rows of a split in order, in global batches; the last is padded.

    Besides what a training batch holds: ``index`` (b,) int32 and ``valid`` (b,) float32, 0 on padding. Noise belongs
    to the row's index, so that results do not depend on the batch size.
    """

    def __init__(
        self, reader: ShardReader, *, batch_size: int, seed: int, local_rows: range, limit: int | None = None
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
    """Host batches by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: SupportsIndex) -> HostBatch: ...


@contextmanager
def prefetch(batches: Batches, *, workers: int, start: int = 0) -> Generator[Iterator[HostBatch], None, None]:
    """Batches from ``start`` on, read ahead by worker processes (or by one thread where ``workers`` is 0)."""
    dataset = grain.MapDataset.source(batches)[start:]
    # A worker process reads batch after batch; threads within it would only hold more of them.
    threads = grain.ReadOptions(num_threads=0 if workers else 1, prefetch_buffer_size=0 if workers else BATCHES_AHEAD)
    stream = dataset.to_iter_dataset(threads)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=BATCHES_AHEAD)
        stream = stream.mp_prefetch(options, worker_init_fn=_serve_one_master)
    iterator = iter(stream)
    try:
        yield iterator
    finally:
        iterator.close()
        gc.collect()  # grain's closed iterators hold shared memory in reference cycles; left to the exit it leaks.


def _serve_one_master(worker: int, workers: int) -> None:
    """Ties a worker process to the training process, which alone decides what signals mean and uses accelerators.

    Ctrl-C and the SIGTERM of a job scheduler reach all processes at once; a killed training process reaches none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # It has read the environment.
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    threading.Thread(target=_exit_when_orphaned, args=(os.getppid(),), daemon=True).start()


def _exit_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)
