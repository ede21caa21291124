"""Scaled dot-product attention: one function, its implementation chosen by the platform it is compiled for."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_one_for_all = False


def attend(
    query: Float[Array, "B N H K"], key: Float[Array, "B M H K"], value: Float[Array, "B M H K"]
) -> Float[Array, "B N H K"]:
    """softmax(Q K^T / sqrt(K)) V for every head, softmax in float32."""
    if _one_for_all:
        return jax.nn.dot_product_attention(query, key, value)
    return jax.lax.platform_dependent(query, key, value, cpu=_attend_head_by_head, default=jax.nn.dot_product_attention)


@contextmanager
def as_on_accelerators() -> Generator[None, None, None]:
    """Traces inside have the attention of accelerators on CPUs as well, to learn what a program needs there."""
    global _one_for_all
    _one_for_all = True
    try:
        yield
    finally:
        _one_for_all = False


def _attend_head_by_head(query: Array, key: Array, value: Array) -> Array:
    """For XLA's CPU backend, whose batched matrix products are slow loops: one product at a time, in cache.

    The weights are recomputed in the backward pass, which is faster there than to keep B x H x N x M of them.
    """
    batch, _, heads, width = query.shape

    def by_head(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(batch * heads, x.shape[1], width)

    mixed = jax.lax.map(jax.checkpoint(_attend_one), (by_head(query), by_head(key), by_head(value)))
    return mixed.reshape(batch, heads, -1, width).swapaxes(1, 2)


def _attend_one(head: tuple[Array, Array, Array]) -> Array:
    query, key, value = head
    scores = jnp.matmul(query / math.sqrt(query.shape[-1]), key.T, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # Normalising after the product with the values touches N x K numbers instead of N x M.
    mixed = jnp.matmul(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)
