"""The residual MLP block of the regression baselines and of the CNN spectral encoder.

Shapes: B batch, I input width, O output width.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.layer_norm import LayerNorm
from synthjax.models.layers import FeedForward, uniform_fan_in


class ResidualMLP(nnx.Module):
    """skip(x) + Linear(GELU(Linear(LN x))); skip is the identity, or a Linear without bias where widths differ."""

    def __init__(self, in_features: int, hidden: int, out_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(in_features, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(in_features, hidden, out_features, dtype=dtype, rngs=rngs)
        self.skip = None if in_features == out_features else _skip(in_features, out_features, dtype, rngs)

    def __call__(self, x: Float[Array, "B I"]) -> Float[Array, "B O"]:
        skip = x if self.skip is None else self.skip(x)
        return skip + self.ff(self.norm(x))


def _skip(in_features: int, out_features: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=False,
        dtype=dtype,
        kernel_init=uniform_fan_in(in_features),
        kernel_metadata={"axes": ("embed", "mlp")},
        rngs=rngs,
    )
