"""Layer normalisation (Ba, Kiros, Hinton 2016), with a gradient of its own.

Shapes: D features. Derived automatically, the gradient writes an array of float32 as large as x for every sum in it,
on GPUs as on CPUs; written out, it reads x and the gradient of the result twice.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.remat import saved

EPSILON = 1e-5


class LayerNorm(nnx.LayerNorm):
    """(x - mean) / sqrt(variance + 1e-5) * scale + bias over the last axis, in float32, rounded once to ``dtype``."""

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
