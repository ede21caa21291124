"""What a regression of rows is trained on, one figure for each example.

Under symmetric oscillators the mean squared error asks for one of K! equally good answers; the other two losses are
the paper's attempts to help: a fixed order of the targets, and a distance that ignores order.

Shapes: B batch, W row width, K oscillators. Rows of the k-osc task are (3K,), see ``synthjax.k_osc``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from synthjax.k_osc import join_oscillators, split_oscillators
from synthjax.k_osc_metrics import chamfer_distance

Loss = Callable[[Float[Array, "B W"], Float[Array, "B W"]], Float[Array, " B"]]


def squared_error(predicted: Float[Array, "B W"], true: Float[Array, "B W"]) -> Float[Array, " B"]:
    """Mean squared error over the columns."""
    return jnp.square(predicted - true).mean(axis=-1)


def sorted_squared_error(predicted: Float[Array, "B 3*K"], true: Float[Array, "B 3*K"]) -> Float[Array, " B"]:
    """Squared error to the true oscillators in order of frequency; the prediction's order is left as it is."""
    return squared_error(predicted, sort_by_frequency(true))


def sort_by_frequency(rows: Float[Array, "B 3*K"]) -> Float[Array, "B 3*K"]:
    """The same oscillators, the lowest first."""
    oscillators = split_oscillators(rows)
    order = jnp.argsort(oscillators[..., 0], axis=-1)
    return join_oscillators(jnp.take_along_axis(oscillators, order[..., None], axis=1))


LOSSES: dict[str, Loss] = {
    "mse": squared_error,
    "sorted_mse": sorted_squared_error,
    "chamfer": chamfer_distance,
}
