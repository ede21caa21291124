"""Encoder and vector field as one model, built from the config's ``model`` section."""

from __future__ import annotations

import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Bool, Float

from data_pipeline.cli import UserError
from synthjax.models.encoders import ResidualCNN, SpectrogramTransformer
from synthjax.models.vector_fields import TransformerField

SpectrogramShape = tuple[int, int, int]


class FlowModel(nnx.Module):
    """v(x, t | encode(mel)).

    Shapes: B batch, C channels, M mels, F frames, W row width, L layers, D conditioning width.
    """

    def __init__(self, encoder: nnx.Module, field: TransformerField) -> None:
        self.encoder = encoder
        self.field = field

    def encode(self, mel: Float[Array, "B C M F"]) -> Float[Array, "B L D"]:
        """Conditioning rows of standardised spectrograms."""
        return self.encoder(mel)

    def velocity(
        self,
        x: Float[Array, "B W"],
        t: Float[Array, " B"],
        z: Float[Array, "B L D"],
        dropped: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B W"]:
        """The vector field in float32; ``dropped`` examples are unconditional."""
        return self.field(x, t, z, dropped)

    def penalty(self) -> Float[Array, ""]:
        """Unweighted penalty on the parameter projection."""
        return self.field.penalty()


def _build_encoder(
    config: ml_collections.ConfigDict, shape: SpectrogramShape, queries: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Module:
    if config.kind == "ast":
        return SpectrogramTransformer(
            shape,
            dim=config.dim,
            layers=config.layers,
            heads=config.heads,
            queries=queries,
            patch=tuple(config.patch),
            stride=tuple(config.stride),
            swapped_padding=config.swapped_padding,
            dtype=dtype,
            rngs=rngs,
        )
    if config.kind == "cnn":
        return ResidualCNN(
            shape,
            dim=config.dim,
            channels=config.cnn_channels,
            stages=config.cnn_stages,
            blocks=config.cnn_blocks,
            queries=queries,
            dtype=dtype,
            rngs=rngs,
        )
    raise UserError(f"unknown model.encoder.kind {config.kind!r}: use ast or cnn")


def build_model(
    config: ml_collections.ConfigDict,
    *,
    width: int,
    spectrogram_shape: SpectrogramShape,
    dtype: jnp.dtype | str,
    rngs: nnx.Rngs,
) -> FlowModel:
    """The model of a config's ``model`` section.

    Args:
      width: W, columns of a parameter row.
      spectrogram_shape: (channels, mels, frames) of one spectrogram.
      dtype: of activations and matrix products; parameters are float32 always.

    Raises:
      UserError: for an unknown kind of encoder.
    """
    dtype = jnp.dtype(dtype)
    field = config.field
    encoder = _build_encoder(config.encoder, spectrogram_shape, field.layers, dtype, rngs)
    return FlowModel(
        encoder,
        TransformerField(
            width,
            dim=field.dim,
            layers=field.layers,
            heads=field.heads,
            ff_dim=field.ff_dim,
            tokens=field.tokens,
            conditioning_dim=config.encoder.dim,
            time_features=field.time_features,
            init_noise=field.init_noise,
            dtype=dtype,
            rngs=rngs,
        ),
    )
