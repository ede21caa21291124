"""The k-osc task for training: rows, signals and noise are drawn in the step, only their pairing comes from the host.

Which noise row goes with which data row is decided by the Hungarian algorithm, which runs best on the host and ahead
of the step. The host draws the same rows and noise from the same key to find it, and sends an order.

Shapes: B batch, b rows of this process, W = 3K columns of a row, K oscillators, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from synthjax import k_osc, k_osc_metrics
from synthjax.coupling import couple_order, group_rows
from synthjax.k_osc import KOsc
from synthjax.tasks import Batch, Examples

# A host process of the input pipeline draws on its processors, wherever the step runs.
HOST = "cpu"
# Rows of a held-out batch, whatever the batch of training: all models of a seed are asked the same.
HELD_OUT_BATCH = 256


def draw(seed: int, split: str, step: int | Array, count: int, width: int) -> tuple[Array, Array]:
    """Rows and noise, (B, W) each, of batch ``step`` of a split: a function of the three and nothing else."""
    row_key, noise_key = jax.random.split(k_osc.batch_key(seed, split, step))
    rows = k_osc.draw_rows(row_key, count, width // k_osc.FEATURES)
    return rows, jax.random.normal(noise_key, (count, width))


@dataclass(frozen=True)
class KOscTask:
    """Signals of k oscillators and their rows.

    Attributes:
      settings: the variant of the task.
      seed: of all draws.
      batch_size: B.
    """

    settings: KOsc
    seed: int
    batch_size: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> KOscTask:
        """The task of a config's ``k_osc`` section."""
        low, high = config.k_osc.frequency_range
        settings = KOsc(config.k_osc.oscillators, config.k_osc.symmetric, (float(low), float(high)))
        return cls(settings, config.seed, config.data.batch_size)

    @property
    def width(self) -> int:
        """W."""
        return self.settings.width

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(S,)."""
        return (k_osc.SAMPLES,)

    @property
    def column_names(self) -> Sequence[str]:
        """Such as ``frequency_1``, in the order of a row."""
        numbers = range(1, self.settings.oscillators + 1)
        return [f"{feature}_{i}" for feature in ("frequency", "amplitude", "waveform") for i in numbers]

    def examples(self, batch: Batch, stats: None, step: Array) -> Examples:
        """Draws those of the step; ``batch["order"]`` (B,) pairs them, and without it they stay as they are drawn."""
        rows, noise = draw(self.seed, "train", step, self.batch_size, self.width)
        paired = noise[batch["order"]] if "order" in batch else noise
        return Examples(k_osc.synthesise(rows, self.settings), paired, rows)

    def inputs(self, batch: Batch, stats: None) -> Float[Array, "B S"]:
        """The signals of ``batch["x1"]``."""
        return k_osc.synthesise(batch["x1"], self.settings)


class KOscBatches:
    """What the host sends for each step: the order (b,) int32 of the noise, or nothing at all."""

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
        # Compiled functions do not travel to worker processes.
        return {name: value for name, value in vars(self).items() if name != "_draw"}


class KOscHeldOut:
    """Held-out rows of the task in batches: the same for every model of a seed.

    Args:
      split: ``val`` or ``test``.
      rows: how many.
      placement: where a batch lives.
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

    def judge(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, Float[np.ndarray, " N"]]:
        """Every figure of ``k_osc_metrics``, lower is better."""
        figures = {
            name: np.asarray(values) for name, values in _on_device(predicted, true, self._task.settings).items()
        }
        rows = jnp.asarray(predicted), jnp.asarray(true)
        figures["linear_assignment_distance"] = k_osc_metrics.linear_assignment_distance(*rows)
        figures["linear_assignment_cost"] = k_osc_metrics.linear_assignment_cost(*rows)
        return figures

    def parameter_errors(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
        """By column, on [-1, 1]; empty in the symmetric task, where any order of the oscillators is right."""
        if self._task.settings.symmetric:
            return {}
        errors = np.square(predicted - true).mean(axis=0, dtype=np.float64)
        return dict(zip(self._task.column_names, errors.tolist(), strict=True))


@partial(jax.jit, static_argnames="task")
def _on_device(predicted: Array, true: Array, task: KOsc) -> dict[str, Array]:
    signals = [k_osc.synthesise(rows, task) for rows in (predicted, true)]
    return {
        "lsd": k_osc_metrics.log_spectral_distance(*signals),
        "spectral_l1": k_osc_metrics.spectral_l1(*signals),
        "chamfer": k_osc_metrics.chamfer_distance(predicted, true),
        "mse": jnp.square(predicted - true).mean(axis=-1),
    }
