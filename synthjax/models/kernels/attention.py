"""Scaled dot-product attention: one function, its implementation chosen by platform, length and precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from synthjax.models.kernels.cudnn_attention import Kernel, attend_by_cudnn, fits_cudnn
from synthjax.models.kernels.platform import attends_as_on_accelerators
from synthjax.models.kernels.remat import saved

# On CPUs: heads that the loop over heads computes together, and the scores of a head from which the loop is faster.
HEADS_AT_ONCE, LOOPED_SCORES = 4, 128 * 128


def attend(
    query: Float[Array, "B N H K"],
    key: Float[Array, "B M H K"],
    value: Float[Array, "B M H K"],
    kernel: Kernel = "xla",
) -> Float[Array, "B N H K"]:
    """softmax(Q K^T / sqrt(K)) V for every head, with softmax in float32.

    Args:
      kernel: ``cudnn``: by cuDNN where it takes the queries.
    """
    if kernel == "cudnn" and fits_cudnn(query):
        return attend_by_cudnn(query, key, value)
    if attends_as_on_accelerators() or query.shape[1] * key.shape[1] < LOOPED_SCORES:
        return jax.nn.dot_product_attention(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cpu=_attend_head_by_head, default=jax.nn.dot_product_attention)


@jax.custom_vjp
def _attend_head_by_head(query: Array, key: Array, value: Array) -> Array:
    """Attention for XLA's CPU backend, whose batched matrix products are slow: one head's product at a time, in cache.

    The backward pass computes the weights again from the logarithms of their sums (Dao et al. 2022, appendix B.2, on
    whole rows). On CPUs this is faster than keeping B x H x N x M weights.
    """
    return _forward(query, key, value)[0]


def _forward(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    mixed, log_sums = _for_every_head(_attend_one, query, key, value)
    return mixed, (query, key, value, saved(log_sums))


def _backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    return _for_every_head(_gradients_of_one, *kept, gradient)


_attend_head_by_head.defvjp(_forward, _backward)


def _for_every_head(function: Callable[..., tuple[Array, ...]], *arrays: Array) -> tuple[Array, ...]:
    """Applies a function of one head's arrays (N, K) to every head of (B, N, H, K).

    A few heads are computed together, because one computes while another waits: a tenth less time.
    """
    batch, heads = arrays[0].shape[0], arrays[0].shape[2]
    together = math.gcd(batch * heads, HEADS_AT_ONCE)

    def group(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(-1, together, x.shape[1], x.shape[3])

    def ungroup(x: Array) -> Array:
        return x.reshape(batch, heads, *x.shape[2:]).swapaxes(1, 2)

    def some(groups: tuple[Array, ...]) -> tuple[Array, ...]:
        results = [function(*head) for head in zip(*groups, strict=True)]
        return jax.tree.map(lambda *same: jnp.stack(same), *results)

    return jax.tree.map(ungroup, jax.lax.map(some, tuple(map(group, arrays))))


def _attend_one(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """The result (N, K) of one head, and the logarithms (N, 1) of the sums of its weights."""
    scores = _scores(query, key)
    largest = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    # Normalising after the product with the values takes N x K divisions instead of N x M.
    mixed, sums = _product(weights.astype(value.dtype), value), weights.sum(axis=-1, keepdims=True)
    return (mixed / sums).astype(value.dtype), largest + jnp.log(sums)


def _gradients_of_one(
    query: Array, key: Array, value: Array, log_sums: Array, gradient: Array
) -> tuple[Array, Array, Array]:
    """The gradients of query, key and value, from the gradient (N, K) of the result."""
    weights = jnp.exp(_scores(query, key) - log_sums)
    of_weights = _product(gradient, value.T)
    of_scores = weights * (of_weights - (weights * of_weights).sum(axis=-1, keepdims=True))
    scaled = (of_scores / math.sqrt(query.shape[-1])).astype(query.dtype)
    of_query, of_key = _product(scaled, key), _product(scaled.T, query)
    of_value = _product(weights.T.astype(gradient.dtype), gradient)
    return of_query.astype(query.dtype), of_key.astype(key.dtype), of_value.astype(value.dtype)


def _scores(query: Array, key: Array) -> Array:
    return _product(query / math.sqrt(query.shape[-1]), key.T)


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)
