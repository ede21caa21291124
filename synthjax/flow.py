r"""Conditional flow matching on the straight path (paper, section 3; Lipman et al. 2023; Liu et al. 2023).

    x_t = (1 - t) x_0 + t x_1                                              (1)  path from noise x_0 to data x_1
    u   = x_1 - x_0                                                        (2)  its velocity
    L   = E || v(x_t, t | z) - u ||^2 / W                                  (3)  flow matching loss
    z  <- dropout token with probability p                                 (4)  for classifier-free guidance

Shapes: B batch, W row width, L conditioning rows, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from synthjax.models import FlowModel


class Draws(NamedTuple):
    """What is random in one training step besides the noise: times and dropped conditionings."""

    t: Float[Array, " B"]
    dropped: Bool[Array, " B"]


def draw(key: jax.Array, batch: int, dropout_rate: float) -> Draws:
    """t uniform on [0, 1) and the guidance dropout of eq. (4), for one batch."""
    time_key, dropout_key = jax.random.split(key)
    return Draws(jax.random.uniform(time_key, (batch,)), jax.random.bernoulli(dropout_key, dropout_rate, (batch,)))


def interpolate(x0: Float[Array, "B W"], x1: Float[Array, "B W"], t: Float[Array, " B"]) -> Float[Array, "B W"]:
    """Eq. (1)."""
    return (1.0 - t[:, None]) * x0 + t[:, None] * x1


def velocity_error(
    model: FlowModel,
    z: Float[Array, "B L D"],
    x0: Float[Array, "B W"],
    x1: Float[Array, "B W"],
    t: Float[Array, " B"],
    dropped: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """Eq. (3) for every example of a batch."""
    velocity = model.velocity(interpolate(x0, x1, t), t, z, dropped)
    return jnp.square(velocity - (x1 - x0)).mean(axis=-1)
