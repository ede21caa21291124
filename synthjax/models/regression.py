"""Regression baselines: rows straight from a sound, with no output activation.

Shapes: B batch, C channels, M mels, F frames, S samples, W row width, D width.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.encoders import SpectrogramTransformer
from synthjax.models.layers import linear
from synthjax.models.residual_mlp import ResidualMLP
from synthjax.models.spectral_encoder import NormKind, SpectralEncoder


class SpectrogramRegression(nnx.Module):
    """Audio spectrogram transformer with one query, a residual MLP block and a Linear (the paper's AST baseline).

    The arguments are those of ``SpectrogramTransformer``.
    """

    def __init__(
        self,
        spectrogram_shape: tuple[int, int, int],
        width: int,
        *,
        dim: int,
        layers: int,
        heads: int,
        patch: tuple[int, int] = (16, 16),
        stride: tuple[int, int] = (10, 10),
        swapped_padding: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = SpectrogramTransformer(
            spectrogram_shape,
            dim=dim,
            layers=layers,
            heads=heads,
            queries=1,
            patch=patch,
            stride=stride,
            swapped_padding=swapped_padding,
            dtype=dtype,
            rngs=rngs,
        )
        self.head = ResidualMLP(dim, dim, dim, dtype=dtype, rngs=rngs)
        # Rows leave in float32 whatever computes the layers.
        self.read = linear(dim, width, ("embed", None), dtype=jnp.float32, rngs=rngs)

    def __call__(self, mel: Float[Array, "B C M F"]) -> Float[Array, "B W"]:
        return self.read(self.head(self.encoder(mel)[:, 0]))


class SignalRegression(nnx.Module):
    """CNN spectral encoder and a trunk of residual MLP blocks, the last of which gives the row.

    Args:
      samples: S.
      hidden: D of the encoder's output and of the trunk; the last block is W wide inside as well.
      blocks: of the trunk.
      channels, stages, norm: see ``SpectralEncoder``.
    """

    def __init__(
        self,
        samples: int,
        width: int,
        *,
        hidden: int,
        blocks: int,
        channels: int,
        stages: int,
        norm: NormKind,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = SpectralEncoder(
            samples, dim=hidden, channels=channels, stages=stages, norm=norm, dtype=dtype, rngs=rngs
        )
        widths = [hidden] * (blocks - 1) + [width]
        self.trunk = nnx.List([ResidualMLP(hidden, size, size, dtype=dtype, rngs=rngs) for size in widths])

    def __call__(self, signal: Float[Array, "B S"]) -> Float[Array, "B W"]:
        x = self.encoder(signal)
        for block in self.trunk:
            x = block(x)
        return x.astype(jnp.float32)
