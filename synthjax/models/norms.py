"""Layer and batch normalisation, with gradients that cost less than those that JAX derives.

Shapes: D features. JAX's gradient of layer normalisation writes an array of float32 as large as x for every sum in it;
the one here reads x and the gradient of the result twice. JAX's gradient of batch normalisation computes sums over x
that are always zero.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.kernels.remat import saved

EPSILON = 1e-5
DECAY = 0.9  # PyTorch's momentum is 1 minus this.


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / sqrt(variance + 1e-5) * scale + bias over the last axis (Ba, Kiros, Hinton 2016).

    It is computed in float32 and rounded once to ``dtype``.
    """

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        super().__init__(features, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:  # type: ignore[override]
        scale, bias = (cast(nnx.Param, parameter)[...] for parameter in (self.scale, self.bias))
        return _normalise(x, scale, bias, self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: Array, scale: Array, bias: Array, dtype: jnp.dtype) -> Array:
    return _forward(x, scale, bias, dtype)[0]


def _forward(x: Array, scale: Array, bias: Array, dtype: jnp.dtype) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = saved(wide.mean(axis=-1, keepdims=True))
    inverse = saved(jax.lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + EPSILON))
    return ((wide - mean) * inverse * scale + bias).astype(dtype), (x, mean, inverse, scale)


def _backward(dtype: jnp.dtype, kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = kept
    whitened, wide = (x.astype(jnp.float32) - mean) * inverse, gradient.astype(jnp.float32)
    rows = tuple(range(x.ndim - 1))
    scaled = wide * scale
    along = (scaled * whitened).mean(axis=-1, keepdims=True)
    of_x = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - whitened * along)
    return of_x.astype(x.dtype), (wide * whitened).sum(axis=rows), wide.sum(axis=rows)


_normalise.defvjp(_forward, _backward)


class BatchNorm(nnx.BatchNorm):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis (Ioffe, Szegedy 2015).

    It is computed in float32 and rounded once to ``dtype``. By default it uses its running statistics, which are
    ``nnx.BatchStat`` variables. After ``train()``, or with ``use_running_average=False`` in a call, it normalises by
    the batch and moves the statistics by a tenth towards the batch's. Under jit, a batch that is split over devices is
    normalised as a whole. Variances are the population's; PyTorch's running variances are n / (n - 1) times as large.
    """

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs, epsilon: float = EPSILON) -> None:
        super().__init__(features, use_running_average=True, momentum=DECAY, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "*B D"], use_running_average: bool | None = None
    ) -> Float[Array, "*B D"]:
        scale, bias = (cast(nnx.Param, parameter)[...] for parameter in (self.scale, self.bias))
        average = self.use_running_average if use_running_average is None else use_running_average
        wide = x.astype(jnp.float32)
        mean, variance = (self.mean[...], self.var[...]) if average else moments(wide)
        if not average:
            for running, value in ((self.mean, mean), (self.var, variance)):
                running[...] = self.momentum * running[...] + (1.0 - self.momentum) * value
        return ((wide - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)


@jax.custom_jvp
def moments(x: Float[Array, "*B D"]) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
    """The mean and the population variance over all axes but the last."""
    mean = _mean(x)
    return mean, _mean(jnp.square(x - mean))


@moments.defjvp
def _moments_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The derivative of the variance by the mean is zero, and left out; JAX would compute it as a sum over x."""
    (x,), (tangent,) = primals, tangents
    mean, variance = moments(x)
    return (mean, variance), (_mean(tangent), 2.0 * _mean((x - mean) * tangent))


def _mean(x: Array) -> Array:
    return x.mean(axis=tuple(range(x.ndim - 1)))
