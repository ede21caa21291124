"""Vector fields v(x, t | z) of the flow.

Shapes: B batch, W row width, N tokens, D model width, L layers, T width of the time encoding.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from synthjax.models.layer_norm import LayerNorm
from synthjax.models.layers import (
    Attention,
    FeedForward,
    gelu,
    linear,
    run_layers,
    stack_layers,
    xavier_normal,
    zeros,
)
from synthjax.models.oscillator_tokens import OscillatorTokens
from synthjax.models.param_tokens import INIT_NOISE, Param2Tok
from synthjax.models.remat import Remat, saved

ProjectionKind = Literal["param2tok", "oscillators"]
TIME_BASE = 10_000.0


def sinusoidal_time(t: Float[Array, " B"], features: int) -> Float[Array, "B T"]:
    """cos then sin of t / 10000^(i / (T/2)), i < T/2, with t in [0, 1] unscaled as in the reference."""
    half = features // 2
    basis = TIME_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = t[:, None] * basis
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def with_time(z: Float[Array, "B *L D"], t: Float[Array, " B"], features: int) -> Float[Array, "B *L D+T"]:
    """Conditioning rows, each followed by the time encoding: sinusoidal, or the scalar t for one feature."""
    time = sinusoidal_time(t, features) if features > 1 else t[:, None]
    time = time.astype(z.dtype).reshape(z.shape[0], *(1,) * (z.ndim - 2), features)
    return jnp.concatenate([z, jnp.broadcast_to(time, (*z.shape[:-1], features))], axis=-1)


def conditioning_of_layers(
    field: Any, z: Float[Array, "B L E"] | Float[Array, "B E"], t: Float[Array, " B"], dropped: Bool[Array, " B"] | None
) -> Float[Array, "L B D"]:
    """What a vector field's layers are conditioned on; one row of z for all of them is computed once."""
    if dropped is not None:
        marked = dropped.reshape(-1, *(1,) * (z.ndim - 1))
        z = jnp.where(marked, field.dropout_token[...].astype(z.dtype), z)
    rows = field.conditioning(with_time(z, t, field.time_features))
    return jnp.moveaxis(rows, 1, 0) if z.ndim == 3 else jnp.broadcast_to(rows, (field.layers, *rows.shape))


class FieldBlock(nnx.Module):
    """DiT block (Peebles, Xie 2023) with plain initialisation and the scale g itself, not 1 + g.

    (g1, b1, a1, g2, b2, a2) = Linear(GELU(c)); x += a1 Attn(g1 LN(x) + b1); x += a2 FF(g2 LN(x) + b2).
    """

    def __init__(self, dim: int, heads: int, ff_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.attention = Attention(dim, heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(dim, ff_dim, dim, dtype=dtype, rngs=rngs, kernel_init=xavier_normal, bias_init=zeros)
        self.modulation = linear(dim, 6 * dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], c: Float[Array, "B D"]) -> Float[Array, "B N D"]:
        modulation = saved(self.modulation(gelu(c)))[:, None, :]
        g1, b1, a1, g2, b2, a2 = jnp.split(modulation, 6, axis=-1)
        x = x + a1 * self.attention(g1 * self.norm1(x) + b1)
        return x + a2 * self.ff(g2 * self.norm2(x) + b2)


class TransformerField(nnx.Module):
    """Equivariant transformer vector field: no positional encoding, one conditioning row per layer.

    Args:
      width: W, columns of a parameter row.
      tokens: N; with ``oscillators`` their number.
      conditioning_dim: D of the encoder's rows.
      time_features: width of the sinusoidal time encoding; 1 gives the scalar t itself.
      projection: how rows become tokens: ``param2tok`` learns it, ``oscillators`` takes the rows of the k-osc task.
      init_noise: see ``Param2Tok``.

    Raises:
      ValueError: for ``oscillators`` that the row is not made of.
    """

    def __init__(
        self,
        width: int,
        *,
        dim: int,
        layers: int,
        heads: int,
        ff_dim: int,
        tokens: int,
        conditioning_dim: int,
        time_features: int,
        projection: ProjectionKind = "param2tok",
        init_noise: float = INIT_NOISE,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.layers, self.time_features, self.dtype = layers, time_features, dtype
        self.remat: Remat = "elementwise"
        self.projection: Param2Tok | OscillatorTokens
        if projection == "oscillators":
            self.projection = OscillatorTokens(width, tokens, dim, dtype=dtype, rngs=rngs)
        else:
            self.projection = Param2Tok(width, tokens, dim, init_noise=init_noise, dtype=dtype, rngs=rngs)
        # Stands for "no sound" in classifier-free guidance: one vector for all layers.
        self.dropout_token = nnx.Param(jax.random.normal(rngs.params(), (conditioning_dim,)), axes=("embed",))
        self.conditioning = FeedForward(conditioning_dim + time_features, dim, dim, dtype=dtype, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: FieldBlock(dim, heads, ff_dim, dtype=dtype, rngs=rngs), layers, rngs)

    def __call__(
        self,
        x: Float[Array, "B W"],
        t: Float[Array, " B"],
        z: Float[Array, "B L D"] | Float[Array, "B D"],
        dropped: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B W"]:
        """Velocity at (x, t); examples marked in ``dropped`` are unconditional, whatever their z."""
        rows, tokens = conditioning_of_layers(self, z, t, dropped), self.projection.to_tokens(x)
        return self.projection.to_row(run_layers(self.blocks, tokens, rows, remat=self.remat))

    def penalty(self) -> Float[Array, ""]:
        """The projection's unweighted L1 penalty."""
        return self.projection.penalty()
