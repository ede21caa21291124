"""The MLP field, the vector field of the paper's baseline flow: a conditional residual MLP on whole rows.

Shapes: B batch, W row width, D model width, E width of the conditioning, L layers, T width of the time encoding.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.kernels.remat import saved
from synthjax.models.layers import FeedForward, gelu, linear, stack_layers
from synthjax.models.norms import LayerNorm
from synthjax.models.vector_fields import VectorField


class MLPFieldBlock(nnx.Module):
    """(a, g, b) = Linear(GELU(c)); h += a FF(g LN(LN(h)) + b), with one LayerNorm, affine and all, applied twice.

    The double norm is a quirk of the reference, which its weights need. The order of the chunks differs from that of
    the transformer's ``FieldBlock``.
    """

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(dim, dim, dim, dtype=dtype, rngs=rngs)
        self.modulation = linear(dim, 3 * dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)

    def __call__(self, h: Float[Array, "B D"], c: Float[Array, "B D"]) -> Float[Array, "B D"]:
        a, g, b = jnp.split(saved(self.modulation(gelu(c))), 3, axis=-1)
        return h + a * self.ff(g * self.norm(self.norm(h)) + b)


class MLPField(VectorField):
    """Residual MLP vector field, whose one token is as wide as the model.

    Args:
      width: W, columns of a parameter row.
      dim, layers, conditioning_dim, time_features: see ``VectorField``.
    """

    def __init__(
        self,
        width: int,
        *,
        dim: int,
        layers: int,
        conditioning_dim: int,
        time_features: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(dim, layers, conditioning_dim, time_features, dtype=dtype, rngs=rngs)
        self.embed = linear(width, dim, (None, "embed"), dtype=dtype, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: MLPFieldBlock(dim, dtype=dtype, rngs=rngs), layers, rngs)
        # Velocities are float32, whatever dtype the layers compute in.
        self.read = linear(dim, width, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def to_tokens(self, x: Float[Array, "B W"]) -> Float[Array, "B D"]:
        return self.embed(x)

    def to_row(self, tokens: Float[Array, "B D"]) -> Float[Array, "B W"]:
        return self.read(tokens)
