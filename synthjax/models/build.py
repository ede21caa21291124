"""Builds the models of a config's ``model`` section; holds the lists of kinds that a config may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import ml_collections
from flax import nnx

from data_pipeline.console.cli import UserError
from synthjax.models.encoders import ResidualCNN, SpectrogramTransformer
from synthjax.models.flow_model import FlowModel
from synthjax.models.flow_vae import FlowVAE
from synthjax.models.kernels.remat import Remat
from synthjax.models.mlp_field import MLPField
from synthjax.models.regression import SignalRegression, SpectrogramRegression
from synthjax.models.spectral_encoder import SpectralEncoder
from synthjax.models.vector_fields import TransformerField, VectorField

Config: TypeAlias = ml_collections.ConfigDict
Shape = tuple[int, ...]  # Of one sound: (channels, mels, frames) of a spectrogram, (samples,) of a signal.
Options = dict[str, Any]  # The arguments of every module: dtype and rngs.


def build_model(
    config: Config,
    *,
    width: int,
    input_shape: Shape,
    dtype: jnp.dtype | str,
    remat: Remat = "elementwise",
    rngs: nnx.Rngs,
) -> nnx.Module:
    """The model of a config's ``model`` section.

    Args:
      width: W, columns of a parameter row.
      input_shape: the shape of one sound: (channels, mels, frames) of a spectrogram, (samples,) of a signal.
      dtype: dtype of activations and matrix products; parameters are always float32.
      remat: see ``layers.run_layers``.

    Raises:
      UserError: for kinds that do not exist, or do not go together.
    """
    if config.kind not in KINDS:
        raise UserError(f"unknown model.kind {config.kind!r}: use {' or '.join(KINDS)}")
    model = KINDS[config.kind](config, width, input_shape, {"dtype": jnp.dtype(dtype), "rngs": rngs})
    model.set_attributes(remat=remat, raise_if_not_found=False)
    return model


def _flow(config: Config, width: int, shape: Shape, options: Options) -> FlowModel:
    encoder = _encoder(config.encoder, shape, config.field.layers, options)
    return FlowModel(encoder, FIELDS[config.field.kind](config.field, width, config.encoder.dim, options))


def _regression(config: Config, width: int, shape: Shape, options: Options) -> nnx.Module:
    kind, dim = config.encoder.kind, config.encoder.dim
    if kind == "cnn":
        raise UserError("model.kind=regression takes model.encoder.kind=ast or spectral")
    encoder = _encoder(config.encoder, shape, 1, options)
    if kind == "spectral":
        return SignalRegression(encoder, dim, width, blocks=config.trunk_blocks, **options)
    return SpectrogramRegression(encoder, dim, width, **options)


def _flow_vae(config: Config, width: int, shape: Shape, options: Options) -> FlowVAE:
    return FlowVAE(
        _spectrogram(shape),
        width,
        encoder_channels=tuple(config.encoder_channels),
        decoder_channels=tuple(config.decoder_channels),
        hidden=config.hidden,
        blocks=config.blocks,
        latent_layers=config.latent_layers,
        regression_layers=config.regression_layers,
        **options,
    )


def _encoder(config: Config, shape: Shape, queries: int, options: Options) -> nnx.Module:
    if config.kind not in ENCODERS:
        raise UserError(f"unknown model.encoder.kind {config.kind!r}: use {' or '.join(ENCODERS)}")
    axes, build = ENCODERS[config.kind]
    if axes != len(shape):
        fitting = " or ".join(kind for kind, (axes, _) in ENCODERS.items() if axes == len(shape))
        raise UserError(
            f"model.encoder.kind={config.kind} cannot read this task's input of shape {shape}: use {fitting}"
        )
    return build(config, shape, queries, options)


def _ast(config: Config, shape: Shape, queries: int, options: Options) -> SpectrogramTransformer:
    return SpectrogramTransformer(
        _spectrogram(shape),
        dim=config.dim,
        layers=config.layers,
        heads=config.heads,
        queries=queries,
        patch=tuple(config.patch),
        stride=tuple(config.stride),
        swapped_padding=config.swapped_padding,
        **options,
    )


def _cnn(config: Config, shape: Shape, queries: int, options: Options) -> ResidualCNN:
    return ResidualCNN(
        _spectrogram(shape),
        dim=config.dim,
        channels=config.cnn_channels,
        stages=config.cnn_stages,
        blocks=config.cnn_blocks,
        queries=queries,
        **options,
    )


def _spectral(config: Config, shape: Shape, queries: int, options: Options) -> SpectralEncoder:
    sizes = {"dim": config.dim, "channels": config.channels, "stages": config.stages}
    return SpectralEncoder(shape[0], **sizes, norm=config.norm, **options)


def _transformer(config: Config, width: int, conditioning_dim: int, options: Options) -> TransformerField:
    sizes = {name: config[name] for name in ("dim", "layers", "heads", "ff_dim", "tokens", "time_features")}
    return TransformerField(
        width,
        **sizes,
        conditioning_dim=conditioning_dim,
        projection=config.projection,
        init_noise=config.init_noise,
        **options,
    )


def _mlp(config: Config, width: int, conditioning_dim: int, options: Options) -> MLPField:
    sizes = {name: config[name] for name in ("dim", "layers", "time_features")}
    return MLPField(width, **sizes, conditioning_dim=conditioning_dim, **options)


def _spectrogram(shape: Shape) -> tuple[int, int, int]:
    channels, mels, frames = shape
    return channels, mels, frames


# By model.kind, model.encoder.kind (with the number of axes of the sounds that it reads) and model.field.kind.
KINDS: dict[str, Callable[[Config, int, Shape, Options], nnx.Module]] = {
    "flow": _flow,
    "regression": _regression,
    "flow_vae": _flow_vae,
}
ENCODERS: dict[str, tuple[int, Callable[[Config, Shape, int, Options], nnx.Module]]] = {
    "ast": (3, _ast),
    "cnn": (3, _cnn),
    "spectral": (1, _spectral),
}
FIELDS: dict[str, Callable[[Config, int, int, Options], VectorField]] = {
    "transformer": _transformer,
    "mlp": _mlp,
}
