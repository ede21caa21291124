"""What a run trains on and is validated with, by the config's ``data.source``: shards of sounds, or the k-osc task."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import NDArray

from data_pipeline.cached_reader import CachedReader
from data_pipeline.param_spec import ParamSpec, load_spec
from data_pipeline.shards import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.shared_memory import ALONE
from data_pipeline.staging import local_root
from data_pipeline.stats import STATS_FILE, MelStats, load_stats
from synthjax import sharding
from synthjax.data import HostBatch, TrainBatches, open_split
from synthjax.device_cache import DeviceCache
from synthjax.held_out import HeldOut, HeldOutShards
from synthjax.k_osc_task import KOscBatches, KOscHeldOut, KOscTask
from synthjax.neighbours import ProcessesHere
from synthjax.tasks import Batch, SpectrogramTask, Task

# Rows whose parameters tell one data set from another of the same size.
FINGERPRINT_ROWS = 64
# Datasets that the host's memory holds, by data.cache.
HELD_BY_HOST: dict[str, tuple[str, ...]] = {"none": (), "host": (MEL_SPEC, PARAM_ARRAY), "device": (PARAM_ARRAY,)}


class TrainingData(Protocol):
    """``stats`` goes into the step beside every batch; ``identity`` is what a workdir remembers of its data."""

    @property
    def task(self) -> Task: ...

    @property
    def stats(self) -> MelStats | None: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def workers(self) -> int:
        """Processes that make batches ahead; 0: a thread does."""
        ...

    def batches(self, local_rows: range) -> TrainBatches | KOscBatches:
        """What the host sends for each step, of which this process holds ``local_rows``."""
        ...

    def load(self, mesh: Mesh) -> Callable[[HostBatch], Batch]:
        """Reads what is to stay in memory; returns what makes the step's batch of what the host has."""
        ...

    def held_out(self, placement: NamedSharding) -> HeldOut | None:
        """The rows to validate with, or None where there are none."""
        ...


class ShardTrainingData:
    """A data set of shards: train.h5, stats.npz, and val.h5 if it is to be validated with.

    Raises:
      UserError: if a file is missing, broken, or does not fit the config.
    """

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self._config = config
        self.spec: ParamSpec = load_spec(config.data.spec)
        self._reader = open_split(config.data.root, "train", self.spec, allow_external=config.data.allow_external)
        self.stats: MelStats | None = load_stats(local_root(config.data.root) / STATS_FILE)
        self.task = SpectrogramTask(self.spec, self.stats.mean.shape, config.data.min_std_db)
        self.identity = dataset_identity(self._reader, self.spec, self.stats)
        self._rows = CachedReader(self._reader, HELD_BY_HOST[config.data.cache])
        self._val = self._open_val()

    def _open_val(self) -> ShardReader | None:
        data = self._config.data
        if not self._config.train.eval_every or not (local_root(data.root) / "val.h5").exists():
            return None
        return open_split(data.root, "val", self.spec, allow_external=data.allow_external)

    @property
    def workers(self) -> int:
        """None with a cache: a thread copies out of memory faster than processes could send it."""
        return self._config.data.workers if self._config.data.cache == "none" else 0

    def batches(self, local_rows: range) -> TrainBatches:
        """Spectrograms, or where the devices hold these their numbers; rows and paired noise."""
        config = self._config
        return TrainBatches(
            self._rows,
            batch_size=config.data.batch_size,
            seed=config.seed,
            coupled=config.model.kind == "flow" and config.flow.coupling,
            local_rows=local_rows,
            steps=config.train.steps,
            spectrograms=config.data.cache != "device",
        )

    def load(self, mesh: Mesh) -> Callable[[HostBatch], Batch]:
        """Fills the cache, in all processes together. Raises UserError where memory cannot take it."""
        placement = sharding.batch_sharding(mesh)
        # The rows that go with spectrograms on devices are small.
        self._rows.load(ProcessesHere() if self._config.data.cache == "host" else ALONE)
        if self._config.data.cache != "device":
            return partial(sharding.place, sharding=placement)
        cache = DeviceCache(self._reader, mesh)

        def fetched(batch: HostBatch) -> Batch:
            placed = sharding.place(batch, placement)
            return {"mel_spec": cache.fetch(placed.pop("row"))} | placed

        return fetched

    def held_out(self, placement: NamedSharding) -> HeldOutShards | None:
        """The first rows of val.h5."""
        config = self._config
        if self._val is None:
            return None
        return HeldOutShards(
            self._val,
            self.spec,
            batch_size=config.data.batch_size,
            seed=config.seed,
            placement=placement,
            limit=config.validation.rows,
        )

    def sounds(self, count: int) -> NDArray[np.floating]:
        """The stored audio (S, 2, T) of the first rows to validate with, at most ``count``. Only where val.h5 is."""
        assert self._val is not None
        return self._val.read_rows(AUDIO, np.arange(min(count, len(self._val))))


class KOscTrainingData:
    """The k-osc task, drawn from the seed."""

    stats = None

    @property
    def workers(self) -> int:
        """As the config says."""
        return self._config.data.workers

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self._config = config
        self.task = KOscTask.from_config(config)
        self.identity = {"source": "k_osc"}

    def batches(self, local_rows: range) -> KOscBatches:
        """The order of the noise."""
        config = self._config
        coupled = config.model.kind == "flow" and config.flow.coupling
        return KOscBatches(self.task, coupled=coupled, local_rows=local_rows, steps=config.train.steps)

    def load(self, mesh: Mesh) -> Callable[[HostBatch], Batch]:
        """There is nothing to read."""
        return partial(sharding.place, sharding=sharding.batch_sharding(mesh))

    def held_out(self, placement: NamedSharding) -> KOscHeldOut | None:
        """Rows of the validation split."""
        config = self._config
        return KOscHeldOut(self.task, "val", config.validation.rows, placement) if config.train.eval_every else None


def open_training_data(config: ml_collections.ConfigDict) -> TrainingData:
    """What the config's ``data`` section names."""
    return ShardTrainingData(config) if config.data.source == "shards" else KOscTrainingData(config)


def dataset_identity(reader: ShardReader, spec: ParamSpec, stats: MelStats) -> dict[str, Any]:
    """What a workdir remembers of its training data: a moved data set is the same, another one is not."""
    return {
        "rows": len(reader),
        "spec_hash": spec.content_hash,
        "first_rows_sha256": first_rows_digest(reader),
        "statistics_sha256": _digest(np.stack(stats)),
    }


def first_rows_digest(reader: ShardReader) -> str:
    """The SHA-256 of the parameters of a split's first rows, in hexadecimal digits: it tells one split from another."""
    return _digest(reader.read_rows(PARAM_ARRAY, np.arange(min(FINGERPRINT_ROWS, len(reader)))))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()
