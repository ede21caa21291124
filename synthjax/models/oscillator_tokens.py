"""The equivariant projection of the k-osc task: one token for each oscillator (paper, flow with fixed symmetry).

Shapes: B batch, K oscillators (tokens), D model width. A row is (3K,), see ``synthjax.k_osc``.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.k_osc import FEATURES, join_oscillators, split_oscillators
from synthjax.models.layers import linear


class OscillatorTokens(nnx.Module):
    """Token i = Linear([f_i, a_i, w_i]), and back by another Linear; the same for every oscillator.

    Reordering the oscillators of a row reorders the tokens and nothing else, so that a field without positions is
    exactly equivariant. The interface is that of ``Param2Tok``, which has to learn the symmetry instead.

    Raises:
      ValueError: unless the row is made of as many oscillators as there are tokens.
    """

    def __init__(self, width: int, tokens: int, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        if width != FEATURES * tokens:
            raise ValueError(f"a row of {width} columns is not {tokens} oscillators of {FEATURES}")
        self.embed = linear(FEATURES, dim, (None, "embed"), dtype=dtype, rngs=rngs)
        # Velocities leave in float32 whatever computes the tokens.
        self.read = linear(dim, FEATURES, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def to_tokens(self, x: Float[Array, "B 3*K"]) -> Float[Array, "B K D"]:
        """Tokens of a batch of rows."""
        return self.embed(split_oscillators(x))

    def to_row(self, tokens: Float[Array, "B K D"]) -> Float[Array, "B 3*K"]:
        """A row of float32 from a batch of tokens."""
        return join_oscillators(self.read(tokens))

    def penalty(self) -> Float[Array, ""]:
        """0: nothing here has to become sparse."""
        return jnp.zeros(())
