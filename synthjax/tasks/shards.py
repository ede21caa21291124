"""A data set of shards as training data: batches, caches, validation rows, and the data set's identity.

Shapes: B batch, N rows judged, S sounds, T audio samples, W row width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import NDArray

from data_pipeline.cloud.staging import local_root
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.shards.cached_reader import CachedReader
from data_pipeline.shards.mel_stats import STATS_FILE, MelStats, load_stats
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.shards.shared_memory import ALONE
from synthjax.cluster import sharding
from synthjax.cluster.host_processes import HostProcesses
from synthjax.methods.examples import Batch, HostBatch, from_model_scale, to_model_scale
from synthjax.methods.task import SpectrogramTask, Task
from synthjax.metrics.parameters import per_parameter_mse, row_metrics
from synthjax.tasks.batches import (
    EvalBatches,
    Shuffled,
    StoredRows,
    TrainBatches,
    is_coupled,
    open_split,
    require_shared_memory,
)
from synthjax.tasks.device_cache import DeviceCache

# The identity of a data set includes the parameters of so many rows: two data sets may have the same size.
FINGERPRINT_ROWS = 64
# The datasets that stay in the host's memory, by data.cache.
HELD_BY_HOST: dict[str, tuple[str, ...]] = {"none": (), "host": (MEL_SPEC, PARAM_ARRAY), "device": (PARAM_ARRAY,)}


class ShardTrainingData:
    """The ``TrainingData`` of a folder with train.h5, stats.npz and, if the run validates, val.h5.

    Args:
      saved: the statistics that the model has, if it has any; those of the folder, unless it was another model first.

    Raises:
      UserError: if a file is missing, broken, or does not fit the config.
    """

    def __init__(self, config: ml_collections.ConfigDict, saved: MelStats | None = None) -> None:
        data = config.data
        self._config = config
        self.spec = load_spec(data.spec)
        self._reader = open_split(data.root, "train", self.spec, allow_external=data.allow_external)
        stats = load_stats(local_root(data.root) / STATS_FILE)
        self.stats: MelStats | None = saved or stats
        self.task: Task = SpectrogramTask(self.spec, stats.mean.shape, data.min_std_db)
        self.identity = dataset_identity(self._reader, self.spec, stats)
        # With a cache, a thread copies from memory faster than processes could send batches.
        self.workers: int = data.workers if data.cache == "none" else 0
        self._rows = CachedReader(self._reader, HELD_BY_HOST[data.cache])
        self._val: ShardReader | None = None
        if config.train.eval_every and (local_root(data.root) / "val.h5").exists():
            self._val = open_split(data.root, "val", self.spec, allow_external=data.allow_external)

    def batches(self, local_rows: range) -> TrainBatches:
        """With data.cache=device, batches hold row numbers instead of spectrograms.

        Raises UserError if the worker processes lack shared memory.
        """
        self._require_shared_memory(local_rows)
        return self._batches(local_rows)

    def _require_shared_memory(self, local_rows: range, processes: int = 1) -> None:
        if self.workers:
            spectrogram = math.prod(self._reader.row_shape(MEL_SPEC)) * self._reader.dtype(MEL_SPEC).itemsize
            noise_and_row = 2 * 4 * self._reader.width
            require_shared_memory(self.workers, len(local_rows) * (spectrogram + noise_and_row), processes)

    def _batches(self, local_rows: range) -> TrainBatches:
        config = self._config
        return TrainBatches(
            self._rows,
            Shuffled(self._rows, config.data.batch_size, config.seed),
            batch_size=config.data.batch_size,
            seed=config.seed,
            coupled=is_coupled(config),
            local_rows=local_rows,
            steps=config.train.steps,
            spectrograms=config.data.cache != "device",
        )

    def rows_of_step(self, step: int) -> list[int]:
        return self._batches(range(self._config.data.batch_size)).indices(step).tolist()

    def load(self, mesh: Mesh) -> Callable[[HostBatch], Batch]:
        """All processes call this together. Raises UserError if the memory is too small for cache or workers."""
        placement = sharding.batch_sharding(mesh)
        if self.workers and jax.process_count() > 1:  # Those of one host share its memory.
            local_rows = sharding.rows_of_this_process(placement, self._config.data.batch_size)
            self._require_shared_memory(local_rows, HostProcesses().count)
        # With data.cache=device the host keeps parameter rows only: they are small, no process needs to share them.
        self._rows.load(HostProcesses() if self._config.data.cache == "host" else ALONE)
        if self._config.data.cache != "device":
            return partial(sharding.place, sharding=placement)
        cache = DeviceCache(self._reader, mesh)

        def with_spectrograms(batch: HostBatch) -> Batch:
            placed = sharding.place(batch, placement)
            return {"mel_spec": cache.fetch(placed.pop("row"))} | placed

        return with_spectrograms

    def held_out(self, placement: NamedSharding) -> HeldOutRows | None:
        """The first ``validation.rows`` rows of val.h5."""
        if self._val is None:
            return None
        return HeldOutRows.of_config(self._val, self.spec, self._config, placement)

    def probe_targets(self) -> tuple[ParamSpec, NDArray[np.floating]] | None:
        """The stored audio (S, 2, T) of the first validation rows; None without val.h5 or with probe_sounds=0.

        Raises UserError where val.h5 has no audio.
        """
        wanted = self._config.validation
        if self._val is None or not wanted.probe_sounds:
            return None
        count = min(wanted.probe_sounds, wanted.sampled_rows, wanted.rows, len(self._val))
        return self.spec, self._val.read_rows(AUDIO, np.arange(count))


class HeldOutRows:
    """The first ``limit`` rows of a split, as a ``HeldOut``."""

    def __init__(
        self, reader: StoredRows, spec: ParamSpec, *, batch_size: int, seed: int, placement: NamedSharding, limit: int
    ) -> None:
        self._reader, self._spec, self._placement = reader, spec, placement
        local_rows = sharding.rows_of_this_process(placement, batch_size)
        self._batches = EvalBatches(reader, batch_size=batch_size, seed=seed, local_rows=local_rows, limit=limit)
        self.rows = self._batches.rows

    @classmethod
    def of_config(
        cls, reader: StoredRows, spec: ParamSpec, config: ml_collections.ConfigDict, placement: NamedSharding
    ) -> HeldOutRows:
        """The rows that a config's ``validation`` asks for."""
        size, limit = config.data.batch_size, config.validation.rows
        return cls(reader, spec, batch_size=size, seed=config.seed, placement=placement, limit=limit)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, item: int) -> Batch:
        return sharding.place(self._batches[item], self._placement)

    def true_rows(self, count: int) -> NDArray[np.floating]:
        """The first rows (N, W) of the split, on the model's scale."""
        return to_model_scale(self._reader.read_rows(PARAM_ARRAY, np.arange(count)))

    def judge(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        """The metrics of ``metrics.parameters.row_metrics``, (N,) each, for rows (N, W) on the model's scale."""
        return row_metrics(from_model_scale(predicted), from_model_scale(true), self._spec)

    def parameter_errors(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, float]:
        """Mean squared error by parameter of the spec, of columns in [0, 1]."""
        return per_parameter_mse(from_model_scale(predicted), from_model_scale(true), self._spec)


def dataset_identity(reader: ShardReader, spec: ParamSpec, stats: MelStats) -> dict[str, Any]:
    """JSON values by which a workdir recognises its data set: a moved copy has the same, another data set has not."""
    return {
        "rows": len(reader),
        "spec_hash": spec.content_hash,
        "first_rows_sha256": first_rows_digest(reader),
        "statistics_sha256": _digest(np.stack(stats)),
    }


def first_rows_digest(reader: ShardReader) -> str:
    """The SHA-256, in hexadecimal digits, of the parameters of a split's first rows."""
    return _digest(reader.read_rows(PARAM_ARRAY, np.arange(min(FINGERPRINT_ROWS, len(reader)))))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()
