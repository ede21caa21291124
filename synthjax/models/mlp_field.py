"""A vector field without tokens: a conditional residual MLP on whole rows (the paper's baseline flow).

Shapes: B batch, W row width, D model width, E width of the conditioning, L layers, T width of the time encoding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from synthjax.models.layer_norm import LayerNorm
from synthjax.models.layers import FeedForward, gelu, linear, run_layers, stack_layers
from synthjax.models.remat import Remat, saved
from synthjax.models.vector_fields import conditioning_of_layers


class MLPFieldBlock(nnx.Module):
    """(a, g, b) = Linear(GELU(c)); h += a FF(g LN(LN(h)) + b), with one LayerNorm, affine and all, applied twice.

    The reference does so; weights that come from it need the same. Note the order of the chunks, which is not that of
    the transformer's ``FieldBlock``.
    """

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(dim, dim, dim, dtype=dtype, rngs=rngs)
        self.modulation = linear(dim, 3 * dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)

    def __call__(self, h: Float[Array, "B D"], c: Float[Array, "B D"]) -> Float[Array, "B D"]:
        a, g, b = jnp.split(saved(self.modulation(gelu(c))), 3, axis=-1)
        return h + a * self.ff(g * self.norm(self.norm(h)) + b)


class MLPField(nnx.Module):
    """Residual MLP vector field, with the interface of ``TransformerField``.

    Args:
      width: W, columns of a parameter row.
      conditioning_dim: E of the encoder's rows.
      time_features: width of the sinusoidal time encoding; 1 gives the scalar t itself.
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
        self.layers, self.time_features = layers, time_features
        self.remat: Remat = "elementwise"
        # Stands for "no sound" in classifier-free guidance: one vector for all layers.
        self.dropout_token = nnx.Param(jax.random.normal(rngs.params(), (conditioning_dim,)), axes=("embed",))
        self.conditioning = FeedForward(conditioning_dim + time_features, dim, dim, dtype=dtype, rngs=rngs)
        self.embed = linear(width, dim, (None, "embed"), dtype=dtype, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: MLPFieldBlock(dim, dtype=dtype, rngs=rngs), layers, rngs)
        # Velocities leave in float32 whatever computes the layers.
        self.read = linear(dim, width, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B W"],
        t: Float[Array, " B"],
        z: Float[Array, "B L E"] | Float[Array, "B E"],
        dropped: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B W"]:
        """Velocity at (x, t); examples marked in ``dropped`` are unconditional, whatever their z."""
        rows = conditioning_of_layers(self, z, t, dropped)
        return self.read(run_layers(self.blocks, self.embed(x), rows, remat=self.remat))

    def penalty(self) -> Float[Array, ""]:
        """0: there is no projection to keep sparse."""
        return jnp.zeros(())
