"""Regression baselines: rows straight from a sound, without an output activation.

Shapes: B batch, C channels, M mels, F frames, S samples, W row width, D width.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.layers import ResidualMLP, linear


class SpectrogramRegression(nnx.Module):
    """An encoder with one query, a residual MLP block and a Linear (the paper's AST baseline).

    Args:
      encoder: a ``SpectrogramTransformer`` with one query.
      dim: D of the encoder's output.
      width: W.
    """

    def __init__(self, encoder: nnx.Module, dim: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.encoder = encoder
        self.head = ResidualMLP(dim, dim, dim, dtype=dtype, rngs=rngs)
        # Rows are float32, whatever dtype the layers compute in.
        self.read = linear(dim, width, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def __call__(self, mel: Float[Array, "B C M F"]) -> Float[Array, "B W"]:
        return self.read(self.head(self.encoder(mel)[:, 0]))


class SignalRegression(nnx.Module):
    """An encoder and a trunk of residual MLP blocks; the last block gives the row.

    Args:
      encoder: a ``SpectralEncoder``.
      dim: D of the encoder's output and of the trunk; the last block is W wide inside as well.
      width: W.
      blocks: number of blocks in the trunk.
    """

    def __init__(
        self, encoder: nnx.Module, dim: int, width: int, *, blocks: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.encoder = encoder
        widths = [dim] * (blocks - 1) + [width]
        self.trunk = nnx.List([ResidualMLP(dim, size, size, dtype=dtype, rngs=rngs) for size in widths])

    def __call__(self, signal: Float[Array, "B S"]) -> Float[Array, "B W"]:
        x = self.encoder(signal)
        for block in self.trunk:
            x = block(x)
        return x.astype(jnp.float32)
