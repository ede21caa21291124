"""Rows of a validation or test split, in batches on the devices, and how answers to them are judged.

Shapes: B batch, N rows judged, W row width.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from data_pipeline.param_spec import ParamSpec
from data_pipeline.shards import ShardReader
from synthjax import sharding
from synthjax.data import EvalBatches, from_model_scale
from synthjax.param_metrics import per_parameter_mse, row_metrics
from synthjax.tasks import Batch

Figures = dict[str, NDArray[np.floating]]


class HeldOut(Protocol):
    """A split. ``rows`` is how many it has; the last batch is padded, with 0 in ``valid`` (B,) on padding."""

    rows: int

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Batch:
        """What ``Task.inputs`` takes, beside ``x0``, ``x1`` (B, W) and ``valid``; the same whenever it is asked for."""
        ...

    def judge(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> Figures:
        """Figures (N,) of rows (N, W) on the model's scale, by name."""
        ...

    def parameter_errors(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, float]:
        """Mean squared error by parameter; empty where parameters have no order to tell them by."""
        ...


class HeldOutShards:
    """The first rows of a split of shards."""

    def __init__(
        self, reader: ShardReader, spec: ParamSpec, *, batch_size: int, seed: int, placement: NamedSharding, limit: int
    ) -> None:
        self._reader, self._spec, self._placement = reader, spec, placement
        local_rows = sharding.rows_of_this_process(placement, batch_size)
        self._batches = EvalBatches(reader, batch_size=batch_size, seed=seed, local_rows=local_rows, limit=limit)
        self.rows = self._batches.rows

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, item: int) -> Batch:
        return sharding.place(self._batches[item], self._placement)

    def judge(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> Figures:
        """The metrics of ``param_metrics``."""
        return row_metrics(from_model_scale(predicted), from_model_scale(true), self._spec)

    def parameter_errors(self, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, float]:
        """By parameter of the spec, on columns in [0, 1]."""
        return per_parameter_mse(from_model_scale(predicted), from_model_scale(true), self._spec)
