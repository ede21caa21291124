"""The method of regressions, which predict rows straight from sounds, and its losses.

With k interchangeable oscillators k! rows give the same sound, and the mean squared error accepts only one of them. The
paper tries two other losses: targets in a fixed order, and a distance that ignores order.

Shapes: B batch, W row width, K oscillators, or in ``x0`` draws for each sound. Rows of the k-osc task are (3K,), see
``synthjax.k_osc.synthesis``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from synthjax.k_osc.metrics import chamfer_distance
from synthjax.k_osc.synthesis import join_oscillators, split_oscillators
from synthjax.methods.examples import Examples, Metrics, repeat_for_draws
from synthjax.methods.sampling import NOTHING, Given, Sampling
from synthjax.methods.task import Task

Loss = Callable[[Float[Array, "B W"], Float[Array, "B W"]], Float[Array, " B"]]


def squared_error(predicted: Float[Array, "B W"], true: Float[Array, "B W"]) -> Float[Array, " B"]:
    """Mean squared error over the columns."""
    return jnp.square(predicted - true).mean(axis=-1)


def sorted_squared_error(predicted: Float[Array, "B 3*K"], true: Float[Array, "B 3*K"]) -> Float[Array, " B"]:
    """Mean squared error to the true oscillators sorted by frequency; the prediction is not sorted."""
    return squared_error(predicted, sort_by_frequency(true))


def sort_by_frequency(rows: Float[Array, "B 3*K"]) -> Float[Array, "B 3*K"]:
    """Rows with the same oscillators, the lowest frequency first."""
    oscillators = split_oscillators(rows)
    order = jnp.argsort(oscillators[..., 0], axis=-1)
    return join_oscillators(jnp.take_along_axis(oscillators, order[..., None], axis=1))


LOSSES: dict[str, Loss] = {
    "mse": squared_error,
    "sorted_mse": sorted_squared_error,
    "chamfer": chamfer_distance,
}


@dataclass(frozen=True)
class Regression:
    """The method of regressions; ``kind`` is a key of ``LOSSES``."""

    kind: str
    times: tuple[float, ...] = ()

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, task: Task) -> Regression:
        """The loss of a config's ``model.loss``."""
        return cls(config.model.loss)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the one loss."""
        return (f"loss_{self.kind}",)

    def draw(self, key: Array, shape: tuple[int, int]) -> tuple[()]:
        """No random numbers."""
        return ()

    def loss(self, model: Any, examples: Examples, draws: tuple[()], step: Array) -> tuple[Array, Metrics]:
        """The loss, averaged over the batch."""
        error = LOSSES[self.kind](model(examples.inputs), examples.x1).mean()
        return error, {"loss": error}

    def errors(self, make_model: Callable[[], Any], examples: Examples) -> Float[Array, "1 B"]:
        """The training loss of every example."""
        return LOSSES[self.kind](make_model()(examples.inputs), examples.x1)[None]

    def rows(
        self,
        model: Any,
        inputs: Float[Array, "B *S"],
        x0: Float[Array, "B *K W"],
        sampling: Sampling,
        given: Given = NOTHING,
    ) -> Float[Array, "B *K W"]:
        """The predicted row, repeated for every noise row."""
        return repeat_for_draws(model(inputs), x0)
