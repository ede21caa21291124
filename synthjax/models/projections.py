"""Projections between parameter rows and tokens: ``Param2Tok`` is learned, ``OscillatorTokens`` knows the k-osc task.

Shapes: B batch, W row width, N tokens, D model width, K oscillators (tokens). Rows of the k-osc task are (3K,), see
``synthjax.k_osc.synthesis``.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.k_osc.synthesis import FEATURES, join_oscillators, split_oscillators
from synthjax.models.layers import FeedForward, linear

INIT_NOISE = 1e-4


class Param2Tok(nnx.Module):
    """Row to tokens and back through one learned soft assignment A (N, W).

    To tokens: A h(diag(x) Z), with h = Linear-GELU-Linear on every parameter. Back, weight-tied:
    x~_w = sum_d Z'_wd (A^T X)_wd (paper, section 4.2). At first the assignment is uniform and all parameters have the
    same embedding, up to noise with standard deviation ``init_noise`` (1e-4 in the paper): training learns which
    parameters share a token. An L1 penalty on A keeps it sparse.
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
        """The tokens of rows."""
        embedded = x.astype(self.dtype)[..., None] * self.embed_in[...].astype(self.dtype)
        return jnp.einsum("bnw,bwd->bnd", self._assignments(len(x)), self.ff(embedded))

    def to_row(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B W"]:
        """The rows of tokens, float32."""
        per_parameter = jnp.einsum("bnw,bnd->bwd", self._assignments(len(tokens)), tokens)
        embedding = self.embed_out[...].astype(self.dtype)
        return jnp.einsum("bwd,wd->bw", per_parameter, embedding, preferred_element_type=jnp.float32)

    def _assignments(self, batch: int) -> Float[Array, "B N W"]:
        """A, repeated for every example: a product with a single A would put the batch axis second in memory.

        A is rounded to ``dtype`` after the broadcast, so that its gradients are added up in float32.
        """
        return jnp.broadcast_to(self.assignment[...], (batch, *self.assignment.shape)).astype(self.dtype)

    def penalty(self) -> Float[Array, ""]:
        """The penalty mean |A|; the config weights it."""
        return jnp.abs(self.assignment[...]).mean()


class OscillatorTokens(nnx.Module):
    """The equivariant projection of the k-osc task: token i = Linear([f_i, a_i, w_i]), and back by another Linear.

    Both Linears are the same for every oscillator. Reordering the oscillators of a row reorders the tokens and changes
    nothing else, so that a field without positions is exactly equivariant (paper, flow with fixed symmetry).

    Raises:
      ValueError: unless a row holds as many oscillators as there are tokens.
    """

    def __init__(self, width: int, tokens: int, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        if width != FEATURES * tokens:
            raise ValueError(f"a row of {width} columns is not {tokens} oscillators of {FEATURES}")
        self.embed = linear(FEATURES, dim, (None, "embed"), dtype=dtype, rngs=rngs)
        # Velocities are float32, whatever dtype the layers compute in.
        self.read = linear(dim, FEATURES, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def to_tokens(self, x: Float[Array, "B 3*K"]) -> Float[Array, "B K D"]:
        """The tokens of rows."""
        return self.embed(split_oscillators(x))

    def to_row(self, tokens: Float[Array, "B K D"]) -> Float[Array, "B 3*K"]:
        """The rows of tokens, float32."""
        return join_oscillators(self.read(tokens))

    def penalty(self) -> Float[Array, ""]:
        """0: this projection has no penalty."""
        return jnp.zeros(())
