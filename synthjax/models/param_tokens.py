"""Param2Tok: learned tokens for a parameter row (paper, section 4.2).

Shapes: B batch, W row width, N tokens, D model width.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.layers import FeedForward

INIT_NOISE = 1e-4


class Param2Tok(nnx.Module):
    """Row to tokens and back through one learned soft assignment A (N, W).

    To tokens: A h(diag(x) Z), with h = Linear-GELU-Linear on every parameter. Back, weight-tied:
    x~_w = sum_d Z'_wd (A^T X)_wd. The assignment starts uniform and every parameter's embedding the same, up to
    noise of deviation ``init_noise`` (1e-4 in the paper), so that which parameters share a token is learned; an L1
    penalty on A keeps it sparse.
    """

    def __init__(
        self, width: int, tokens: int, dim: int, *, init_noise: float = INIT_NOISE, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        normal = jax.random.normal
        shared = normal(rngs.params(), (1, dim)) / math.sqrt(dim)
        uniform = 1.0 / math.sqrt(tokens * width)
        self.assignment = nnx.Param(uniform + init_noise * normal(rngs.params(), (tokens, width)), axes=(None, None))
        self.embed_in = nnx.Param(shared + init_noise * normal(rngs.params(), (width, dim)), axes=(None, "embed"))
        self.embed_out = nnx.Param(shared + init_noise * normal(rngs.params(), (width, dim)), axes=(None, "embed"))
        self.ff = FeedForward(dim, dim, dim, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def to_tokens(self, x: Float[Array, "B W"]) -> Float[Array, "B N D"]:
        """Tokens of a batch of rows."""
        embedded = x.astype(self.dtype)[..., None] * self.embed_in[...].astype(self.dtype)
        return jnp.einsum("bnw,bwd->bnd", self._assignments(len(x)), self.ff(embedded))

    def to_row(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B W"]:
        """A row of float32 from a batch of tokens."""
        per_parameter = jnp.einsum("bnw,bnd->bwd", self._assignments(len(tokens)), tokens)
        embedding = self.embed_out[...].astype(self.dtype)
        return jnp.einsum("bwd,wd->bw", per_parameter, embedding, preferred_element_type=jnp.float32)

    def _assignments(self, batch: int) -> Float[Array, "B N W"]:
        """A for every example: a product with one A puts the batch second in memory, and so all tokens after it.

        Broadcast before it is rounded, so that its gradients are added up in float32.
        """
        return jnp.broadcast_to(self.assignment[...], (batch, *self.assignment.shape)).astype(self.dtype)

    def penalty(self) -> Float[Array, ""]:
        """mean |A|, to be weighted by the config."""
        return jnp.abs(self.assignment[...]).mean()
