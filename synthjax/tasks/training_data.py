"""The data of a run behind two protocols, and the choice of its source: shards, rendered rows, or the k-osc task.

Shapes: B batch, N rows judged, S sounds, T audio samples, W row width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import NDArray

from data_pipeline.params.spec import ParamSpec
from data_pipeline.shards.mel_stats import MelStats
from synthjax.methods.examples import Batch, HostBatch
from synthjax.methods.task import Task
from synthjax.tasks.batches import Batches
from synthjax.tasks.k_osc import KOscTrainingData
from synthjax.tasks.rendered import RenderedTrainingData
from synthjax.tasks.shards import ShardTrainingData


class HeldOut(Protocol):
    """A held-out split of ``rows`` rows, in batches on the devices. Each batch is the same every time it is read."""

    rows: int

    def __len__(self) -> int:
        """The number of batches."""
        ...

    def __getitem__(self, item: int) -> Batch:
        """What ``Task.inputs`` takes, ``x0`` and ``x1`` (B, W), and ``valid`` (B,), which is 0 on padding rows."""
        ...

    def true_rows(self, count: int) -> NDArray[np.floating]:
        """The true rows (N, W) of the first ``count`` sounds, on the model's scale."""
        ...

    def judge(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        """Metrics (N,) by name, for rows (N, W) on the model's scale."""
        ...

    def parameter_errors(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, float]:
        """Mean squared error by parameter name; empty if the order of the parameters has no meaning."""
        ...


class TrainingData(Protocol):
    """The training and validation data of a run.

    Attributes:
      task: makes examples of batches.
      stats: statistics that every step gets beside its batch; None if the task needs none.
      identity: JSON values by which a workdir recognises its training data.
      workers: processes that make batches ahead of the step; with 0, a thread makes them.
    """

    task: Task
    stats: MelStats | None
    identity: dict[str, Any]
    workers: int

    def batches(self, local_rows: range) -> Batches:
        """Host batches by step; this process gets the rows ``local_rows`` of every global batch."""
        ...

    def rows_of_step(self, step: int) -> list[int] | None:
        """Rows of train.h5 in the global batch of ``step``; None if rows are drawn instead of read."""
        ...

    def load(self, mesh: Mesh) -> Callable[[HostBatch], Batch]:
        """Fills the cache, if there is one; returns the function from host batches to batches on the devices."""
        ...

    def held_out(self, placement: NamedSharding) -> HeldOut | None:
        """The validation rows; None if the run does not validate."""
        ...

    def probe_targets(self) -> tuple[ParamSpec, NDArray[np.floating]] | None:
        """Spec and audio (S, 2, T) of the sounds for the validation probe; None if the run has no probe.

        Raises UserError where the data set has no audio.
        """
        ...


def open_training_data(config: ml_collections.ConfigDict, saved: MelStats | None) -> TrainingData:
    """The data that the config's ``data.source`` names; ``saved`` are the statistics that the model has, if any."""
    match config.data.source:
        case "shards":
            return ShardTrainingData(config, saved)
        case "render":
            return RenderedTrainingData(config, saved)
    return KOscTrainingData(config)
