r"""Conditional flow matching on the straight path (paper, section 3; Lipman et al. 2023; Liu et al. 2023).

    x_t = (1 - t) x_0 + t x_1                                              (1)  path from noise x_0 to data x_1
    u   = x_1 - x_0                                                        (2)  its velocity
    L   = E || v(x_t, t | z) - u ||^2 / W                                  (3)  flow matching loss
    z  <- dropout token with probability p                                 (4)  for classifier-free guidance

Shapes: B batch, K draws for each sound, N validation times, W row width, L conditioning rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from synthjax.methods.examples import Examples, Metrics
from synthjax.methods.sampling import NOTHING, Given, Sampling, sample_rows
from synthjax.methods.task import Task
from synthjax.models import FlowModel


class Draws(NamedTuple):
    """The random numbers of one training step besides the noise: times, and which conditionings are dropped."""

    t: Float[Array, " B"]
    dropped: Bool[Array, " B"]


def draw(key: jax.Array, batch: int, dropout_rate: float) -> Draws:
    """Draws t uniformly on [0, 1) and the guidance dropout of eq. (4), for one batch."""
    time_key, dropout_key = jax.random.split(key)
    return Draws(jax.random.uniform(time_key, (batch,)), jax.random.bernoulli(dropout_key, dropout_rate, (batch,)))


def interpolate(x0: Float[Array, "B W"], x1: Float[Array, "B W"], t: Float[Array, " B"]) -> Float[Array, "B W"]:
    """The points x_t of eq. (1)."""
    return (1.0 - t[:, None]) * x0 + t[:, None] * x1


def velocity_error(
    model: FlowModel,
    z: Float[Array, "B L D"],
    x0: Float[Array, "B W"],
    x1: Float[Array, "B W"],
    t: Float[Array, " B"],
    dropped: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """The loss of eq. (3) for every example of a batch."""
    velocity = model.velocity(interpolate(x0, x1, t), t, z, dropped)
    return jnp.square(velocity - (x1 - x0)).mean(axis=-1)


@dataclass(frozen=True)
class FlowMatching:
    """The method of flows: trained at random times, validated at fixed times, sampled by an ODE solver."""

    guidance_dropout: float
    projection_penalty: float
    times: tuple[float, ...]

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, task: Task) -> FlowMatching:
        """The settings of a config's ``flow`` and ``validation.times``."""
        return cls(config.flow.guidance_dropout, config.flow.projection_penalty, tuple(config.validation.times))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for the loss at each time."""
        return tuple(f"loss_t{t:g}" for t in self.times)

    def draw(self, key: Array, shape: tuple[int, int]) -> Draws:
        """Times, and which conditionings are dropped."""
        return draw(key, shape[0], self.guidance_dropout)

    def loss(self, model: FlowModel, examples: Examples, draws: Draws, step: Array) -> tuple[Array, Metrics]:
        """The velocity error at random times plus the weighted penalty on the projection."""
        inputs, x0, x1 = examples
        error = velocity_error(model, model.encode(inputs), x0, x1, *draws).mean()
        penalty = self.projection_penalty * model.penalty()
        return error + penalty, {"loss": error, "penalty": penalty}

    def errors(self, make_model: Callable[[], FlowModel], examples: Examples) -> Float[Array, "N B"]:
        """The velocity error at every time."""
        inputs, x0, x1 = examples
        z = make_model().encode(inputs)

        def at(t: Array) -> Array:
            # The model is made again inside the loop: a Flax module may not cross a trace.
            return velocity_error(make_model(), z, x0, x1, jnp.full(x1.shape[:1], t))

        return jax.lax.map(at, jnp.asarray(self.times))

    def rows(
        self,
        model: FlowModel,
        inputs: Float[Array, "B *S"],
        x0: Float[Array, "B *K W"],
        sampling: Sampling,
        given: Given = NOTHING,
    ) -> Float[Array, "B *K W"]:
        """Samples of the flow, one from each noise row."""
        return sample_rows(model, inputs, x0, sampling, given)
