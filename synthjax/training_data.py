"""What a run trains on and is validated with, by the config's ``data.source``: shards of sounds, or the k-osc task."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import ml_collections
import numpy as np
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec, load_spec
from data_pipeline.shards import AUDIO, PARAM_ARRAY, ShardReader
from data_pipeline.staging import local_root
from data_pipeline.stats import STATS_FILE, MelStats, load_stats
from synthjax.data import TrainBatches, open_split
from synthjax.held_out import HeldOut, HeldOutShards
from synthjax.k_osc_task import KOscBatches, KOscHeldOut, KOscTask
from synthjax.tasks import SpectrogramTask, Task

# Rows whose parameters tell one data set from another of the same size.
FINGERPRINT_ROWS = 64
SOURCES = ("shards", "k_osc")


class TrainingData(Protocol):
    """``stats`` goes into the step beside every batch; ``identity`` is what a workdir remembers of its data."""

    task: Task
    stats: MelStats | None
    identity: dict[str, Any]

    def batches(self, local_rows: range) -> TrainBatches | KOscBatches:
        """What the host sends for each step, of which this process holds ``local_rows``."""
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
        self._val = self._open_val()

    def _open_val(self) -> ShardReader | None:
        data = self._config.data
        if not self._config.train.eval_every or not (local_root(data.root) / "val.h5").exists():
            return None
        return open_split(data.root, "val", self.spec, allow_external=data.allow_external)

    def batches(self, local_rows: range) -> TrainBatches:
        """Spectrograms, rows and paired noise."""
        config = self._config
        return TrainBatches(
            self._reader,
            batch_size=config.data.batch_size,
            seed=config.seed,
            coupled=config.model.kind == "flow" and config.flow.coupling,
            local_rows=local_rows,
            steps=config.train.steps,
        )

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

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self._config = config
        self.task = KOscTask.from_config(config)
        self.identity = {"source": "k_osc"}

    def batches(self, local_rows: range) -> KOscBatches:
        """The order of the noise."""
        config = self._config
        coupled = config.model.kind == "flow" and config.flow.coupling
        return KOscBatches(self.task, coupled=coupled, local_rows=local_rows, steps=config.train.steps)

    def held_out(self, placement: NamedSharding) -> KOscHeldOut | None:
        """Rows of the validation split."""
        config = self._config
        return KOscHeldOut(self.task, "val", config.validation.rows, placement) if config.train.eval_every else None


def open_training_data(config: ml_collections.ConfigDict) -> ShardTrainingData | KOscTrainingData:
    """What the config's ``data`` section names. Raises UserError where there is no such thing."""
    source = config.data.source
    if source not in SOURCES:
        raise UserError(f"unknown data.source {source!r}: use {' or '.join(SOURCES)}")
    return ShardTrainingData(config) if source == "shards" else KOscTrainingData(config)


def dataset_identity(reader: ShardReader, spec: ParamSpec, stats: MelStats) -> dict[str, Any]:
    """What a workdir remembers of its training data: a moved data set is the same, another one is not."""
    rows = reader.read_rows(PARAM_ARRAY, np.arange(min(FINGERPRINT_ROWS, len(reader))))
    return {
        "rows": len(reader),
        "spec_hash": spec.content_hash,
        "first_rows_sha256": _digest(rows),
        "statistics_sha256": _digest(np.stack(stats)),
    }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, np.float32).tobytes()).hexdigest()
