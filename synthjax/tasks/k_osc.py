"""The k-osc task as training data: the step draws rows, signals and noise, and the host sends their pairing.

The Hungarian algorithm pairs noise rows with data rows. It runs on the host, ahead of the step: the host draws the same
rows and noise from the same key, computes the pairing, and sends it as an order of the noise rows.

Shapes: B batch, b rows of this process, W = 3K columns of a row, K oscillators, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from data_pipeline.shards.mel_stats import MelStats
from synthjax.cluster import sharding
from synthjax.k_osc import metrics as k_osc_metrics
from synthjax.k_osc import synthesis as k_osc
from synthjax.k_osc.synthesis import KOsc
from synthjax.methods.coupling import couple_order, group_rows
from synthjax.methods.examples import Batch, HostBatch
from synthjax.methods.task import KOscTask, Task, draw
from synthjax.tasks.batches import is_coupled

# The JAX backend on which worker processes draw rows.
HOST = "cpu"
# Rows of a held-out batch. It does not depend on the training batch: all models of a seed get the same rows.
HELD_OUT_BATCH = 256


class KOscTrainingData:
    """The ``TrainingData`` of the k-osc task: everything is drawn from the config's seed."""

    stats: MelStats | None = None

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self._config, self._task = config, KOscTask.from_config(config)
        self.task: Task = self._task
        self.identity = {"source": "k_osc"}
        self.workers: int = config.data.workers

    def batches(self, local_rows: range) -> KOscBatches:
        config = self._config
        return KOscBatches(self._task, coupled=is_coupled(config), local_rows=local_rows, steps=config.train.steps)

    def rows_of_step(self, step: int) -> None:
        """None: the step draws its rows."""

    def load(self, mesh: Mesh) -> Callable[[HostBatch], Batch]:
        """There is no cache."""
        return partial(sharding.place, sharding=sharding.batch_sharding(mesh))

    def held_out(self, placement: NamedSharding) -> KOscHeldOut | None:
        """The first ``validation.rows`` rows of the validation split."""
        config = self._config
        return KOscHeldOut(self._task, "val", config.validation.rows, placement) if config.train.eval_every else None

    def probe_targets(self) -> None:
        """None: the k-osc task has no synthesizer that a probe could render with."""


class KOscBatches:
    """Host batches of the k-osc task: the order (b,) int32 of the noise rows; empty if noise is not coupled."""

    def __init__(self, task: KOscTask, *, coupled: bool, local_rows: range, steps: int) -> None:
        self._task, self._coupled, self._local_rows, self._steps = task, coupled, local_rows, steps
        self._group = group_rows(task.batch_size)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: SupportsIndex) -> dict[str, np.ndarray]:
        if not self._coupled:
            return {}
        with jax.default_device(jax.local_devices(backend=HOST)[0]):
            rows, noise = map(np.asarray, self._draw(int(step)))
        orders = [
            first + couple_order(noise[first : first + self._group], rows[first : first + self._group])
            for first in range(0, self._task.batch_size, self._group)
        ]
        return {"order": np.concatenate(orders)[self._local_rows.start : self._local_rows.stop].astype(np.int32)}

    @cached_property
    def _draw(self) -> Any:
        task = self._task
        return jax.jit(partial(draw, task.seed, "train", count=task.batch_size, width=task.width))

    def __getstate__(self) -> dict[str, Any]:
        # A compiled function cannot be pickled for a worker process.
        return {name: value for name, value in vars(self).items() if name != "_draw"}


class KOscHeldOut:
    """The first ``rows`` rows of a split of the k-osc task, as a ``HeldOut``: the same for every model of a seed.

    Args:
      split: ``val`` or ``test``.
      placement: the devices that hold a batch.
    """

    def __init__(self, task: KOscTask, split: str, rows: int, placement: NamedSharding) -> None:
        self._task, self.rows = task, rows
        both = (placement, placement)
        self._draw = jax.jit(
            lambda number: draw(task.seed, split, number, HELD_OUT_BATCH, task.width), out_shardings=both
        )
        self._valid = jax.jit(
            lambda first: (first + jnp.arange(HELD_OUT_BATCH) < rows).astype(jnp.float32), out_shardings=placement
        )

    def __len__(self) -> int:
        return -(-self.rows // HELD_OUT_BATCH)

    def __getitem__(self, item: int) -> Batch:
        if not 0 <= item < len(self):
            raise IndexError(item)
        x1, x0 = self._draw(item)
        return {"x0": x0, "x1": x1, "valid": self._valid(item * HELD_OUT_BATCH)}

    def true_rows(self, count: int) -> np.ndarray:
        """The first rows (N, W) of the split, drawn again."""
        batches = range(-(-count // HELD_OUT_BATCH))
        return np.concatenate([sharding.gather(self._draw(number)[0]) for number in batches])[:count]

    def judge(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, Float[np.ndarray, " N"]]:
        """The metrics of ``synthjax.k_osc.metrics``, (N,) each, for rows (N, W); lower is better."""
        on_device = _metrics_on_device(predicted, true, self._task.settings)
        figures = {name: np.asarray(values) for name, values in on_device.items()}
        rows = jnp.asarray(predicted), jnp.asarray(true)
        figures["linear_assignment_distance"] = k_osc_metrics.linear_assignment_distance(*rows)
        figures["linear_assignment_cost"] = k_osc_metrics.linear_assignment_cost(*rows)
        return figures

    def parameter_errors(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """Mean squared error by column, on [-1, 1]; empty for the symmetric task, whose oscillators have no order."""
        if self._task.settings.symmetric:
            return {}
        errors = np.square(predicted - true).mean(axis=0, dtype=np.float64)
        return dict(zip(self._task.column_names, errors.tolist(), strict=True))


@partial(jax.jit, static_argnames="task")
def _metrics_on_device(predicted: Array, true: Array, task: KOsc) -> dict[str, Array]:
    signals = [k_osc.synthesise(rows, task) for rows in (predicted, true)]
    return {
        "lsd": k_osc_metrics.log_spectral_distance(*signals),
        "spectral_l1": k_osc_metrics.spectral_l1(*signals),
        "chamfer": k_osc_metrics.chamfer_distance(predicted, true),
        "mse": jnp.square(predicted - true).mean(axis=-1),
    }
