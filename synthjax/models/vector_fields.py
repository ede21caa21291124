"""Vector fields v(x, t | z): the part that they share, and the transformer field.

Shapes: B batch, W row width, N tokens, D model width, E width of the conditioning, L layers, T width of the time
encoding.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from synthjax.models.kernels.remat import Remat, saved
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
from synthjax.models.norms import LayerNorm
from synthjax.models.projections import INIT_NOISE, OscillatorTokens, Param2Tok

ProjectionKind = Literal["param2tok", "oscillators"]
TIME_BASE = 10_000.0


def sinusoidal_time(t: Float[Array, " B"], features: int) -> Float[Array, "B T"]:
    """The time encoding: cos, then sin, of t / 10000^(i / (T/2)), i < T/2. As in the reference, t is not scaled."""
    half = features // 2
    basis = TIME_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = t[:, None] * basis
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def with_time(z: Float[Array, "B *L E"], t: Float[Array, " B"], features: int) -> Float[Array, "B *L E+T"]:
    """Conditioning rows, each followed by the time encoding: sinusoidal, or the scalar t for one feature."""
    time = sinusoidal_time(t, features) if features > 1 else t[:, None]
    time = time.astype(z.dtype).reshape(z.shape[0], *(1,) * (z.ndim - 2), features)
    return jnp.concatenate([z, jnp.broadcast_to(time, (*z.shape[:-1], features))], axis=-1)


class VectorField(nnx.Module):
    """The part that both vector fields share. A subclass has ``blocks``, ``to_tokens`` and ``to_row``.

    Args:
      dim: D.
      layers: L.
      conditioning_dim: E of the encoder's rows.
      time_features: T; 1 gives the scalar t itself.
    """

    blocks: nnx.Module

    def __init__(
        self, dim: int, layers: int, conditioning_dim: int, time_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.layers, self.time_features = layers, time_features
        self.remat: Remat = "elementwise"
        # Replaces the encoder's rows of all layers when the sound is dropped, for classifier-free guidance.
        self.dropout_token = nnx.Param(jax.random.normal(rngs.params(), (conditioning_dim,)), axes=("embed",))
        self.conditioning = FeedForward(conditioning_dim + time_features, dim, dim, dtype=dtype, rngs=rngs)

    def conditioning_of_layers(
        self, z: Float[Array, "B L E"] | Float[Array, "B E"], t: Float[Array, " B"], dropped: Bool[Array, " B"] | None
    ) -> Float[Array, "L B D"]:
        """The conditioning of each layer. If z has one row for all layers, it is computed once."""
        if dropped is not None:
            marked = dropped.reshape(-1, *(1,) * (z.ndim - 1))
            z = jnp.where(marked, self.dropout_token[...].astype(z.dtype), z)
        rows = self.conditioning(with_time(z, t, self.time_features))
        return jnp.moveaxis(rows, 1, 0) if z.ndim == 3 else jnp.broadcast_to(rows, (self.layers, *rows.shape))

    def __call__(
        self,
        x: Float[Array, "B W"],
        t: Float[Array, " B"],
        z: Float[Array, "B L E"] | Float[Array, "B E"],
        dropped: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B W"]:
        """The velocity at (x, t). Examples marked in ``dropped`` are unconditional."""
        rows, tokens = self.conditioning_of_layers(z, t, dropped), self.to_tokens(x)
        return self.to_row(run_layers(self.blocks, tokens, rows, remat=self.remat))

    def to_tokens(self, x: Float[Array, "B W"]) -> Float[Array, "B *N D"]:
        """The input of the blocks."""
        raise NotImplementedError

    def to_row(self, tokens: Float[Array, "B *N D"]) -> Float[Array, "B W"]:
        """The velocity, float32, from the output of the blocks."""
        raise NotImplementedError

    def penalty(self) -> Float[Array, ""]:
        """The unweighted penalty on the projection; 0 for a field without one."""
        return jnp.zeros(())


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


class TransformerField(VectorField):
    """Equivariant transformer vector field: no positional encoding, one conditioning row per layer.

    Args:
      width: W, columns of a parameter row.
      tokens: N; for the projection ``oscillators`` the number of oscillators.
      projection: ``param2tok`` for ``Param2Tok``, ``oscillators`` for ``OscillatorTokens``.
      init_noise: see ``Param2Tok``.
      dim, layers, conditioning_dim, time_features: see ``VectorField``.

    Raises:
      ValueError: for the projection ``oscillators``, unless a row holds that many oscillators.
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
        self.projection: Param2Tok | OscillatorTokens
        if projection == "oscillators":
            self.projection = OscillatorTokens(width, tokens, dim, dtype=dtype, rngs=rngs)
        else:
            self.projection = Param2Tok(width, tokens, dim, init_noise=init_noise, dtype=dtype, rngs=rngs)
        super().__init__(dim, layers, conditioning_dim, time_features, dtype=dtype, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: FieldBlock(dim, heads, ff_dim, dtype=dtype, rngs=rngs), layers, rngs)

    def to_tokens(self, x: Float[Array, "B W"]) -> Float[Array, "B N D"]:
        return self.projection.to_tokens(x)

    def to_row(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B W"]:
        return self.projection.to_row(tokens)

    def penalty(self) -> Float[Array, ""]:
        return self.projection.penalty()
