"""Batch normalisation (Ioffe, Szegedy 2015), whose gradient takes no sums that are known to be zero.

Shapes: C features.
"""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-5
DECAY = 0.9  # PyTorch's momentum of 0.1, counted from the other side.


class BatchNorm(nnx.BatchNorm):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, in float32, rounded once to ``dtype``.

    It uses its running statistics, which are ``nnx.BatchStat`` variables, unless ``train()`` or a call's
    ``use_running_average`` says otherwise: then it normalises by the batch, and moves the statistics by a tenth towards
    it. Under jit a batch that is split over devices is normalised as a whole. Variances are the population's, where
    PyTorch's running ones are n / (n - 1) times as large.
    """

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, epsilon: float = EPSILON) -> None:
        super().__init__(features, use_running_average=True, momentum=DECAY, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "*B C"], use_running_average: bool | None = None
    ) -> Float[Array, "*B C"]:
        scale, bias = (cast(nnx.Param, parameter)[...] for parameter in (self.scale, self.bias))
        average = self.use_running_average if use_running_average is None else use_running_average
        wide = x.astype(jnp.float32)
        mean, variance = (self.mean[...], self.var[...]) if average else self._moments(wide)
        return ((wide - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)

    def _moments(self, x: Float[Array, "*B C"]) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        mean, variance = moments(x)
        self.mean[...] = self.momentum * self.mean[...] + (1.0 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1.0 - self.momentum) * variance
        return mean, variance


@jax.custom_jvp
def moments(x: Float[Array, "*B C"]) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Mean and population variance over all axes but the last."""
    mean = _mean(x)
    return mean, _mean(jnp.square(x - mean))


@moments.defjvp
def _moments_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The variance's derivative by the mean is zero: found by JAX, it is a sum over all of x."""
    (x,), (tangent,) = primals, tangents
    mean, variance = moments(x)
    return (mean, variance), (_mean(tangent), 2.0 * _mean((x - mean) * tangent))


def _mean(x: Array) -> Array:
    return x.mean(axis=tuple(range(x.ndim - 1)))
