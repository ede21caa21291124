"""The one place that makes models of a config's ``model`` section."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import ml_collections
from flax import nnx

from data_pipeline.cli import UserError
from synthjax.models.encoders import ResidualCNN, SpectrogramTransformer
from synthjax.models.flow_model import FlowModel
from synthjax.models.flow_vae import FlowVAE
from synthjax.models.mlp_field import MLPField
from synthjax.models.regression import SignalRegression, SpectrogramRegression
from synthjax.models.remat import Remat
from synthjax.models.spectral_encoder import SpectralEncoder
from synthjax.models.vector_fields import TransformerField

Config: TypeAlias = ml_collections.ConfigDict
# Axes of one sound as the encoders take it: (channels, mels, frames), or (samples,).
INPUT_AXES = {"ast": 3, "cnn": 3, "spectral": 1}


def build_model(
    config: Config,
    *,
    width: int,
    input_shape: tuple[int, ...],
    dtype: jnp.dtype | str,
    remat: Remat = "elementwise",
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The model of a config's ``model`` section.

    Args:
      width: W, columns of a parameter row.
      input_shape: of one sound: (channels, mels, frames) of a spectrogram, (samples,) of a signal.
      dtype: of activations and matrix products; parameters are float32 always.
      remat: see ``layers.run_layers``.

    Raises:
      UserError: for kinds that do not exist, or do not go together.
    """
    kinds: dict[str, Callable[..., nnx.Module]] = {"flow": _flow, "regression": _regression, "flow_vae": _flow_vae}
    if config.kind not in kinds:
        raise UserError(f"unknown model.kind {config.kind!r}: use {' or '.join(kinds)}")
    model = kinds[config.kind](config, width, input_shape, dtype=jnp.dtype(dtype), rngs=rngs)
    model.set_attributes(remat=remat, raise_if_not_found=False)
    return model


def _flow(config: Config, width: int, input_shape: tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs) -> FlowModel:
    encoder = _encoder(config.encoder, input_shape, config.field.layers, dtype=dtype, rngs=rngs)
    return FlowModel(encoder, _field(config.field, width, config.encoder.dim, dtype=dtype, rngs=rngs))


def _encoder(config: Config, shape: tuple[int, ...], queries: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    _check_encoder(config.kind, shape)
    if config.kind == "spectral":
        return SpectralEncoder(shape[0], dim=config.dim, **_spectral(config), dtype=dtype, rngs=rngs)
    if config.kind == "ast":
        return SpectrogramTransformer(
            _spectrogram(shape), queries=queries, **_transformer(config), dtype=dtype, rngs=rngs
        )
    return ResidualCNN(
        _spectrogram(shape),
        dim=config.dim,
        channels=config.cnn_channels,
        stages=config.cnn_stages,
        blocks=config.cnn_blocks,
        queries=queries,
        dtype=dtype,
        rngs=rngs,
    )


def _field(
    config: Config, width: int, conditioning_dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> TransformerField | MLPField:
    sizes = {
        "dim": config.dim,
        "layers": config.layers,
        "conditioning_dim": conditioning_dim,
        "time_features": config.time_features,
    }
    if config.kind == "mlp":
        return MLPField(width, **sizes, dtype=dtype, rngs=rngs)
    return TransformerField(
        width,
        **sizes,
        heads=config.heads,
        ff_dim=config.ff_dim,
        tokens=config.tokens,
        projection=config.projection,
        init_noise=config.init_noise,
        dtype=dtype,
        rngs=rngs,
    )


def _regression(
    config: Config, width: int, input_shape: tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Module:
    encoder = config.encoder
    _check_encoder(encoder.kind, input_shape)
    if encoder.kind == "spectral":
        return SignalRegression(
            input_shape[0],
            width,
            hidden=encoder.dim,
            blocks=config.trunk_blocks,
            **_spectral(encoder),
            dtype=dtype,
            rngs=rngs,
        )
    if encoder.kind == "ast":
        return SpectrogramRegression(_spectrogram(input_shape), width, **_transformer(encoder), dtype=dtype, rngs=rngs)
    raise UserError("model.kind=regression takes model.encoder.kind=ast or spectral")


def _flow_vae(config: Config, width: int, input_shape: tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs) -> FlowVAE:
    return FlowVAE(
        _spectrogram(input_shape),
        width,
        encoder_channels=tuple(config.encoder_channels),
        decoder_channels=tuple(config.decoder_channels),
        hidden=config.hidden,
        blocks=config.blocks,
        latent_layers=config.latent_layers,
        regression_layers=config.regression_layers,
        dtype=dtype,
        rngs=rngs,
    )


def _check_encoder(kind: str, shape: tuple[int, ...]) -> None:
    if kind not in INPUT_AXES:
        raise UserError(f"unknown model.encoder.kind {kind!r}: use {' or '.join(INPUT_AXES)}")
    if INPUT_AXES[kind] != len(shape):
        fitting = " or ".join(name for name, axes in INPUT_AXES.items() if axes == len(shape))
        raise UserError(f"model.encoder.kind={kind} does not hear what this task offers: use {fitting}")


def _spectrogram(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, mels, frames = shape
    return channels, mels, frames


def _spectral(config: Config) -> dict[str, Any]:
    return {"channels": config.channels, "stages": config.stages, "norm": config.norm}


def _transformer(config: Config) -> dict[str, Any]:
    return {
        "dim": config.dim,
        "layers": config.layers,
        "heads": config.heads,
        "patch": tuple(config.patch),
        "stride": tuple(config.stride),
        "swapped_padding": config.swapped_padding,
    }
